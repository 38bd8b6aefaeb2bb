"""The Triton kernels of the 3D-aware convolution, run by Triton's interpreter or on a GPU, against float64.

The interpreter is chosen when Triton is imported, so the tests marked `interpret` run in a process of their own, which
the last test starts. bfloat16 is silently wrong in the interpreter and waits for a GPU, where the same tests run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rodin_kernels import (
    EG3D_FIXED,
    RODIN,
    RODINHD,
    configs,
    plane_axes,
    roll_out,
    rollout_conv,
    rollout_conv_reference,
    unroll,
)
from rodin_kernels.rollout_conv import choice, launches, own_plane_method, quick, triton_path, weight_gradient
from rodin_kernels.rollout_conv.torch_path import Step, live_taps
from rodin_kernels.testing import STORAGES, amid_poison, assert_within_budget, poisoned, random_planes, random_tensor
from tests.interpreter import assert_passes_interpreted

interpret = pytest.mark.interpret
interpreted = pytest.mark.interpret(only=True)


@pytest.fixture(autouse=True)
def quick_interpreter(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, watched_addresses: None
) -> Iterator[None]:
    """The interpreter checks every integer operation for overflow, at half of its time; one test leaves it on."""
    if os.environ.get("TRITON_INTERPRET") == "1" and "checked" not in request.node.name:
        builder = __import__("triton.runtime.interpreter", fromlist=["_"]).interpreter_builder
        monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    forget()
    yield
    forget()


def forget() -> None:
    """Nothing that another test's parameters led to is used again."""
    triton_path.forget()
    quick.forget()


def inputs(
    *, sizes: tuple[int, int, int] | int = 4, batch: int = 1, channels: int = 2, outputs: int = 3, kernel: int = 3,
    per_plane: bool = False, bias: bool = True, storage: str = "contiguous", dtype: torch.dtype = torch.float32,
    layout: tuple[str, str, str] = RODIN,
) -> list[Tensor]:  # fmt: skip
    """Planes (one tensor, or three for sizes of x, y, z), weight and bias amid NaN, ready for gradients."""
    planes = [random_planes(batch, channels, sizes, storage=storage)] if isinstance(sizes, int) else [
        random_tensor(batch, channels, sizes[row], sizes[column], seed=index)
        for index, (column, row) in enumerate(plane_axes(layout))
    ]  # fmt: skip
    lead = (3, outputs) if per_plane else (outputs,)
    weight = random_tensor(*lead, 3 * channels, kernel, kernel, seed=5)
    tensors = [*planes, weight, *([random_tensor(*lead, seed=6)] if bias else [])]
    return [amid_poison(tensor.to(dtype)).requires_grad_() for tensor in tensors]


def results(function: Any, tensors: list[Tensor], separate: bool, bias: bool, **options: Any) -> list[Tensor]:
    """The planes that come out, then the gradients of all inputs under random cotangents."""
    planes: Any = tensors[:3] if separate else tensors[0]
    rest = tensors[3:] if separate else tensors[1:]
    out = function(planes, *rest, **options) if bias else function(planes, rest[0], **options)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    cotangents = [random_tensor(*y.shape, seed=9 + i, dtype=y.dtype) for i, y in enumerate(outputs)]
    cotangents = [amid_poison(torch.empty_like(y).copy_(c)) for y, c in zip(outputs, cotangents, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, tensors, cotangents)]


def assert_right(setting: dict[str, Any], options: dict[str, Any], method: str = "gemm") -> None:
    """Forward and every gradient are within the budget, every element is written, nothing beside tensors is touched."""
    tensors = inputs(**setting, layout=options.get("layout", RODIN))
    separate, bias = not isinstance(setting.get("sizes", 0), int), setting.get("bias", True)
    with own_plane_method(method), poisoned(around=64):
        actual = results(rollout_conv, tensors, separate, bias, backend="triton", **options)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = results(rollout_conv_reference, doubles, separate, bias, **options)
    plain = results(rollout_conv_reference, tensors, separate, bias, **options)
    for index, (have, want, other) in enumerate(zip(actual, exact, plain, strict=True)):
        assert_within_budget(have, want, other, what=f"result {index}")


@interpret
@pytest.mark.parametrize("setting, options", [
    ({"per_plane": True, "batch": 2}, {"layout": EG3D_FIXED}),
    ({"sizes": 5, "dtype": torch.float16, "storage": "channels_last"}, {}),
    ({"sizes": (3, 4, 5), "bias": False}, {"layout": ("zy", "yx", "xz")}),
    ({"sizes": (2, 4, 3), "per_plane": True, "kernel": 1}, {"padding": 1}),
    ({"sizes": 5}, {"stride": 2, "layout": RODINHD}),
    ({"sizes": 3, "storage": "rolled_out"}, {"stride": 2, "transposed": True}),
    ({"sizes": 3, "kernel": 5, "channels": 1, "outputs": 1}, {"padding": 4}),
    ({"sizes": 1, "kernel": 2, "storage": "expanded"}, {"padding": 1}),
    ({"sizes": 9, "kernel": 1, "channels": 17, "outputs": 33, "storage": "sliced"}, {"padding": 0}),
])  # fmt: skip
def test_forward_and_gradients_stay_within_the_budget(
    setting: dict[str, Any], options: dict[str, Any], other_dtype: torch.dtype | None
) -> None:
    assert_right({**setting, **({"dtype": other_dtype} if other_dtype else {})}, options)


@interpret
@pytest.mark.parametrize("setting, options", [
    ({"sizes": (3, 4, 5)}, {"stride": 2, "transposed": True}),
    ({"sizes": 4, "per_plane": True, "kernel": 2}, {"padding": 0}),
    # a tile whose corners look as if every tap were live
    ({"sizes": 6, "channels": 1, "outputs": 1}, {"stride": 3, "transposed": True, "padding": 0}),
])  # fmt: skip
def test_the_library_s_convolution_with_our_lines_is_as_right(setting: dict[str, Any], options: dict[str, Any]) -> None:
    assert_right(setting, options, "library")


@interpreted
@pytest.mark.parametrize("size, kernel, options", [
    (6, 3, {"padding": 1}), (5, 4, {"padding": 2, "stride": 2, "transposed": True}),
])  # fmt: skip
def test_tiles_at_borders_and_away_from_them_agree(
    size: int, kernel: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_tiles(purpose: str, x: Tensor, outputs: int, device: object) -> dict[str, Any]:
        found = dict(launches.rule("interpreter", purpose, choice.Shape(32, x.shape[2], outputs, size)))
        return {**found, "tile": [2, 2, *found["tile"][2:]]} if purpose == "own_plane" else found

    monkeypatch.setattr(launches, "launch_rule", small_tiles)
    planes, weight, _ = inputs(sizes=size, kernel=kernel, channels=1, outputs=1)
    with torch.no_grad():
        have = rollout_conv(planes, weight, backend="triton", **options)
    torch.testing.assert_close(have, rollout_conv_reference(planes, weight, **options), rtol=1e-5, atol=1e-5)


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Any convolution of tiny planes: setting, options and method as `assert_right` takes them."""
    kernel, stride, transposed = draw(st.sampled_from((1, 3, 5))), draw(st.integers(1, 2)), draw(st.booleans())
    padding = draw(st.integers(0, kernel - 1))
    step = Step(stride, padding, transposed)
    lengths = st.integers(1, 6).filter(lambda size: step.output_size(size, kernel) >= 1)
    sizes = draw(st.one_of(lengths, st.tuples(lengths, lengths, lengths)))
    setting = {
        "sizes": sizes, "kernel": kernel, "batch": draw(st.integers(1, 2)), "channels": draw(st.integers(1, 4)),
        "outputs": draw(st.sampled_from((1, 3, 17))), "per_plane": draw(st.booleans()), "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from((torch.float32, torch.float16))), "storage": draw(st.sampled_from(STORAGES)),
    }  # fmt: skip
    layout = draw(st.sampled_from((RODIN, RODINHD, EG3D_FIXED, ("yx", "xz", "yz"))))
    options = {"layout": layout, "stride": stride, "padding": padding, "transposed": transposed}
    return setting, options, draw(st.sampled_from(("gemm", "gemm", "library")))


@interpreted
@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])
@given(call=calls())
def test_any_shape_layout_dtype_and_step_is_right(call: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    assert_right(*call)


@interpret
def test_tuned_parameters_change_nothing_but_the_time() -> None:
    wanted: dict[str, dict[str, Any]] = {
        "own_plane": {"tile0": 4, "tile2": 16, "warps": 8}, "pool": {"tile1": 16}, "weight_gradient": {"tile2": 16},
        "finish": {"tile0": 4}, "line_conv": {"tile0": 16, "stages": 2},
    }  # fmt: skip
    with ExitStack() as stack:
        for kernel, config in wanted.items():
            stack.enter_context(configs.forced("rollout_conv", kernel, config))
        assert_right({"sizes": 5, "channels": 3}, {}, "auto")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["gemm", "library", "auto"])
@pytest.mark.parametrize("setting, options", [
    ({"sizes": 64, "channels": 192, "outputs": 192, "storage": "channels_last"}, {}),
    ({"sizes": 33, "channels": 80, "outputs": 48, "batch": 2, "per_plane": True}, {"layout": RODINHD}),
    ({"sizes": (12, 40, 24), "channels": 33, "outputs": 65, "bias": False}, {"stride": 2}),
    ({"sizes": 16, "channels": 64, "outputs": 128, "storage": "rolled_out"}, {"stride": 2, "transposed": True}),
    ({"sizes": 19, "channels": 16, "outputs": 24, "kernel": 5}, {"padding": 2}),
    ({"sizes": 9, "channels": 3, "outputs": 1, "kernel": 1, "batch": 3}, {"padding": 0}),
])  # fmt: skip
def test_on_a_gpu(setting: dict[str, Any], options: dict[str, Any], method: str, dtype: torch.dtype) -> None:
    if method == "library" and dtype == torch.float32 and setting.get("kernel") == 5:
        pytest.skip("cuDNN's own 5 x 5 gradient errs 2.8 times as much as that of the whole convolution on an H200")
    assert_right({**setting, "dtype": dtype}, options, method)


@interpret
@pytest.mark.parametrize("per_plane", [False, True])
def test_the_library_may_answer_in_any_memory_order(per_plane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # cuDNN gives channels-last gradients, of weights too, where it is given channels-last planes
    forward, backward = triton_path.convolve, triton_path.convolve_backward

    def turned(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    monkeypatch.setattr(triton_path, "convolve", lambda *args: turned(forward(*args)))
    monkeypatch.setattr(triton_path, "convolve_backward", lambda *args: tuple(map(turned, backward(*args))))
    assert_right({"sizes": 5, "channels": 3, "outputs": 4, "per_plane": per_plane}, {}, "library")


@pytest.mark.gpu
def test_results_on_a_gpu_have_the_same_bits_every_time() -> None:
    tensors = inputs(sizes=32, channels=64, outputs=64, dtype=torch.bfloat16)
    first, *others = [results(rollout_conv, tensors, False, True, backend="triton") for _ in range(100)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


@interpreted
def test_the_integer_arithmetic_is_checked_once_for_overflow() -> None:
    assert_right({"sizes": 2, "kernel": 1, "channels": 1, "outputs": 1}, {"padding": 0})


@interpret
@pytest.mark.parametrize("setting, options, method", [
    ({"sizes": 3, "kernel": 1}, {"padding": 0}, "gemm"),
    ({"sizes": 2}, {"stride": 2, "transposed": True}, "library"),
])  # fmt: skip
def test_wide_offsets_change_nothing(
    setting: dict[str, Any], options: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (launches, weight_gradient):
        monkeypatch.setattr(module, "needs_int64", lambda *_: True)
    assert_right(setting, options, method)


@interpret
def test_planes_whose_last_element_32_bits_cannot_count_are_read_in_place() -> None:
    # rows 2^30 elements apart: memory that nobody touches costs nothing
    memory = torch.empty(2**31 + 64, dtype=torch.float16)
    planes = memory.as_strided((1, 3, 1, 3, 3), (48, 16, 1, 2**30, 4))
    planes.copy_(random_planes(1, 1, 3))
    weight = random_tensor(1, 3, 1, 1, dtype=torch.float16)
    have, want = [], []
    for x, found in ((planes, have), (planes.contiguous(), want)):
        w = weight.clone().requires_grad_()
        out = rollout_conv(x, w, padding=0, backend="triton")
        found += [out, torch.autograd.grad(out, w, random_tensor(*out.shape, dtype=torch.float16))[0]]
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


class Copies(TorchDispatchMode):
    """Numbers of elements of all copies made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation as it is, noted if it copies."""
        if func._overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.clone, torch.ops.aten._to_copy):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@interpreted
@pytest.mark.parametrize("storage, copies", [("channels_last", 0), ("rolled out", 0), ("three", 0), ("contiguous", 1)])
def test_planes_with_their_channels_together_are_read_in_place(
    storage: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the interpreter makes copies of its own, so nothing is launched
    read: list[int] = []
    monkeypatch.setattr("triton.runtime.interpreter.GridExecutor.__call__", lambda _, x, *args, **kwargs: read.append(
        x.data_ptr()))
    planes = [random_planes(1, 8, 4, storage="contiguous" if storage == "contiguous" else "channels_last")]
    if storage == "rolled out":
        # the paper's picture [B, C, H, 3 W], as channels-last convolutions leave it
        planes = [unroll(roll_out(planes[0]).contiguous(memory_format=torch.channels_last))]
    elif storage == "three":
        planes = [plane.contiguous(memory_format=torch.channels_last) for plane in planes[0].unbind(1)]
    weight, step = random_tensor(2, 24, 1, 1), Step(1, 0, False)
    grads = [torch.empty(*x.shape[:-3], *x.shape[-2:], 2).normal_().movedim(-1, -3) for x in planes]
    with Copies() as forward:
        triton_path.forward(planes, weight, None, RODIN, step, "gemm")
    with Copies() as backward:
        triton_path.backward(grads, planes, weight, RODIN, step, (True, True, True), "gemm")
    for seen in (forward, backward):
        assert sum(size >= planes[0].numel() for size in seen.sizes) == copies
    assert copies or {x.data_ptr() for x in planes} <= set(read)


@interpret
def test_second_derivatives_go_through_the_kernels() -> None:
    planes, weight, bias = (tensor.detach() for tensor in inputs(sizes=2, channels=1, outputs=1, kernel=1))

    def second(function: Any, dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
        tensors = [tensor.to(dtype).requires_grad_() for tensor in (planes, weight, bias)]
        out = function(*tensors, padding=0, **options)
        first = torch.autograd.grad(out.square().sum(), tensors[:2], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    for have, want in zip(second(rollout_conv, torch.float32, backend="triton"),
                          second(rollout_conv_reference, torch.float64), strict=True):  # fmt: skip
        torch.testing.assert_close(have, want.float())


@interpret
def test_an_empty_batch_launches_nothing_and_double_goes_to_torch() -> None:
    _, weight, bias = inputs()
    out = rollout_conv(torch.empty(0, 3, 2, 4, 4), weight, bias, backend="triton")
    out.sum().backward()
    assert out.shape == (0, 3, 3, 4, 4) and weight.grad is not None and not weight.grad.any()
    planes = random_planes(1, 2, 4, dtype=torch.float64)
    have = rollout_conv(planes, weight.double(), bias.double(), backend="triton")
    assert torch.equal(have, rollout_conv(planes, weight.double(), bias.double(), backend="torch"))


@pytest.mark.parametrize("step", [Step(1, 1, False), Step(1, 4, False), Step(2, 1, False), Step(3, 0, False),
                                  Step(2, 1, True), Step(3, 2, True)])  # fmt: skip
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_in_the_interior_every_tap_of_a_class_is_live(kernel: int, step: Step) -> None:
    for size_in in range(1, 12):
        size = step.output_size(size_in, kernel)
        if size < 1:
            continue
        low, high = launches.interior(size_in, size, kernel, step)
        live = {p: set(range(kernel)[taps])
                for ps, taps in live_taps(size_in, kernel, step) for p in range(size)[ps]}  # fmt: skip
        assert 0 <= low <= high <= size
        for position in range(low, high):
            classes = step.stride if step.transposed else 1
            wanted = {tap for tap in range(kernel) if (position + step.padding - tap) % classes == 0}
            assert live[position] == wanted


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"])
def test_every_shape_finds_a_rule_and_tiles_are_powers_of_two(arch: str) -> None:
    for purpose, candidates in choice.rules(arch).items():
        for bits in (16, 32):
            for channels, outputs, side in ((1, 1, 1), (3, 5, 7), (64, 64, 256), (192, 192, 64), (768, 384, 32)):
                assert choice.rule(arch, purpose, choice.Shape(bits, channels, outputs, side)) in candidates
        for size in (size for candidate in candidates for size in candidate.get("tile", ())):
            assert size & (size - 1) == 0


def test_the_method_follows_the_rules_unless_forced() -> None:
    small, large = choice.Shape(16, 64, 64, 256), choice.Shape(16, 768, 768, 64)
    assert choice.method_for("auto", "sm_90", "forward", small) == "gemm"
    assert choice.method_for("auto", "sm_90", "forward", large) == "library"
    assert choice.method_for("gemm", "sm_90", "forward", large) == "gemm"
    with own_plane_method("library"):
        assert choice.forced_method() == "library"
    assert choice.forced_method() == "auto"
    with pytest.raises(ValueError, match="method must be one of"), own_plane_method("fast"):
        pass


def test_the_kernels_pass_under_the_interpreter() -> None:
    assert_passes_interpreted(__file__, "-x")
