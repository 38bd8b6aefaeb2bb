"""The 3D-aware convolution computes what its reference says: forward, all gradients, every layout, stride, storage."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rodin_kernels import EG3D_FIXED, RODIN, RODINHD, plane_axes, rollout_conv, rollout_conv_reference
from rodin_kernels.rollout_conv import library
from rodin_kernels.rollout_conv.line_products import tap_reads
from rodin_kernels.rollout_conv.torch_path import Step, live_taps
from rodin_kernels.testing import STORAGES, assert_within_budget, poisoned, random_planes, random_tensor, stored_as

NAMES = ("xy", "yx", "xz", "zx", "yz", "zy")
LAYOUTS = [c for c in itertools.product(NAMES, repeat=3) if len({*map(frozenset, c)}) == 3]
DOUBLE = torch.float64


class Case(NamedTuple):
    """One call: what is convolved and how."""

    planes: list[Tensor]
    weight: Tensor
    bias: Tensor | None
    options: dict[str, object]

    def to(self, dtype: torch.dtype) -> Case:
        """The same call in another precision, ready for gradients."""
        planes = [plane.detach().to(dtype).requires_grad_() for plane in self.planes]
        bias = None if self.bias is None else self.bias.detach().to(dtype).requires_grad_()
        return Case(planes, self.weight.detach().to(dtype).requires_grad_(), bias, self.options)

    def inputs(self) -> list[Tensor]:
        """All tensors that have a gradient."""
        return [*self.planes, self.weight, *([] if self.bias is None else [self.bias])]


def results(function: object, case: Case) -> list[Tensor]:
    """The planes that come out, then the gradients of all inputs under random cotangents."""
    whole = case.planes[0] if len(case.planes) == 1 else case.planes
    out = function(whole, case.weight, case.bias, **case.options)  # type: ignore[operator]
    outputs = [out] if isinstance(out, Tensor) else list(out)
    cotangents = [random_tensor(*y.shape, seed=9 + i, dtype=y.dtype) for i, y in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, case.inputs(), cotangents)]


def make(
    *, sizes: tuple[int, int, int] | int = 5, batch: int = 2, channels: int = 3, outputs: int = 4, kernel: int = 3,
    per_plane: bool = False, bias: bool = True, storage: str = "contiguous", **options: object,
) -> Case:  # fmt: skip
    """A call in float64; `sizes` is one number for stacked planes, or the lengths of x, y and z for three."""
    if isinstance(sizes, int):
        planes = [random_planes(batch, channels, sizes, dtype=DOUBLE, storage=storage)]
    else:
        axes = plane_axes(options.get("layout", RODIN))  # type: ignore[arg-type]
        planes = [
            random_tensor(batch, channels, sizes[row], sizes[column], seed=index, dtype=DOUBLE)
            for index, (column, row) in enumerate(axes)
        ]
    lead = (3, outputs) if per_plane else (outputs,)
    weight = random_tensor(*lead, 3 * channels, kernel, kernel, seed=5, dtype=DOUBLE)
    return Case(planes, weight, random_tensor(*lead, seed=6, dtype=DOUBLE) if bias else None, options).to(DOUBLE)


def assert_equal_in_double(case: Case) -> None:
    """The operator agrees with the reference to rounding, in forward and gradients, and writes every element."""
    expected = results(rollout_conv_reference, case)
    with poisoned():
        actual = results(rollout_conv, case)
    for have, want in zip(actual, expected, strict=True):
        assert have.shape == want.shape
        # a plane that comes out of nothing but padding is exactly zero: there is no relative error to take
        torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-11)


def test_a_small_example_can_be_checked_by_hand() -> None:
    planes = torch.arange(1.0, 13.0).view(1, 3, 1, 2, 2)
    weight = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    for function in (rollout_conv, rollout_conv_reference):
        xy = function(planes, weight, padding=0)[0, 0, 0]
        # columns of xy are x, the rows of zx: means 5.5, 7.5; rows of xy are y, the columns of yz: means 10, 11
        assert torch.equal(xy, torch.tensor([[1 + 55 + 1000.0, 2 + 75 + 1000], [3 + 55 + 1100, 4 + 75 + 1100]]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_six_lines_meet_their_own_coordinates(layout: tuple[str, str, str]) -> None:
    lengths, values = (4, 5, 6), [random_tensor(n, seed=n, dtype=DOUBLE) for n in (4, 5, 6)]
    axes = plane_axes(layout)
    shapes = [(lengths[row], lengths[column]) for column, row in axes]
    # channel a holds the coordinate of axis a where the plane shows it, else 0
    planes = [torch.zeros(1, 3, *shape, dtype=DOUBLE) for shape in shapes]
    for plane, (column, row) in zip(planes, axes, strict=True):
        plane[0, column] += values[column][None, :]
        plane[0, row] += values[row][:, None]
    for slot, which in ((1, 0), (2, 1)):
        weight = torch.zeros(3, 9, 1, 1, dtype=DOUBLE)
        weight[range(3), range(3 * slot, 3 * slot + 3)] = 1
        got = rollout_conv(planes, weight, padding=0, layout=layout)
        for plane, out, pair in zip(planes, got, axes, strict=True):
            torch.testing.assert_close(out[0, pair[which]], plane[0, pair[which]])


@settings(max_examples=60)
@given(
    size=st.integers(1, 7), batch=st.integers(1, 3), channels=st.integers(1, 5), outputs=st.integers(1, 5),
    kernel=st.integers(1, 5), stride=st.integers(1, 3), padding=st.integers(0, 4), transposed=st.booleans(),
    per_plane=st.booleans(), bias=st.booleans(), layout=st.sampled_from(LAYOUTS), storage=st.sampled_from(STORAGES),
)  # fmt: skip
def test_stacked_planes_agree_with_the_reference(**drawn: object) -> None:
    size, options = drawn.pop("size"), {k: drawn.pop(k) for k in ("layout", "stride", "padding", "transposed")}
    step = Step(options["stride"], options["padding"], options["transposed"])  # type: ignore[arg-type]
    case = make(sizes=size, **drawn, **options)  # type: ignore[arg-type]
    if step.output_size(size, drawn["kernel"]) < 1:  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="too small for a kernel"):
            rollout_conv(case.planes[0], case.weight, **options)  # type: ignore[arg-type]
        return
    assert_equal_in_double(case)


@settings(max_examples=25)
@given(
    sizes=st.tuples(st.integers(3, 8), st.integers(3, 8), st.integers(3, 8)), layout=st.sampled_from(LAYOUTS),
    step=st.sampled_from([(1, 1, 0, False), (3, 1, 1, False), (3, 2, 1, False), (5, 1, 2, False), (3, 2, 1, True)]),
    per_plane=st.booleans(),
)  # fmt: skip
def test_three_planes_of_their_own_sizes_agree_with_the_reference(
    sizes: tuple[int, int, int], layout: tuple[str, str, str], step: tuple[int, int, int, bool], per_plane: bool
) -> None:
    kernel, stride, padding, transposed = step
    options = {"stride": stride, "padding": padding, "transposed": transposed, "layout": layout}
    assert_equal_in_double(make(sizes=sizes, kernel=kernel, per_plane=per_plane, **options))  # type: ignore[arg-type]


def test_a_large_plane_takes_the_blocked_turn_and_stays_exact() -> None:
    assert_equal_in_double(make(sizes=80, batch=1, channels=4, outputs=2))


@pytest.mark.parametrize("per_plane", [False, True])
def test_an_empty_batch_has_empty_planes_and_zero_gradients(per_plane: bool) -> None:
    case = make(batch=0, per_plane=per_plane)
    out, *gradients = results(rollout_conv, case)
    assert out.shape == (0, 3, 4, 5, 5)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(gradients, case.inputs(), strict=True))


def test_the_transposed_form_doubles_and_stride_two_halves() -> None:
    case = make(sizes=6)
    assert rollout_conv(case.planes[0], case.weight, stride=2).shape[-2:] == (3, 3)
    assert rollout_conv(case.planes[0], case.weight, stride=2, transposed=True).shape[-2:] == (12, 12)


@pytest.mark.parametrize("layout", [RODIN, RODINHD, EG3D_FIXED])
def test_turning_the_axes_turns_the_result(layout: tuple[str, str, str]) -> None:
    case = make(sizes=6, layout=layout)
    expected = rollout_conv(case.planes[0], case.weight, case.bias, layout=layout)
    for order in itertools.permutations(range(3)):
        # the same three planes under another order are the same scene
        turned = rollout_conv(
            case.planes[0][:, list(order)], case.weight, case.bias, layout=[layout[i] for i in order]
        )
        torch.testing.assert_close(turned, expected[:, list(order)])
    # planes stored the other way round: rows and columns, the two line slots and the kernel's axes change places
    own, columns, rows = case.weight.split(3, 1)
    weight = torch.cat([own, rows, columns], 1).transpose(-1, -2)
    flipped = rollout_conv(case.planes[0].mT, weight, case.bias, layout=[name[::-1] for name in layout])
    torch.testing.assert_close(flipped.mT, expected)
    # renaming the axes changes nothing at all
    renamed = rollout_conv(
        case.planes[0], case.weight, case.bias, layout=[name.translate(str.maketrans("xyz", "zxy")) for name in layout]
    )
    assert torch.equal(renamed, expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_results_do_not_depend_on_the_storage(storage: str) -> None:
    planes, weight = random_planes(2, 8, 6), random_tensor(5, 24, 3, 3, seed=1)
    planes[1] = planes[0]
    torch.testing.assert_close(rollout_conv(stored_as(planes, storage), weight), rollout_conv(planes, weight))


def test_one_sample_does_not_depend_on_its_batch() -> None:
    planes, weight = random_planes(4, 8, 6), random_tensor(5, 24, 3, 3, seed=1)
    torch.testing.assert_close(rollout_conv(planes, weight)[2:3], rollout_conv(planes[2:3], weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("setting", [
    {"channels": 32, "outputs": 32, "sizes": 16},
    {"channels": 24, "outputs": 16, "sizes": 9, "per_plane": True},
    {"channels": 16, "outputs": 24, "sizes": 12, "stride": 2, "transposed": True},
    {"channels": 16, "outputs": 24, "sizes": (8, 12, 10), "kernel": 5, "padding": 2},
])  # fmt: skip
def test_errors_stay_within_twice_those_of_plain_torch(dtype: torch.dtype, setting: dict[str, object]) -> None:
    low = make(batch=1, **setting).to(dtype)  # type: ignore[arg-type]
    exact, plain = results(rollout_conv_reference, low.to(DOUBLE)), results(rollout_conv_reference, low)
    for index, (have, want, other) in enumerate(zip(results(rollout_conv, low), exact, plain, strict=True)):
        assert_within_budget(have, want, other, what=f"{dtype} result {index}")


@pytest.mark.parametrize("channels, size, turns", [(64, 16, False), (64, 16, True), (160, 8, False)])
def test_many_channels_are_as_accurate_as_in_torch_s_better_memory_order(
    channels: int, size: int, turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_TURNS", turns)
    low = make(batch=1, channels=channels, outputs=channels, sizes=size).to(torch.float32)
    exact, plain = results(rollout_conv_reference, low.to(DOUBLE)), results(rollout_conv_reference, low)
    for index, (have, want, other) in enumerate(zip(results(rollout_conv, low), exact, plain, strict=True)):
        assert_within_budget(have, want, other, what=f"result {index}")


@pytest.mark.parametrize("stride, transposed", [(1, False), (2, False), (2, True)])
def test_sums_in_parts_are_the_whole_sums(stride: int, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(channels=20, outputs=36, sizes=5, stride=stride, transposed=transposed).to(torch.float32)
    whole = results(rollout_conv, case)
    monkeypatch.setattr(library, "CHAIN", 16 * 9)
    assert len(library._parts(case.weight, 36, case.weight)) == 3
    for parts, one in zip(results(rollout_conv, case), whole, strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [rollout_conv, rollout_conv_reference])
@pytest.mark.parametrize("setting", [
    {}, {"per_plane": True}, {"sizes": (2, 3, 4)}, {"stride": 2, "transposed": True, "bias": False},
])  # fmt: skip
def test_first_and_second_derivatives_are_right(function: object, setting: dict[str, object]) -> None:
    case = make(**{"sizes": 3, "batch": 1, "channels": 1, "outputs": 2, **setting})  # type: ignore[arg-type]
    count = len(case.planes)

    def call(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        planes = inputs[0] if count == 1 else inputs[:count]
        bias = inputs[count + 1] if len(inputs) > count + 1 else None
        return function(planes, inputs[count], bias, **case.options)  # type: ignore[operator]

    assert torch.autograd.gradcheck(call, case.inputs(), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, case.inputs(), fast_mode=True)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_frozen_inputs_leave_the_other_gradients_alone(frozen: tuple[int, ...]) -> None:
    full, case = make(), make()
    for index in frozen:
        case.inputs()[index].requires_grad_(False)
    for function in (full, case):
        rollout_conv(function.planes[0], function.weight, function.bias).square().sum().backward()
    for index, (have, want) in enumerate(zip(case.inputs(), full.inputs(), strict=True)):
        assert have.grad is None if index in frozen else torch.equal(have.grad, want.grad)


@pytest.mark.parametrize("kernel, step", [
    (3, Step(1, 1, False)), (5, Step(1, 4, False)), (3, Step(2, 1, False)), (3, Step(2, 1, True)),
    (1, Step(1, 3, False)),
])  # fmt: skip
def test_live_taps_are_those_that_read_no_padding(kernel: int, step: Step) -> None:
    for size in range(1, 9):
        operation = torch.nn.functional.conv_transpose1d if step.transposed else torch.nn.functional.conv1d
        extra = {"output_padding": step.stride - 1} if step.transposed else {}
        wanted = torch.stack([
            operation(torch.ones(1, 1, size), torch.eye(kernel)[None, None, tap], stride=step.stride,
                      padding=step.padding, **extra)[0, 0] for tap in range(kernel)], 1)  # fmt: skip
        found, seen = torch.zeros_like(wanted), torch.zeros(len(wanted))
        for positions, taps in live_taps(size, kernel, step):
            found[positions, taps] += 1
            seen[positions] += 1
        assert torch.equal(found, wanted) and torch.equal(seen, torch.ones(len(wanted)))


@pytest.mark.parametrize("kernel, step", [
    (3, Step(1, 1, False)), (5, Step(1, 4, False)), (3, Step(2, 1, False)), (3, Step(3, 4, False)),
    (3, Step(2, 1, True)), (4, Step(3, 2, True)), (1, Step(1, 3, False)), (1, Step(2, 0, True)),
])  # fmt: skip
def test_taps_read_what_a_convolution_of_single_elements_shows(kernel: int, step: Step) -> None:
    for size in (n for n in range(1, 9) if step.output_size(n, kernel) > 0):
        operation = torch.nn.functional.conv_transpose1d if step.transposed else torch.nn.functional.conv1d
        extra = {"output_padding": step.stride - 1} if step.transposed else {}
        for tap, (positions, elements) in enumerate(tap_reads(size, kernel, step)):
            one, single = torch.eye(kernel)[None, None, tap], torch.eye(size)[:, None]
            wanted = operation(single, one, stride=step.stride, padding=step.padding, **extra)[:, 0]
            found = torch.zeros_like(wanted)
            pairs = zip(range(size)[elements], range(wanted.shape[1])[positions], strict=True)
            for element, position in pairs:
                found[element, position] = 1
            assert torch.equal(found, wanted)
