"""Tri-plane sampling by Triton kernels: interpreted on the CPU, and where there is a GPU, on it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rodin_kernels import EG3D, RODIN, RODINHD, configs, sample_triplane, sample_triplane_reference
from rodin_kernels.layouts import EG3D_FIXED
from rodin_kernels.testing import (
    STORAGES,
    amid_poison,
    assert_within_budget,
    gradients,
    poisoned,
    random_tensor,
    stored_as,
)
from rodin_kernels.triplane_sample import op, torch_path
from tests.interpreter import assert_passes_interpreted

pytest.importorskip("triton")
interpret = pytest.mark.interpret
interpreted = pytest.mark.interpret(only=True)
SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -1.0, 1.0, 0.0)


def test_kernels_are_right_in_the_interpreter() -> None:
    # whether kernels are interpreted is settled when triton is imported, hence another process
    assert_passes_interpreted(__file__, "-x")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, watched_addresses: None) -> Iterator[None]:
    """Small tiles, and an interpreter that prepares Triton's language once, not at each call of a device function."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from triton.runtime import interpreter

        from rodin_kernels.triplane_sample import triton_path

        prepared: set[str] = set()

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            own = self.fn.__globals__
            # the kernel's own run has prepared `tl`; Triton's standard library knows it by another name
            if "tl" not in own and own["__name__"] not in prepared:
                interpreter._patch_lang(self.fn)
                prepared.add(own["__name__"])
            return self.rewrite()(*args, **kwargs)

        monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
        block = triton_path.channel_block
        monkeypatch.setattr(triton_path, "sample_tile", lambda c, size: triton_path.Tile(16, block(c)))
        monkeypatch.setattr(triton_path, "plane_gradient_tile", lambda c: triton_path.Tile(4, block(c), steps=3))
    yield
    torch.use_deterministic_algorithms(False)


def points_off_borders(batch: int, count: int, sizes: Sequence[int], *, reach: float = 2.2, seed: int = 3) -> Tensor:
    """Points in [-reach, reach]^3, in steps that float32 holds, none within 0.05 texels of a kink on such lines."""
    generator = torch.Generator("cpu").manual_seed(seed)
    points = ((torch.rand(batch, count, 3, generator=generator, device="cpu") * 2 - 1) * reach * 512).round() / 512
    for _ in range(60):
        near = torch.zeros_like(points, dtype=torch.bool)
        for size in sizes:
            for position in ((points + 1) * ((size - 1) / 2), (points + 1) * (size / 2)):
                near |= ((2 * position) - (2 * position).round()).abs() < 0.1
        points = torch.where(near, points + 5 / 512, points)
    return points.to(torch.get_default_device())


def results(planes: Sequence[Tensor] | Tensor, points: Tensor, backend: str, dtype: torch.dtype | None = None,
            **options: Any) -> list[Tensor]:
    """Features and the gradients of planes and points; the inputs' own type, or all of it in `dtype`.

    The cotangents hold few digits, so that they are the same in every type.
    """
    own = [planes] if isinstance(planes, Tensor) else list(planes)
    own = [(p.detach() if dtype is None else p.detach().to(dtype)).requires_grad_() for p in own]
    points = (points if dtype is None else points.to(dtype)).detach().requires_grad_()
    features = sample_triplane(own[0] if isinstance(planes, Tensor) else own, points, backend=backend, **options)
    cotangent = amid_poison((random_tensor(*features.shape, seed=1) * 16).round().div(16).to(features))
    found = torch.autograd.grad(features, [*own, points], cotangent, allow_unused=True, materialize_grads=True)
    return [features.detach(), *found]


def assert_all_close(ours: Sequence[Tensor], plain: Sequence[Tensor], **tolerances: Any) -> None:
    """Pair by pair."""
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerances)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"shape": (2, 8, 7, 7)},
    "mean align": {"shape": (1, 5, 3, 13), "reduce": "mean", "align_corners": True, "layout": RODINHD},
    "concat border": {"shape": (2, 3, 2, 7), "reduce": "concat", "padding_mode": "border", "layout": EG3D},
    "product reflection": {"shape": (2, 4, 7, 3), "reduce": "product", "padding_mode": "reflection"},
    "reflection align": {"shape": (1, 2, 7, 7), "padding_mode": "reflection", "align_corners": True, "layout": EG3D},
    "nearest": {"shape": (2, 7, 5, 5), "mode": "nearest", "reduce": "mean", "layout": EG3D_FIXED},
    "nearest border": {"shape": (1, 1, 7, 2), "mode": "nearest", "padding_mode": "border", "reduce": "product"},
    "many channels": {"shape": (1, 40, 3, 3), "storage": "rolled_out"},
    "one texel": {"shape": (2, 2, 1, 1), "padding_mode": "reflection", "align_corners": True, "reduce": "concat"},
    "one row": {"shape": (2, 4, 1, 7), "storage": "sliced", "align_corners": True},
    "half": {"shape": (2, 16, 7, 7), "dtype": torch.float16, "storage": "channels_last"},
    "half concat": {"shape": (2, 3, 7, 7), "dtype": torch.float16, "reduce": "concat", "storage": "expanded"},
    "half product": {"shape": (1, 8, 7, 7), "dtype": torch.float16, "reduce": "product", "align_corners": True},
    "all views": {"shape": (1, 8, 7, 7), "views": 2, "storage": "channels_last"},
}


def check(case: dict[str, Any]) -> None:
    """Features and gradients of one case within the error budget, all written, nothing beside tensors touched."""
    options = dict(case)
    shape, views = options.pop("shape"), options.pop("views", None)
    dtype, storage = options.pop("dtype", torch.float32), options.pop("storage", "contiguous")
    planes = amid_poison(stored_as(random_tensor(shape[0], 3, *shape[1:], dtype=dtype), storage))
    points = amid_poison(points_off_borders(views or shape[0], options.pop("count", 13), shape[2:]))
    with poisoned(around=64):
        ours = results(planes, points, "triton", **options)
    # what plain PyTorch computes on a GPU need not repeat
    torch.use_deterministic_algorithms(False)
    exact = results(planes, points, "reference", torch.float64, **options)
    plain = results(planes.float(), points, "reference", **options)
    for what, mine, best, low in zip(("features", "planes", "points"), ours, exact, plain, strict=True):
        assert_within_budget(mine, best, low.to(mine.dtype), what=what)
    assert ours[0].is_contiguous()
    assert ours[1].dtype == dtype


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_features_and_gradients_are_within_the_budget(name: str) -> None:
    check(CASES[name])


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    """Any call on tiny planes, as `check` takes it, and whether it must repeat, for which every texel is a program."""
    deterministic = draw(st.booleans())
    size = st.integers(1, 2 if deterministic else 7)
    channels = draw(st.sampled_from((1, 2, 3, 5, 8, 20, 33)))
    views = draw(st.sampled_from((None, None, 2)))
    case = {
        "shape": (1 if views else draw(st.integers(1, 2)), channels, draw(size), draw(size)), "views": views,
        "count": draw(st.integers(1, 20)), "reduce": draw(st.sampled_from(op.REDUCTIONS)),
        "padding_mode": draw(st.sampled_from(op.PADDING_MODES)), "mode": draw(st.sampled_from(op.MODES)),
        "align_corners": draw(st.booleans()), "storage": draw(st.sampled_from(STORAGES)),
        "dtype": draw(st.sampled_from((torch.float32, torch.float16))),
        "layout": draw(st.sampled_from((RODIN, RODINHD, EG3D, EG3D_FIXED, ("zy", "yx", "zx")))),
    }  # fmt: skip
    return case, deterministic


@interpreted
@settings(max_examples=16, phases=[Phase.explicit, Phase.generate])
@given(call=calls())
def test_any_shape_layout_dtype_and_mode_is_right(call: tuple[dict[str, Any], bool]) -> None:
    case, deterministic = call
    torch.use_deterministic_algorithms(deterministic)
    check(case)


@interpreted
@pytest.mark.parametrize("name", ["plain", "concat border", "nearest", "all views", "half product"])
def test_so_are_those_that_repeat(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rodin_kernels.triplane_sample import triton_path

    monkeypatch.setattr(triton_path, "_add", None)
    monkeypatch.setattr(triton_path, "SORTED_CHUNK", 11)
    torch.use_deterministic_algorithms(True)
    case = dict(CASES[name])
    check({**case, "shape": (*case["shape"][:2], 2, 3)})


@interpreted
def test_the_order_of_programs_changes_no_bit_where_results_must_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    from rodin_kernels.triplane_sample import triton_path

    forwards = type(interpreter.interpreter_builder).set_grid_idx

    def backwards(self: Any, x: int, y: int, z: int) -> None:
        forwards(self, *(size - 1 - at for size, at in zip(self.grid_dim, (x, y, z), strict=True)))

    monkeypatch.setattr(triton_path, "SORTED_CHUNK", 25)
    planes, points = random_tensor(1, 3, 2, 2, 2), points_off_borders(1, 60, (2,), reach=1.0)
    found = []
    for deterministic, order in itertools.product((True, False), (forwards, backwards)):
        torch.use_deterministic_algorithms(deterministic)
        monkeypatch.setattr(type(interpreter.interpreter_builder), "set_grid_idx", order)
        found.append(results(planes, points, "triton"))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    # the quick way adds in the order of its programs
    assert not torch.equal(found[2][1], found[3][1])


@interpreted
def test_tuned_tiles_change_nothing_but_the_time() -> None:
    with (configs.forced("sample_triplane", "sample", {"points": 8, "channels": 4}),
          configs.forced("sample_triplane", "point_gradient", {"points": 32, "warps": 8}),
          configs.forced("sample_triplane", "plane_gradient", {"channels": 2})):
        check({"shape": (1, 8, 4, 4), "count": 7})


@interpret
@pytest.mark.parametrize("reduce", ["sum", "product"])
def test_wide_offsets_change_nothing(reduce: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rodin_kernels.triplane_sample import triton_path

    planes, points = random_tensor(2, 3, 3, 5, 5), points_off_borders(2, 9, (5,))
    narrow = results(planes, points, "triton", reduce=reduce)
    monkeypatch.setattr(triton_path, "needs_int64", lambda *_: True)
    wide = results(planes, points, "triton", reduce=reduce)
    assert torch.equal(wide[0], narrow[0]) and torch.equal(wide[2], narrow[2])
    # on a GPU the planes' gradient is added up in any order
    torch.testing.assert_close(wide[1], narrow[1], rtol=1e-6, atol=1e-6)


@interpreted
def test_offsets_are_wide_where_32_bits_do_not_hold_them() -> None:
    from rodin_kernels.triplane_sample import triton_path

    assert triton_path._is_wide(torch.empty(1, 3, 8192, 8192, 33, device="meta").permute(0, 1, 4, 2, 3))
    assert not triton_path._is_wide(torch.empty(9, 3, 8192, 8192, 31, device="meta").permute(0, 1, 4, 2, 3))


@interpret
@pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero):RuntimeWarning")
@pytest.mark.parametrize(("padding_mode", "mode", "align_corners"), [
    ("zeros", "bilinear", False), ("border", "bilinear", True), ("reflection", "bilinear", False),
    ("reflection", "bilinear", True), ("zeros", "nearest", True), ("reflection", "nearest", False),
])
def test_coordinates_that_are_no_numbers_and_memory_around(padding_mode: str, mode: str, align_corners: bool,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    from rodin_kernels.triplane_sample import triton_path

    monkeypatch.setattr(triton_path, "sample_tile", lambda *_: triton_path.Tile(256, 2))
    monkeypatch.setattr(triton_path, "plane_gradient_tile", lambda *_: triton_path.Tile(256, 2, steps=3))
    points = torch.cartesian_prod(*[torch.tensor(SPECIAL)] * 3)[None]
    # whoever reads beside the planes reads what is no number
    around = torch.full((1, 5, 7, 7, 4), float("nan"))
    around[:, 1:4, 1:6, 1:6, 1:3] = random_tensor(1, 3, 5, 5, 2)
    planes = around[:, 1:4, 1:6, 1:6, 1:3].permute(0, 1, 4, 2, 3)
    options = {"padding_mode": padding_mode, "mode": mode, "align_corners": align_corners}
    ours, plain = (results(planes, points, backend, **options) for backend in ("triton", "reference"))
    assert_all_close(ours, plain, equal_nan=True, rtol=1e-4, atol=1e-4)


@interpret
@pytest.mark.parametrize("align_corners", [False, True])
def test_at_texel_borders_the_cell_is_the_references(align_corners: bool) -> None:
    centres = (torch.arange(8) + 0.5) / 4 - 1
    near = [torch.nextafter(centres, torch.tensor(limit)) for limit in (2.0, -2.0)]
    ticks = torch.cat([centres, *near, torch.tensor([-1.0, 1.0, -1.125, 1.125])])
    points = torch.stack([ticks, ticks.flip(0), ticks.roll(5)], -1)[None]
    planes = random_tensor(1, 3, 3, 8, 8)
    for padding_mode in ("zeros", "reflection"):
        options = {"padding_mode": padding_mode, "align_corners": align_corners}
        ours, plain = (results(planes, points, backend, **options) for backend in ("triton", "reference"))
        assert_all_close(ours, plain, rtol=1e-4, atol=1e-4)


@interpret
@pytest.mark.parametrize("reduce", ["mean", "product"])
def test_second_derivatives_are_those_of_the_cpu_path(reduce: str) -> None:
    planes = random_tensor(2, 3, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    points = points_off_borders(2, 7, (5, 4), reach=1.3).double().requires_grad_()
    found = []
    for backend in ("torch", "triton"):
        features = sample_triplane(planes, points, reduce=reduce, padding_mode="reflection", backend=backend)
        first = gradients(features.square(), (planes, points), seed=4)
        features = sample_triplane(planes, points, reduce=reduce, padding_mode="reflection", backend=backend)
        slopes = torch.autograd.grad(features.square().sum(), (planes, points), create_graph=True)
        penalty = sum((slope.square().sum() for slope in slopes), torch.zeros((), dtype=torch.float64))
        found.append([*first, *torch.autograd.grad(penalty, (planes, points))])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)


@interpreted
def test_second_derivatives_pass_gradgradcheck() -> None:
    planes = random_tensor(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    points = points_off_borders(1, 2, (2,), reach=0.9).double().requires_grad_()

    def run(planes: Tensor, points: Tensor) -> Tensor:
        return sample_triplane(planes, points, layout=EG3D, backend="triton")

    assert torch.autograd.gradgradcheck(run, (planes, points), fast_mode=True)


@interpret
def test_planes_of_different_sizes() -> None:
    planes = [random_tensor(2, 4, h, w, seed=h, dtype=torch.float64) for h, w in ((5, 6), (1, 9), (7, 2))]
    points = points_off_borders(2, 9, (5, 6, 9, 7, 2)).double()
    for reduce in ("mean", "concat"):
        ours, plain = (results(planes, points, backend, reduce=reduce) for backend in ("triton", "reference"))
        assert_all_close(ours, plain, rtol=1e-12, atol=1e-12)


@interpret
def test_points_may_lie_anyhow_and_stay_in_one_cell() -> None:
    planes = random_tensor(2, 3, 4, 6, 6, dtype=torch.float64)
    base = points_off_borders(1, 13, (6,)).double()
    still = torch.full((1, 16, 3), 0.1, dtype=torch.float64) + torch.linspace(0, 0.01, 16, dtype=torch.float64)[:, None]
    for points in (base.expand(2, -1, -1), base.expand(2, -1, -1).flip(-1).transpose(1, 2).contiguous().transpose(1, 2),
                   still.expand(2, -1, -1), base[:, :0].expand(2, -1, -1)):
        ours, plain = (results(planes, points, backend) for backend in ("triton", "reference"))
        assert_all_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_channels_last_planes_are_read_in_place_and_expanded_ones_copied_once() -> None:
    planes = random_tensor(2, 3, 5, 6, 6)
    lasting = stored_as(planes, "channels_last")
    assert torch_path.channels_last(lasting) is lasting
    assert torch_path.channels_last(stored_as(planes, "rolled_out"))[0, 0].stride() == (1, 30, 5)
    views = torch_path.channels_last(stored_as(planes, "expanded"))
    assert views.untyped_storage().nbytes() == planes[0].nbytes
    assert torch.equal(views, planes[:1].expand(2, -1, -1, -1, -1))


@interpret
def test_no_kernel_starts_for_nothing() -> None:
    for batch, count in ((0, 5), (2, 0)):
        planes, points = random_tensor(batch, 3, 2, 4, 4), torch.zeros(batch, count, 3)
        features, to_planes, to_points = results(planes, points, "triton")
        assert (features.shape, to_planes.shape, to_points.shape) == ((batch, count, 2), planes.shape, points.shape)
        assert to_planes.abs().sum() == 0


@interpret
def test_operators_pass_opcheck() -> None:
    planes = stored_as(random_tensor(2, 3, 4, 3, 2), "channels_last").requires_grad_()
    points = random_tensor(2, 5, 3, seed=1).mul_(0.5).requires_grad_()
    options = (False, "zeros", "bilinear", "triton", 1)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    axes = [0, 1, 2, 0, 1, 2]
    torch.library.opcheck(op._product, (planes, points, axes, *options, torch.float32), test_utils=checks)
    torch.library.opcheck(op._sample, (planes, points, None, axes, True, *options, torch.float32), test_utils=checks)


@interpret
def test_layouts_name_the_axes() -> None:
    planes = torch.stack([torch.arange(16.0).expand(1, 1, 16, 16), *[torch.zeros(1, 1, 16, 16)] * 2], 1)
    points = torch.tensor([[[0.0, 0.9, 0.9], [0.5, -0.3, 0.1]]])
    for layout, order in ((RODIN, [0, 1, 2]), (("yx", "zx", "yz"), [1, 0, 2])):
        ours = sample_triplane(planes, points[..., order], layout=layout, backend="triton")
        torch.testing.assert_close(ours, torch.tensor([[[7.5], [11.5]]]))
        exact = sample_triplane_reference(planes, points[..., order], layout=layout)
        torch.testing.assert_close(ours, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name: str, dtype: torch.dtype, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    check({**CASES[name], "dtype": dtype, "count": 700})


@pytest.mark.gpu
def test_a_hundred_repeats_give_the_same_bits() -> None:
    torch.use_deterministic_algorithms(True)
    planes, points = random_tensor(2, 3, 8, 16, 16), points_off_borders(2, 20000, (16,))
    first = results(planes, points, "triton")
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(results(planes, points, "triton"), first, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
def test_two_to_the_thirty_one_features() -> None:
    planes = random_tensor(1, 3, 32, 8, 8, dtype=torch.float16)
    points = torch.zeros(1, 2**26 + 5, 3)
    points[0, -300:] = points_off_borders(1, 300, (8,))[0]
    features = sample_triplane(planes, points, backend="triton")
    end = sample_triplane(planes, points[:, -300:].contiguous(), backend="triton")
    assert torch.equal(features[:, -300:], end)
    assert torch.equal(features[0, 0], features[0, 2**26 - 400])
