"""The renderer: analytic media, the specification's own checks, and every path against it, values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rodin_kernels import OccupancyGrid, Rendered, TinyDecoder, render_triplane, render_triplane_reference
from rodin_kernels.testing import STORAGES, assert_within_budget, poisoned, random_planes, random_tensor, stored_as
from rodin_kernels.volume_render import op


class Constant(nn.Module):
    """A homogeneous medium of one density and one colour; a ball of it where `radius` is given."""

    def __init__(self, density: float, color: tuple[float, ...] = (0.2, 0.4, 0.8)) -> None:
        super().__init__()
        self.density, self.color = density, torch.tensor(color, dtype=torch.float64)

    def forward(self, features: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Density and colour, whatever the features."""
        density = torch.full_like(features[..., 0], self.density)
        return density, self.color.to(features.dtype).expand(*features.shape[:-1], len(self.color))


def aimed_rays(batch: int, rays: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Origins at distance 3 and directions roughly towards the box, some past it."""
    origins = 3 * nn.functional.normalize(random_tensor(batch, rays, 3, seed=seed), dim=-1)
    directions = nn.functional.normalize(random_tensor(batch, rays, 3, seed=seed + 1) * 0.6 - origins, dim=-1)
    return origins.to(dtype), directions.to(dtype)


def scene(dtype: torch.dtype = torch.float64, channels: int = 4, out: int = 3, **choices: Any) -> tuple[Any, ...]:
    """Planes of two scenes, rays, and a decoder."""
    torch.manual_seed(0)
    decoder = TinyDecoder(channels, (8,), out, **choices).to(dtype)
    return (random_planes(2, channels, 8, dtype=dtype) * 2, *aimed_rays(2, 13, dtype=dtype), decoder)


def pair(inputs: tuple[Any, ...], **options: Any) -> tuple[Rendered, Rendered]:
    """What the fast path and the specification make of the same inputs."""
    return render_triplane(*inputs, **options), render_triplane_reference(*inputs, **options)


def assert_close(found: Rendered, expected: Rendered, tolerance: float = 1e-12) -> None:
    for name, a, b in zip(Rendered._fields, found, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "stop": {"stop_below": 0.3}, "midpoint": {"quadrature": "midpoint"},
    "midpoint stop": {"quadrature": "midpoint", "stop_below": 0.3}, "jitter": {"jitter": 5},
    "importance": {"num_importance": 6, "jitter": 3}, "importance even": {"num_importance": 5, "stop_below": 0.1},
    "importance midpoint": {"num_importance": 6, "quadrature": "midpoint"}, "product": {"reduce": "product"},
    "border": {"padding_mode": "border", "align_corners": True, "reduce": "mean", "layout": ("xy", "xz", "zx")},
    "explicit": {"t": torch.linspace(1.5, 5, 24, dtype=torch.float64).expand(2, 13, 24)},
    "everything": {"outputs": ("rgb", "depth", "opacity", "normals", "weights"), "background": 0.5},
    "raw midpoint": {"quadrature": "raw_midpoint", "stop_below": 0.3, "outputs": ("rgb", "normals", "weights")},
    "raw midpoint importance": {"quadrature": "raw_midpoint", "num_importance": 6, "jitter": 2, "background": 1.0,
                                "occupancy": OccupancyGrid(random_tensor(6, 6, 6) > 0)},
    "units of t": {"deltas": "t", "background": 1.0}, "units of t midpoint": {"deltas": "t", "quadrature": "midpoint"},
    "occupied": {"occupancy": OccupancyGrid(random_tensor(2, 6, 6, 6) > 0), "stop_below": 0.2},
    "occupied midpoint": {"occupancy": OccupancyGrid(random_tensor(6, 6, 6) > 0), "quadrature": "midpoint"},
}


@pytest.mark.parametrize("kept", [True, False], ids=["keeping", "recomputing"])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_the_specifications(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "KEEP_SAMPLES", 1 << 20 if kept else -1)
    monkeypatch.setattr(op, "BACKWARD_SAMPLES", 240)
    monkeypatch.setattr(op.torch_path, "CHUNK_SAMPLES", 200)
    planes, origins, directions, decoder = scene(color="none")
    near = torch.full((2, 13), 1.0, dtype=torch.float64, requires_grad=True)
    far = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    options = {"near": near, "far": far, "num_samples": 24, "background": 1.0, **OPTIONS[name]}
    inputs = tuple(x.requires_grad_() for x in (planes, origins, directions))
    found, expected = pair((*inputs, decoder), **options)
    assert_close(found, expected)
    leaves = [*inputs, near, far, *decoder.parameters()]
    gradients = []
    for rendered in (found, expected):
        loss = sum((x.sin() * random_tensor(*x.shape, seed=i, dtype=x.dtype)).sum()
                   for i, x in enumerate(rendered) if x is not None and x.requires_grad)
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    for i, (a, b) in enumerate(zip(*gradients, strict=True)):
        assert torch.allclose(a, b, rtol=0, atol=1e-11 * max(1, b.abs().max().item())), (name, i)


def test_single_precision_keeps_the_budget_of_the_specification() -> None:
    planes, origins, directions, decoder = scene()
    options = {"near": 1.0, "far": 5.0, "num_samples": 40}
    exact = render_triplane_reference(planes, origins, directions, decoder, **options)
    low = planes.float(), origins.float(), directions.float(), decoder.float()
    plain = render_triplane_reference(*low, **options)
    with poisoned():
        found = render_triplane(*low, **options)
    for name in ("rgb", "depth", "opacity"):
        assert_within_budget(getattr(found, name), getattr(exact, name), getattr(plain, name), scale=1.0, what=name)


@given(st.integers(0, 3), st.integers(0, 17), st.integers(0, 20), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=15)
def test_any_size_and_stop(batch: int, rays: int, samples: int, stop: float, seed: int) -> None:
    _, _, _, decoder = scene()
    planes = random_planes(batch, 4, 5, seed=seed, dtype=torch.float64)
    origins, directions = aimed_rays(batch, rays, seed)
    found, expected = pair((planes, origins, directions, decoder), near=1.0, far=5.0, num_samples=samples,
                           stop_below=stop, background=1.0)
    assert_close(found, expected)
    if samples == 0:
        assert (found.rgb == 1).all() and (found.opacity == 0).all()


@pytest.mark.parametrize("depth", [1e-6, 0.3, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_homogeneous_slab_is_exact_for_any_number_of_samples(depth: float, dtype: torch.dtype) -> None:
    origins = torch.tensor([[[0.1, 0.2, 3.0]]], dtype=dtype)
    directions = torch.tensor([[[0.0, 0.0, -2.0]]], dtype=dtype)
    planes = torch.zeros(1, 3, 1, 2, 2, dtype=dtype)
    for samples in (1, 7, 48):
        for rendered in pair((planes, origins, directions, Constant(depth / 2)), near=1.0, far=2.0,
                             num_samples=samples, background=1.0):
            opacity = -math.expm1(-depth)
            assert rendered.opacity.item() == pytest.approx(opacity, rel=1e-5 if dtype == torch.float32 else 1e-12)
            expected = [opacity * c + 1 - opacity for c in (0.2, 0.4, 0.8)]
            assert rendered.rgb.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_a_ball_shows_its_chords() -> None:
    texel = (torch.arange(64, dtype=torch.float64) * 2 + 1) / 64 - 1
    planes = (texel[:, None].square() + texel.square()).expand(1, 3, 1, 64, 64) / 2  # sums to |p|^2

    def ball(features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return 1.5 * (features[..., 0] <= 0.49).to(features), torch.ones_like(features)

    offsets = torch.linspace(0, 0.95, 10, dtype=torch.float64)
    origins = torch.stack([offsets, torch.zeros_like(offsets), torch.full_like(offsets, 2)], -1)[None]
    directions = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(origins)
    chord = 2 * (0.49 - offsets.square()).clamp_min(0).sqrt()
    for rendered in pair((planes, origins, directions, ball), near=1.0, far=3.0, num_samples=1000):
        assert torch.allclose(rendered.opacity[0], 1 - torch.exp(-1.5 * chord), atol=6e-3)
        assert torch.equal(rendered.opacity[0] == 0, chord == 0)


def test_halving_the_bins_of_a_constant_field_changes_nothing() -> None:
    origins, _ = aimed_rays(1, 9)
    rays = origins * 0.9, -origins / 3
    planes = torch.zeros(1, 3, 1, 2, 2, dtype=torch.float64)
    a, b = (render_triplane(planes, *rays, Constant(2.0), near=2.2, far=3.1, num_samples=n) for n in (8, 16))
    assert torch.allclose(a.rgb, b.rgb, atol=1e-14) and torch.allclose(a.opacity, b.opacity, atol=1e-14)
    assert (a.opacity > 0.8).all() and torch.allclose(a.depth, b.depth, atol=0.01)


def test_the_specification_passes_gradcheck() -> None:
    planes, origins, directions, decoder = scene(channels=2, out=1, activation="softplus")
    planes, origins, directions = planes[:1, ..., :4, :4], origins[:1, :3], directions[:1, :3]
    inputs = [x.detach().clone().requires_grad_() for x in (planes, origins, directions)]
    near, far = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.7, 4.1))

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(render_triplane_reference(*x[:3], decoder, near=x[3], far=x[4], num_samples=6, background=0.3)[:3])

    torch.autograd.gradcheck(run, (*inputs, near, far), eps=1e-7, atol=1e-5)


def test_gradient_penalties_run_through_the_kept_path() -> None:
    planes, origins, directions, decoder = scene(activation="softplus")
    planes.requires_grad_()
    penalties = []
    for rendered in pair((planes, origins, directions, decoder), near=1.0, far=5.0, num_samples=12):
        (slope,) = torch.autograd.grad(rendered.rgb.square().sum(), planes, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), planes)[0])
    assert torch.allclose(*penalties, atol=1e-10)


def test_rays_that_miss_have_no_length_or_are_no_numbers_see_the_background() -> None:
    planes, _, _, decoder = scene(torch.float32)
    nan, inf = float("nan"), float("inf")
    origins = torch.tensor([[0, 0, 3], [5, 0, 3], [nan, 0, 3], [0, 0, 3], [1e38, 0, 3], [0, 0, 3]]).expand(2, 6, 3)
    directions = torch.tensor([[0, 0, 1.0], [0, 0, -1], [0, 0, -1], [0, inf, -1], [0, 0, -1], [0, 0, 0]])
    directions = directions.expand(2, 6, 3)
    for rendered in pair((planes, origins.float(), directions, decoder), near=1.0, far=5.0, num_samples=8,
                         background=torch.tensor([0.1, 0.2, 0.3])):
        assert torch.allclose(rendered.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(2, 6, 3))
        assert (rendered.depth == 0).all() and (rendered.opacity == 0).all()
    aimed = aimed_rays(2, 6, dtype=torch.float32)
    for bounds in ({"near": 2.0, "far": 2.0}, {"near": 4.0, "far": 2.0}, {"near": 1.0, "far": torch.tensor(nan)}):
        assert all((r.opacity == 0).all() for r in pair((planes, *aimed, decoder), num_samples=8, **bounds))


def test_planes_that_are_no_numbers_spoil_the_rays_that_see_them_and_no_other() -> None:
    planes, origins, directions, decoder = scene(torch.float32)
    planes[0, :, :, :4] = float("nan")
    found, expected = pair((planes, origins, directions, decoder), near=1.0, far=5.0, num_samples=16)
    assert torch.equal(found.rgb.isnan(), expected.rgb.isnan())
    assert found.rgb[0].isnan().any() and found.rgb[1].isfinite().all()


def test_seeds_belong_to_scenes_not_to_batches_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    planes, origins, directions, decoder = scene()
    options = {"near": 1.0, "far": 5.0, "num_samples": 9, "num_importance": 4}

    def seeded(count: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(7 + i) for i in range(count)]

    both = render_triplane(planes, origins, directions, decoder, jitter=seeded(2), **options).rgb
    alone = render_triplane(planes[:1], origins[:1], directions[:1], decoder, jitter=seeded(1), **options).rgb
    assert torch.allclose(both[:1], alone, atol=1e-14)
    one = [render_triplane(planes, origins, directions, decoder, jitter=torch.Generator().manual_seed(s), **options).rgb
           for s in (1, 1, 2)]
    assert torch.equal(one[0], one[1]) and not torch.allclose(one[0], one[2])
    monkeypatch.setattr(op, "IMPORTANCE_RAYS", 5)
    with torch.no_grad():
        chunked = render_triplane(planes, origins, directions, decoder, jitter=seeded(2), **options).rgb
    assert torch.allclose(chunked, both, atol=1e-14)


def test_jitter_is_uniform_in_its_bin() -> None:
    seeds = torch.tensor([3])
    numbers = op.jitter_offsets(seeds, 500, 40)
    assert numbers.shape == (1, 500, 40) and (numbers >= 0).all() and (numbers < 1).all()
    assert abs(numbers.mean().item() - 0.5) < 0.01 and abs(numbers.var().item() - 1 / 12) < 0.002
    assert torch.equal(op.jitter_offsets(seeds, 10, 40, first=5), numbers[:, 5:15])
    other = op.jitter_offsets(seeds, 500, 40, stream=1)
    assert abs(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1].item()) < 0.05
    assert abs(torch.corrcoef(numbers[0, :, :2].T)[0, 1].item()) < 0.15


@pytest.mark.parametrize("storage", STORAGES)
def test_strides_do_not_matter(storage: str) -> None:
    planes, origins, directions, decoder = scene()
    options = {"near": 1.0, "far": 5.0, "num_samples": 9}
    plain = stored_as(planes, storage).contiguous()
    expected = render_triplane_reference(plain, origins, directions, decoder, **options)
    strided = origins.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(render_triplane(stored_as(planes, storage), strided, directions, decoder, **options), expected)


def test_any_callable_decodes_and_low_precision_is_loaded() -> None:
    planes, origins, directions, decoder = scene(torch.float32)
    options = {"near": 1.0, "far": 5.0, "num_samples": 9}
    wrapped = render_triplane(planes, origins, directions, lambda f, d: decoder(f, d), **options)
    assert_close(wrapped, render_triplane(planes, origins, directions, decoder, **options), 1e-6)
    half = render_triplane(planes.half(), origins, directions, decoder, **options)
    assert half.rgb.dtype == torch.float32
    assert_close(half, render_triplane(planes.half().float(), origins, directions, decoder, **options), 1e-6)


def operator_arguments(gradients: bool, **changes: Any) -> tuple[Any, ...]:
    planes, origins, directions, decoder = scene(torch.float32)
    bounds = [torch.full((2, 13), x) for x in (1.0, 5.0)]
    tensors = [x.detach().clone().requires_grad_(gradients) for x in (planes, origins, directions, *bounds)]
    given = {"t": None, "cells": None, "seeds": None, "quadrature": "left", "deltas": "world", "weights": False,
             "normals": False, **changes}
    parameters = [p.detach().clone().requires_grad_(gradients) for p in decoder.parameters()]
    return (*tensors, given["t"], given["cells"], given["seeds"], parameters, decoder.text, "xy,zx,yz", "sum", False,
            "zeros", 12, given["quadrature"], given["deltas"], 0.1, given["weights"], given["normals"], 0, "torch", 0)


@pytest.mark.parametrize("arguments", [
    operator_arguments(False, cells=random_tensor(1, 4, 4, 4) > 0),
    operator_arguments(True, seeds=torch.arange(2)),
    operator_arguments(True, weights=True, quadrature="midpoint",
                       t=torch.linspace(1, 5, 12).repeat(2, 13, 1).requires_grad_()),
], ids=["inference", "training", "explicit"])
def test_opcheck(arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(torch.ops.rodin_kernels.render_triplane.default, arguments)


def test_it_compiles_whole_with_its_backward() -> None:
    planes, origins, directions, decoder = scene(torch.float32)
    grid = OccupancyGrid(random_tensor(4, 4, 4) > -0.5)

    def loss(planes: Tensor, near: Tensor) -> Tensor:
        rendered = render_triplane(planes * 1.5, origins, directions, decoder, near=near, far=5.0, num_samples=10,
                                   num_importance=4, jitter=3, occupancy=grid, background=1.0, stop_below=0.01)
        return rendered.rgb.square().sum() + rendered.depth.sum()

    inputs = planes.requires_grad_(), torch.full((2, 13), 1.0, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values, gradients = zip(*((f(*inputs), torch.autograd.grad(f(*inputs), inputs)) for f in (loss, compiled)),
                            strict=True)
    assert torch.allclose(*values)
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max().item())


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"planes": torch.ones(2, 2, 4, 8, 8)}, ValueError, "planes"), ({"planes": "three"}, TypeError, "planes"),
    ({"origins": torch.ones(1, 13, 3)}, ValueError, "origins"),
    ({"directions": torch.ones(2, 12, 3)}, ValueError, "directions"),
    ({"decoder": 3}, TypeError, "decoder"), ({"decoder": TinyDecoder(5)}, ValueError, "decoder"),
    ({"near": "close"}, TypeError, "near"), ({"far": torch.ones(5)}, ValueError, "far"),
    ({"num_samples": -1}, ValueError, "num_samples"), ({"num_samples": 2.5}, TypeError, "num_samples"),
    ({"num_samples": 0, "num_importance": 2}, ValueError, "num_samples"),
    ({"t": torch.ones(2, 13, 4)}, ValueError, "t must"),
    ({"jitter": "yes"}, TypeError, "jitter"), ({"jitter": [torch.Generator()]}, ValueError, "jitter"),
    ({"occupancy": torch.ones(2, 4, 4, 4)}, ValueError, "occupancy"),
    ({"stop_below": 2.0}, ValueError, "stop_below"),
    ({"quadrature": "simpson"}, ValueError, "quadrature"), ({"reduce": "max"}, ValueError, "reduce"),
    ({"padding_mode": "wrap"}, ValueError, "padding_mode"), ({"outputs": ("rgb", "smell")}, ValueError, "outputs"),
    ({"align_corners": 1}, TypeError, "align_corners"), ({"layout": ("xy", "yz")}, ValueError, "layout"),
    ({"backend": "cuda"}, ValueError, "backend"), ({"backend": "triton"}, RuntimeError, "render_triplane"),
    ({"background": torch.ones(7)}, ValueError, "background"), ({"image_width": 5}, ValueError, "image_width"),
]


@pytest.mark.parametrize(("change", "error", "name"), BAD, ids=[str(list(b[0])) for b in BAD])
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], name: str) -> None:
    planes, origins, directions, decoder = scene(torch.float32)
    arguments = {"planes": planes, "origins": origins, "directions": directions, "decoder": decoder, "near": 1.0,
                 "far": 5.0, "num_samples": 6, **change}
    with pytest.raises(error, match=name):
        render_triplane(**arguments)
