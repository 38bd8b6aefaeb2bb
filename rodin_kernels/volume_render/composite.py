"""From densities and colours along rays to pictures: weights, sums, and resampling where the light is.

Each function takes samples in rows, [..., S], or packed, [N] with the index of each sample's ray. These are plain
tensor programs, exact for thin media and free of divisions, so autograd's gradients are theirs as well; they compile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integer, check_same_device, check_shape, check_tensor

#: Added to every weight before resampling, so that a ray through empty space is resampled evenly.
RESAMPLE_FLOOR = 1e-5


def volume_weights(sigma: Tensor, delta: Tensor, *, rays: Tensor | None = None, num_rays: int | None = None,
                   stop_below: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weight of every sample on its ray, and the light that passes the whole ray.

        tau_i = sigma_i delta_i,   T_i = exp(-sum_{j<i} tau_j),   w_i = T_i (1 - exp(-tau_i)) while T_i >= stop_below

    `volume_weights(tensor([[1., 2.]]), tensor([[0.5, 0.5]]))` is `[[0.3935, 0.3834]], [0.2231]`.

    Args:
        sigma: [..., S], or [N] packed; density in 1/world unit, >= 0.
        delta: same shape; length of each sample, in world units, >= 0.
        rays: [N] int64, ascending: the ray of each packed sample; None for samples in rows.
        num_rays: number of rays of the packed form.
        stop_below: a ray ends where its transmittance falls under this; what lies behind weighs nothing.

    Returns:
        weights: as sigma, in [0, 1]. transmittance: [...] or [num_rays]; 1 - the sum of the weights. Weights keep full
        relative precision for thin media (expm1, never a difference of exponentials).

    Differentiable (any number of times) in sigma and delta. float16 and bfloat16 are computed and returned in float32.

    Raises:
        TypeError, ValueError: shapes, devices or types do not fit; the message names the argument.
    """
    sigma, delta = _float(check_tensor("sigma", sigma)), _float(check_tensor("delta", delta))
    check_shape("delta", delta, sigma.shape, "of sigma's shape")
    check_same_device(sigma=sigma, delta=delta, rays=rays)
    if rays is None:
        return _row_weights(sigma * delta, stop_below)
    flat, shape = _slots(rays, num_rays, sigma)
    rows = sigma.new_zeros(shape).view(-1).index_copy(0, flat, sigma * delta).view(shape)
    weights, transmittance = _row_weights(rows, stop_below)
    return weights.reshape(-1).index_select(0, flat), transmittance


def volume_weights_reference(sigma: Tensor, delta: Tensor, *, rays: Tensor | None = None, num_rays: int | None = None,
                             stop_below: float = 0.0) -> tuple[Tensor, Tensor]:
    """The specification of `volume_weights`: ray by ray, sample by sample, as the formula reads."""
    if rays is not None:
        parts = [volume_weights_reference(sigma[rays == r][None], delta[rays == r][None], stop_below=stop_below)
                 for r in range(num_rays or 0)]
        empty = sigma.new_zeros(1, 0), sigma.new_zeros(0)
        return (torch.cat([w for w, _ in parts] or [empty[0]], 1)[0], torch.cat([t for _, t in parts] or [empty[1]]))
    light = torch.ones_like(sigma[..., :1].sum(-1))
    weights, passed = [], torch.zeros_like(light)
    for s, d in zip(sigma.unbind(-1), delta.unbind(-1), strict=True):
        seen = (light >= stop_below).to(light)
        weights.append(seen * light * -torch.expm1(-s * d))
        passed = passed + weights[-1]
        light = light * torch.exp(-s * d)
    stacked = torch.stack(weights, -1) if weights else sigma
    return stacked, (1 - passed if stop_below > 0 else light)


def composite(weights: Tensor, values: Tensor, t: Tensor | None = None, *, background: Tensor | float | None = None,
              rays: Tensor | None = None, num_rays: int | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sums along rays: colour (or any values), depth, opacity.

        value = sum_i w_i v_i + (1 - sum_i w_i) background,   depth = sum_i w_i t_i,   opacity = sum_i w_i

    Args:
        weights: [..., S], or [N] packed.
        values: [..., S, F], or [N, F].
        t: as weights, or None.
        background: a number, [F], or [..., F]; None is 0.
        rays, num_rays: the packed form, as in `volume_weights`.

    Returns:
        value [..., F], depth [...] or None, opacity [...]. Differentiable in all tensors.

    Raises:
        TypeError, ValueError: shapes or devices do not fit; the message names the argument.
    """
    weights, values = _float(check_tensor("weights", weights)), _float(check_tensor("values", values))
    check_shape("values", values, (*weights.shape, None), "[..., S, F] with the shape of weights")
    if t is not None:
        check_shape("t", check_tensor("t", t), weights.shape, "of the shape of weights")
    check_same_device(weights=weights, values=values, t=t, rays=rays)
    if rays is None:
        value = (weights.unsqueeze(-2) @ values).squeeze(-2)
        depth = None if t is None else (weights * t).sum(-1)
        opacity = weights.sum(-1)
    else:
        count = check_integer("num_rays", num_rays, least=0)
        value = values.new_zeros(count, values.shape[-1]).index_add(0, rays, weights.unsqueeze(-1) * values)
        depth = None if t is None else weights.new_zeros(count).index_add(0, rays, weights * t)
        opacity = weights.new_zeros(count).index_add(0, rays, weights)
    return add_background(value, opacity, background), depth, opacity


def composite_reference(weights: Tensor, values: Tensor, t: Tensor | None = None, *,
                        background: Tensor | float | None = None, rays: Tensor | None = None,
                        num_rays: int | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """The specification of `composite`: for packed samples, ray by ray."""
    if rays is not None:
        own = [(rays == r) for r in range(num_rays or 0)]
        value = torch.stack([(weights[m, None] * values[m]).sum(0) for m in own])
        depth = None if t is None else torch.stack([(weights[m] * t[m]).sum() for m in own])
        opacity = torch.stack([weights[m].sum() for m in own])
    else:
        value, opacity = (weights[..., None] * values).sum(-2), weights.sum(-1)
        depth = None if t is None else (weights * t).sum(-1)
    return (value if background is None else value + (1 - opacity)[..., None] * background), depth, opacity


def add_background(value: Tensor, opacity: Tensor, background: Tensor | float | None) -> Tensor:
    """value + (1 - opacity) background; `value` itself for None."""
    return value if background is None else value + (1 - opacity).unsqueeze(-1) * background


def sample_pdf(edges: Tensor, weights: Tensor, num_samples: int, *, offsets: Tensor | None = None) -> Tensor:
    """New positions where the weights are, by inverting their distribution (NeRF's hierarchical sampling).

        cdf_k = sum_{i<k} (w_i + 1e-5) / sum_i (w_i + 1e-5);   t_j = cdf^-1((j + u_j) / N), linear inside a bin

    Args:
        edges: [..., S + 1], ascending: edges of the bins. weights: [..., S], >= 0.
        num_samples: N.
        offsets: [..., N] in [0, 1), u above; None is 1/2 everywhere (deterministic, even quantiles).

    Returns:
        [..., N], ascending, inside the edges. Differentiable in edges; weights are taken as constants.

    Raises:
        TypeError, ValueError: shapes do not fit or there is no bin; the message names the argument.
    """
    edges, weights = _float(check_tensor("edges", edges)), _float(check_tensor("weights", weights)).detach()
    check_integer("num_samples", num_samples, least=0)
    check_shape("edges", edges, (*weights.shape[:-1], weights.shape[-1] + 1), "[..., S + 1] for weights [..., S]")
    if weights.shape[-1] < 1:
        raise ValueError("weights must have at least one bin; got 0")
    steps = torch.arange(num_samples, device=edges.device, dtype=edges.dtype)
    quantiles = (steps + (0.5 if offsets is None else offsets.to(edges.dtype))) / max(num_samples, 1)
    quantiles = quantiles.expand(*weights.shape[:-1], num_samples).contiguous()
    mass = weights + RESAMPLE_FLOOR
    upper = (mass / mass.sum(-1, keepdim=True)).cumsum(-1)
    bins = torch.searchsorted(upper.contiguous(), quantiles, right=True).clamp_max(weights.shape[-1] - 1)
    below = torch.cat([torch.zeros_like(upper[..., :1]), upper], -1).gather(-1, bins)
    share = (upper.gather(-1, bins) - below).clamp_min(torch.finfo(upper.dtype).tiny)
    place = ((quantiles - below) / share).clamp(0, 1)
    left, right = edges.gather(-1, bins), edges.gather(-1, bins + 1)
    return left + place * (right - left)


def sample_pdf_reference(edges: Tensor, weights: Tensor, num_samples: int, *, offsets: Tensor | None = None) -> Tensor:
    """The specification of `sample_pdf`: every quantile looks for its bin among all of them."""
    mass = weights.detach() + RESAMPLE_FLOOR
    upper = (mass / mass.sum(-1, keepdim=True)).cumsum(-1)
    lower = torch.cat([torch.zeros_like(upper[..., :1]), upper[..., :-1]], -1)
    steps = torch.arange(num_samples, device=edges.device, dtype=edges.dtype)
    quantiles = ((steps + (0.5 if offsets is None else offsets)) / max(num_samples, 1)).unsqueeze(-1)
    place = ((quantiles - lower[..., None, :]) / (upper - lower)[..., None, :]).clamp(0, 1)
    bins = edges[..., None, 1:] - edges[..., None, :-1]
    return edges[..., :1] + (place * bins).sum(-1)


def _row_weights(tau: Tensor, stop_below: float) -> tuple[Tensor, Tensor]:
    before = torch.cat([torch.zeros_like(tau[..., :1]), tau[..., :-1]], -1).cumsum(-1)
    light = torch.exp(-before)
    weights = light * -torch.expm1(-tau)
    if stop_below <= 0:
        return weights, torch.exp(-tau.sum(-1))
    weights = torch.where(light >= stop_below, weights, 0.0)
    return weights, 1 - weights.sum(-1)


def _slots(rays: Tensor, num_rays: int | None, sigma: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Place of each packed sample in padded rows, and the shape of those rows."""
    count = check_integer("num_rays", num_rays, least=0)
    check_shape("rays", check_tensor("rays", rays, floating=False), sigma.shape, "[N] as sigma")
    lengths = torch.bincount(rays, minlength=count)
    width = int(lengths.max()) if rays.numel() else 1
    starts = lengths.cumsum(0) - lengths
    return rays * width + torch.arange(len(rays), device=rays.device) - starts[rays], (count, width)


def _float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
