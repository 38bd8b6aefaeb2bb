"""The planes' gradient, added up in windows on the chip before it goes to memory, by Triton's interpreter or on a GPU.

What the windows must not change is the gradient, whatever the samples; what they must change is how many additions go
to memory: one for each texel that is read and channel, as `checked` counts.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import RODIN, TinyDecoder, configs, render_triplane, sample_triplane_reference
from rodin_kernels.layouts import plane_axes
from rodin_kernels.testing import assert_within_budget, random_planes, random_tensor
from tests.interpreter import assert_passes_interpreted

triton = pytest.importorskip("triton")
tl = triton.language
add_to_planes = pytest.importorskip("rodin_kernels.volume_render.splat_kernels").add_to_planes

interpret = pytest.mark.interpret
interpreted = pytest.mark.interpret(only=True)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AXES = sum(axis << (2 * i) for i, axis in enumerate(a for pair in plane_axes(RODIN) for a in pair))
#: Samples of the probe's tile, its channels, and those of them that exist.
BLOCK, PADDED, CHANNELS = 64, 16, 11


@triton.jit
def add_tile(
    grads, points, active, target, scale, height, width, C: tl.constexpr, CP: tl.constexpr, AXES: tl.constexpr,
    ALIGN: tl.constexpr, BORDER: tl.constexpr, WINDOWS: tl.constexpr, BLOCK: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Adds the gradient of one tile to the planes of the second scene, and does nothing else."""
    lane, channel = tl.arange(0, BLOCK), tl.arange(0, CP)
    x, y, z = tl.load(points + lane * 3), tl.load(points + lane * 3 + 1), tl.load(points + lane * 3 + 2)
    some = (channel < C)[None, :]
    grad = tl.load(grads + lane[:, None] * C + channel[None, :], mask=some, other=0.0)
    scene = tl.zeros([], tl.int64) + 1
    add_to_planes(grad, scale, target, scene, x, y, z, tl.load(active + lane) != 0, height, width,
                  tl.float16 if LOW else tl.float32, C, CP, AXES, ALIGN, BORDER, "ieee", WINDOWS)


def tile_of(kind: str, size: tuple[int, int]) -> Tensor:
    """Points [BLOCK, 3] in the box: of 8 x 8 pixels on one step, at random, or those pixels with one far away."""
    if kind == "scattered":
        return random_tensor(BLOCK, 3, seed=3).mul(0.5).clamp(-0.95, 0.95)
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    texel = 2 / max(size)
    points = torch.stack([0.63 * i, 0.71 * j, 0.2137 * i - 0.3171 * j], -1).view(-1, 3) * texel
    points += torch.tensor([0.31, -0.84, 0.05])
    if kind == "stray":
        points[17] = torch.tensor([-0.9, 0.9, -0.9])
    return points.clamp(-1, 1)


def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The list into which every atomic addition writes how many elements it adds."""
    from triton.runtime import interpreter

    counts: list[int] = []
    inner = interpreter._interpreter

    class Counting:
        """The interpreter, counting."""

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def atomic_rmw(self, kind: Any, places: Any, values: Any, mask: Any, order: Any) -> Any:
            """Counted."""
            counts.append(int(mask.astype(bool).sum()))
            return inner.atomic_rmw(kind, places, values, mask, order)

    monkeypatch.setattr(interpreter, "_interpreter", Counting())
    return counts


def splat(kind: str, size: tuple[int, int], windows: int, padding: str, align: bool, low: bool,
          grad: Tensor) -> Tensor:
    """What the kernel leaves of gradients [BLOCK, C] in planes [2, 3, H, W, C], of which it is to touch the second."""
    active = torch.ones(BLOCK, dtype=torch.int32)
    active[5] = 0
    target = torch.zeros(2, 3, *size, CHANNELS)
    add_tile[(1,)](grad, tile_of(kind, size), active, target, 0.5, *size, C=CHANNELS, CP=PADDED, AXES=AXES, ALIGN=align,
                  BORDER=padding != "zeros", WINDOWS=windows, BLOCK=BLOCK, LOW=low)
    assert (target[0] == 0).all()
    return target[1]


def expected(kind: str, size: tuple[int, int], padding: str, align: bool, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The same by autograd through the sampler's specification."""
    planes = torch.zeros(1, 3, CHANNELS, *size, dtype=dtype, requires_grad=True)
    features = sample_triplane_reference(planes, tile_of(kind, size)[None].to(dtype), align_corners=align,
                                         padding_mode=padding)
    kept = torch.arange(BLOCK) != 5
    (found,) = torch.autograd.grad(features[0, kept], planes, 0.5 * grad[kept].to(dtype))
    return found[0].permute(0, 2, 3, 1)


SHAPES = [("together", (64, 64)), ("together", (1, 1)), ("together", (7, 23)), ("scattered", (64, 64)),
          ("scattered", (13, 5)), ("stray", (64, 64)), ("stray", (2, 101))]  # fmt: skip


@interpret
@pytest.mark.parametrize("windows", [0, 1, 6, 10_000])
@pytest.mark.parametrize(("kind", "size"), SHAPES, ids=str)
def test_windows_change_no_gradient(kind: str, size: tuple[int, int], windows: int,
                                    watched_addresses: None) -> None:
    grad = random_tensor(BLOCK, CHANNELS, seed=8)
    for padding, align, low in (("zeros", False, False), ("border", True, False), ("reflection", False, True)):
        exact = expected(kind, size, padding, align, grad.double(), torch.float64)
        rounded = grad.half().float() if low else grad
        plain = expected(kind, size, padding, align, rounded, torch.float32)
        found = splat(kind, size, windows, padding, align, low, grad)
        # a product rounds the shares as well as the gradients
        assert_within_budget(found, exact, plain, what=f"{padding} {align} {low}")


@interpreted
def test_a_texel_that_many_samples_read_is_added_to_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grad, counts = random_tensor(BLOCK, CHANNELS, seed=8), checked(monkeypatch)
    texels = {}
    for kind in ("together", "scattered", "stray"):
        shares = expected(kind, (64, 64), "zeros", False, torch.ones_like(grad).double(), torch.float64)
        texels[kind] = int((shares[..., 0] > 0).sum())
    added = {}
    for kind, windows in (("together", 6), ("together", 0), ("scattered", 6), ("stray", 6), ("stray", 10_000)):
        counts.clear()
        splat(kind, (64, 64), windows, "zeros", False, False, grad)
        added[kind, windows] = sum(counts) / CHANNELS
    one_by_one = 3 * 4 * (BLOCK - 1)
    assert added["together", 6] == texels["together"] < one_by_one / 7
    assert added["stray", 10_000] == texels["stray"]
    # those that do not fit go one by one
    assert added["together", 0] == added["scattered", 6] == added["stray", 6] == one_by_one


@interpret
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("low", [False, True])
def test_what_is_no_number_stays_with_its_own_texels(low: bool) -> None:
    grad = random_tensor(BLOCK, CHANNELS, seed=8)
    grad[11, 3], grad[40, 0] = float("nan"), float("inf")
    # 1e5 is no number in float16, but its sum in float32 is
    grad[52, 1] = 1e5
    exact = expected("together", (64, 64), "zeros", False, grad.double(), torch.float64)
    found = splat("together", (64, 64), 6, "zeros", False, low, grad)
    assert torch.equal(found.isnan(), exact.isnan()) and torch.equal(found.isinf(), exact.isinf())
    fine = exact.isfinite()
    assert torch.allclose(found[fine], exact[fine].float(), rtol=1e-5, atol=5e-3 if low else 1e-5)
    assert found[fine].abs().max() > 1e3


@interpret
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_every_launch_of_the_renderer_takes_them_and_loses_nothing() -> None:
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    directions = F.normalize(torch.stack([0.03 * j - 0.1, 0.03 * i - 0.1, torch.full_like(i, -1.0)], -1), dim=-1)
    origins = torch.tensor([0.05, 0.1, 3.0]).expand(1, 64, 3)
    decoder = TinyDecoder(6, (8,))
    for dtype, parts in ((torch.float16, ("planes", "decoder")), (torch.float32, ("planes",))):
        planes = (random_planes(1, 6, 32, seed=4) * 2).to(dtype)
        if dtype == torch.float32:
            planes[0, 1, :, 14] = float("nan")
        found: dict[int, list[Tensor]] = {}
        for windows in (0, 6):
            leaf = planes.clone().requires_grad_()
            wanted = [leaf, *(decoder.parameters() if "decoder" in parts else ())]
            with configs.forced("render_triplane", " ".join(["backward", *parts]), {"windows": windows}):
                shown = render_triplane(leaf, origins, directions.view(1, 64, 3), decoder, near=2.1, far=3.5,
                                        num_samples=4, image_width=8, backend="triton").rgb
                found[windows] = list(torch.autograd.grad(shown.sum(), wanted))
        for a, b in zip(found[0], found[6], strict=True):
            size = a.nan_to_num(0.0).abs().max().item()
            assert torch.equal(a.isnan(), b.isnan()) and size > 0
            assert torch.allclose(a, b, rtol=0, atol=2 * torch.finfo(dtype).eps * size, equal_nan=True)
        assert found[0][0].isnan().any() == (dtype == torch.float32)


def test_all_of_the_above_under_the_interpreter() -> None:
    assert_passes_interpreted(__file__)
