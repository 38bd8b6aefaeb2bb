"""Weights, sums and resampling: hand-computed cases, invariants, thin media, gradients, packed against rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rodin_kernels import (
    composite,
    composite_reference,
    sample_pdf,
    sample_pdf_reference,
    volume_weights,
    volume_weights_reference,
)
from rodin_kernels.testing import assert_within_budget, random_tensor


def media(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Densities and lengths >= 0, some of them 0."""
    sigma = (random_tensor(*shape, seed=seed) * 2).clamp_min(0)
    return sigma.to(dtype), random_tensor(*shape, seed=seed + 1).abs().mul(0.4).to(dtype)


def test_the_example_of_the_docstring() -> None:
    weights, light = volume_weights(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.5]]))
    expected = [1 - math.exp(-0.5), math.exp(-0.5) * (1 - math.exp(-1.0))]
    assert torch.allclose(weights, torch.tensor([expected]), rtol=1e-6)
    assert light.item() == pytest.approx(math.exp(-1.5), rel=1e-6)


@given(st.integers(0, 9), st.integers(0, 70), st.integers(0, 99), st.sampled_from([0.0, 0.2, 1.0]))
def test_fast_and_specified_weights_agree_and_sum_to_one(rays: int, samples: int, seed: int, stop: float) -> None:
    sigma, delta = media(rays, samples, seed=seed)
    weights, light = volume_weights(sigma, delta, stop_below=stop)
    expected, passed = volume_weights_reference(sigma, delta, stop_below=stop)
    assert torch.allclose(weights, expected, rtol=1e-12, atol=1e-15) and torch.allclose(light, passed, atol=1e-14)
    assert torch.allclose(weights.sum(-1) + light, torch.ones(rays, dtype=torch.float64), atol=1e-14)
    assert (weights >= 0).all()


def test_single_precision_stays_in_the_budget_of_plain_torch() -> None:
    sigma, delta = media(50, 64)
    exact, _ = volume_weights_reference(sigma, delta)
    plain, _ = volume_weights_reference(sigma.float(), delta.float())
    assert_within_budget(volume_weights(sigma.float(), delta.float())[0], exact, plain, scale=1.0)


@pytest.mark.parametrize("depth", [1e-8, 1e-6, 1e-3])
def test_thin_media_keep_their_relative_precision(depth: float) -> None:
    sigma, delta = torch.full((1, 8), depth), torch.full((1, 8), 0.125)
    weights, _ = volume_weights(sigma, delta)
    assert weights.sum().double().item() == pytest.approx(-math.expm1(-depth), rel=1e-5)


def test_opaque_samples_are_finite_forward_and_backward() -> None:
    sigma = torch.tensor([[0.0, 1e30, 3.0, torch.inf]], requires_grad=True)
    weights, light = volume_weights(sigma, torch.ones(1, 4))
    weights.sum().backward()
    assert torch.equal(weights.detach(), torch.tensor([[0.0, 1.0, 0.0, 0.0]])) and light.item() == 0
    assert sigma.grad is not None and sigma.grad.isfinite().all()


def test_splitting_a_sample_in_two_halves_changes_nothing() -> None:
    sigma, delta = media(7, 9)
    whole, light = volume_weights(sigma, delta)
    halves, same = volume_weights(sigma.repeat_interleave(2, -1), delta.repeat_interleave(2, -1) / 2)
    assert torch.allclose(halves.view(7, 9, 2).sum(-1), whole, atol=1e-15) and torch.allclose(light, same)


def test_what_lies_behind_the_stop_weighs_nothing() -> None:
    sigma = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    weights, light = volume_weights(sigma, torch.ones(1, 4), stop_below=0.2)
    assert (weights[0, :2] > 0).all() and (weights[0, 2:] == 0).all()
    assert light.item() == pytest.approx(math.exp(-2), rel=1e-6)


@pytest.mark.parametrize("stop", [0.0, 0.3])
def test_gradients_twice(stop: float) -> None:
    sigma, delta = (x.requires_grad_() for x in media(2, 5))
    sigma.data.add_(0.1)
    torch.autograd.gradcheck(lambda s, d: volume_weights(s, d, stop_below=stop), (sigma, delta))
    torch.autograd.gradgradcheck(lambda s, d: volume_weights(s, d, stop_below=stop)[0], (sigma, delta))


@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0, 0], [], [4]])
def test_packed_samples_are_rows_without_the_gaps(lengths: list[int]) -> None:
    rays = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    sigma, delta = media(len(rays), seed=3)
    values, t = random_tensor(len(rays), 3, dtype=torch.float64), random_tensor(len(rays), dtype=torch.float64)
    weights, light = volume_weights(sigma, delta, rays=rays, num_rays=len(lengths), stop_below=0.1)
    expected, passed = volume_weights_reference(sigma, delta, rays=rays, num_rays=len(lengths), stop_below=0.1)
    assert torch.allclose(weights, expected, atol=1e-15) and torch.allclose(light, passed, atol=1e-15)
    if lengths:
        sums = composite(weights, values, t, background=0.5, rays=rays, num_rays=len(lengths))
        wanted = composite_reference(weights, values, t, background=0.5, rays=rays, num_rays=len(lengths))
        assert all(torch.allclose(a, b, atol=1e-15) for a, b in zip(sums, wanted, strict=True))


def test_packed_samples_pass_gradcheck_twice() -> None:
    rays = torch.tensor([0, 0, 0, 2, 3, 3])
    sigma, delta = (x.add_(0.1).requires_grad_() for x in media(6, seed=3))
    values = random_tensor(6, 2, dtype=torch.float64, requires_grad=True)
    t = random_tensor(6, dtype=torch.float64, requires_grad=True)
    background = random_tensor(4, 2, dtype=torch.float64, seed=2, requires_grad=True)

    def rendered(*x: Tensor, stop: float = 0.0) -> tuple[Tensor, ...]:
        weights, light = volume_weights(x[0], x[1], rays=rays, num_rays=4, stop_below=stop)
        value, depth, opacity = composite(weights, x[2], x[3], background=x[4], rays=rays, num_rays=4)
        assert depth is not None
        return value, depth, opacity, light

    inputs = sigma, delta, values, t, background
    torch.autograd.gradcheck(rendered, inputs)
    torch.autograd.gradcheck(lambda *x: rendered(*x, stop=0.6), inputs)
    torch.autograd.gradgradcheck(rendered, inputs)


@pytest.mark.parametrize("packed", [False, True])
def test_both_packings_keep_every_invariant(packed: bool) -> None:
    def weighed(sigma: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        if not packed:
            return volume_weights(sigma, delta)
        rays = torch.arange(len(sigma)).repeat_interleave(sigma.shape[1])
        weights, light = volume_weights(sigma.flatten(), delta.flatten(), rays=rays, num_rays=len(sigma))
        return weights.view(sigma.shape), light

    sigma, delta = media(7, 9)
    weights, light = weighed(sigma, delta)
    assert torch.allclose(weights.sum(-1) + light, torch.ones_like(light), atol=1e-14)
    halves, same = weighed(sigma.repeat_interleave(2, -1), delta.repeat_interleave(2, -1) / 2)
    assert torch.allclose(halves.view(7, 9, 2).sum(-1), weights, atol=1e-15) and torch.allclose(same, light)
    # each weight by itself, thin medium: relative to float64
    thin = torch.full((1, 32), 1e-6), torch.full((1, 32), 1 / 32)
    exact, _ = weighed(*(x.double() for x in thin))
    found, _ = weighed(*thin)
    assert ((found.double() - exact) / exact).abs().max() <= 1e-5


@pytest.mark.parametrize("packed", [False, True])
def test_a_slab_of_two_colours_is_known_in_closed_form(packed: bool) -> None:
    layers, thickness = (1.5, 0.8), (0.4, 0.7)
    colors = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.6, 0.9]], dtype=torch.float64)
    counts = torch.tensor([5, 3])
    sigma = torch.tensor(layers, dtype=torch.float64).repeat_interleave(counts)
    delta = (torch.tensor(thickness, dtype=torch.float64) / counts).repeat_interleave(counts)
    values = colors.repeat_interleave(counts, 0)
    rays = {"rays": torch.zeros(8, dtype=torch.int64), "num_rays": 1} if packed else {}
    weights, light = volume_weights(sigma, delta, **rays)
    value, _, opacity = composite(weights, values, background=1.0, **rays)
    first, second = (math.exp(-a * b) for a, b in zip(layers, thickness, strict=True))
    expected = (1 - first) * colors[0] + first * (1 - second) * colors[1] + first * second
    assert torch.allclose(value.view(3), expected, atol=1e-14)
    assert light.item() == pytest.approx(first * second, rel=1e-13)
    assert opacity.item() == pytest.approx(1 - first * second, rel=1e-13)


def test_resampled_places_have_the_gradient_of_their_bins() -> None:
    edges = random_tensor(2, 6, dtype=torch.float64).sort(-1).values.requires_grad_()
    weights = media(2, 5)[0].requires_grad_()
    torch.autograd.gradcheck(lambda e: sample_pdf(e, weights, 7), edges)
    found = sample_pdf(edges, weights, 7)
    assert torch.autograd.grad(found.sum(), weights, allow_unused=True) == (None,)


def test_sums_along_rows_with_their_gradients() -> None:
    weights = media(2, 3, 4)[0].div(10).requires_grad_()
    values, t = random_tensor(2, 3, 4, 5, dtype=torch.float64), random_tensor(2, 3, 4, dtype=torch.float64)
    background = random_tensor(2, 3, 5, dtype=torch.float64, requires_grad=True)
    found = composite(weights, values, t, background=background)
    wanted = composite_reference(weights, values, t, background=background)
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(found, wanted, strict=True))
    torch.autograd.gradcheck(lambda w, v, b: composite(w, v, t, background=b)[0],
                             (weights, values.requires_grad_(), background))
    assert composite(weights, values)[1] is None


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 40), st.integers(0, 99))
def test_resampling_inverts_the_distribution(rays: int, bins: int, count: int, seed: int) -> None:
    weights = media(rays, bins, seed=seed)[0]
    edges = random_tensor(rays, bins + 1, seed=seed, dtype=torch.float64).sort(-1).values
    offsets = torch.rand(rays, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for u in (None, offsets):
        found = sample_pdf(edges, weights, count, offsets=u)
        assert torch.allclose(found, sample_pdf_reference(edges, weights, count, offsets=u), atol=1e-9)
        assert (found[:, 1:] >= found[:, :-1]).all()
        assert (found >= edges[:, :1]).all() and (found <= edges[:, -1:]).all()


def test_resampling_goes_where_the_weight_is_and_evenly_where_none_is() -> None:
    edges = torch.linspace(0, 4, 5)[None]
    inside = sample_pdf(edges, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), 100)
    assert ((inside >= 2) & (inside <= 3)).float().mean() > 0.99
    even = sample_pdf(edges, torch.zeros(1, 4), 8)
    assert torch.allclose(even, (torch.arange(8) + 0.5)[None] / 2, atol=1e-6)


@pytest.mark.parametrize(("call", "error", "name"), [
    (lambda: volume_weights([1.0], torch.ones(1)), TypeError, "sigma"),
    (lambda: volume_weights(torch.ones(2, 3), torch.ones(2, 4)), ValueError, "delta"),
    (lambda: volume_weights(torch.ones(3), torch.ones(3), rays=torch.zeros(3).long()), TypeError, "num_rays"),
    (lambda: volume_weights(torch.ones(3), torch.ones(3), rays=torch.zeros(2).long(), num_rays=1), ValueError, "rays"),
    (lambda: composite(torch.ones(2, 3), torch.ones(2, 4, 1)), ValueError, "values"),
    (lambda: composite(torch.ones(2, 3), torch.ones(2, 3, 1), torch.ones(2)), ValueError, "t must"),
    (lambda: sample_pdf(torch.ones(2, 3), torch.ones(2, 3), 4), ValueError, "edges"),
    (lambda: sample_pdf(torch.ones(2, 1), torch.ones(2, 0), 4), ValueError, "weights"),
])
def test_errors_name_the_argument(call: object, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        call()  # type: ignore[operator]


def test_the_parts_compile_whole() -> None:
    def parts(sigma: Tensor, delta: Tensor, values: Tensor) -> Tensor:
        weights, light = volume_weights(sigma, delta, stop_below=0.1)
        return composite(weights, values, background=1.0)[0].sum() + light.sum()

    sigma, delta = media(3, 6)
    values = random_tensor(3, 6, 2, dtype=torch.float64)
    sigma.requires_grad_()
    compiled = torch.compile(parts, fullgraph=True, backend="aot_eager")
    assert torch.allclose(*(torch.autograd.grad(f(sigma, delta, values), sigma)[0] for f in (parts, compiled)))
