"""Where along its ray every sample lies and how much of the ray it stands for; what all paths of the renderer share.

Part of the specification: the reference and every fast path call these functions, so that they agree on each position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


class Rendered(NamedTuple):
    """What `render_triplane` returns; what was not asked for in `outputs` is None.

    rgb: [B, R, F], composited onto the background. depth: [B, R], sum of w t, in units of t. opacity: [B, R], in
    [0, 1]. normals: [B, R, 3], sum of w n with n = -grad sigma / |grad sigma|. weights: [B, R, S'], one for each sample
    (S' = S + importance samples; one less with midpoint quadratures). t: [B, R, S'], where the weights lie; comes with
    the weights.
    """

    rgb: Tensor | None = None
    depth: Tensor | None = None
    opacity: Tensor | None = None
    normals: Tensor | None = None
    weights: Tensor | None = None
    t: Tensor | None = None


def jitter_seeds(jitter: torch.Generator | Sequence[torch.Generator] | int | None, batch: int,
                 device: torch.device) -> Tensor | None:
    """One int64 seed for each scene, [B], or None: sample b depends on its own seed, not on the size of the batch.

    Raises:
        TypeError: `jitter` is not a generator, a list of generators, an integer or None.
        ValueError: a list that does not hold one generator for each scene.
    """
    if jitter is None:
        return None
    if isinstance(jitter, int) and not isinstance(jitter, bool):
        return torch.arange(batch, device=device, dtype=torch.int64) + jitter
    if isinstance(jitter, torch.Generator):
        return torch.randint(2**62, (batch,), generator=jitter, device=jitter.device).to(device)
    if not isinstance(jitter, list | tuple) or not all(isinstance(g, torch.Generator) for g in jitter):
        raise TypeError(f"jitter must be a torch.Generator, a list of them, an integer seed or None; got {jitter!r}")
    if len(jitter) != batch:
        raise ValueError(f"jitter must hold one generator for each of the {batch} scenes; got {len(jitter)}")
    return torch.cat([torch.randint(2**62, (1,), generator=g, device=g.device).to(device) for g in jitter])


def hashed_uniform(seeds: Tensor, rays: Tensor, num_samples: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1) that depend on seed, ray and sample alone: the same in any chunk, on any device.

    Args:
        seeds: [...] int64.
        rays: [...] int64, index of the ray in its scene; broadcasts with `seeds`.
        num_samples: S.
        stream: independent sequences for different purposes.

    Returns:
        [..., S] float32, multiples of 2^-24. Each key runs through the 32-bit mixer "lowbias32".
    """
    per_ray = _mix(_mix(_mix(seeds & _MASK) ^ ((seeds >> 32) & _MASK)) ^ (rays & _MASK))
    samples = torch.arange(num_samples, device=seeds.device) + (stream << 24)
    return (_mix(per_ray.unsqueeze(-1) ^ (samples * 0x9E3779B1 & _MASK)) >> 8).float() * 2.0**-24


def jitter_offsets(seeds: Tensor | None, rays: int, num_samples: int, stream: int = 0,
                   first: int = 0) -> Tensor | None:
    """Where in its bin each sample of rays first, first + 1, ... lies, [B, R, S]; None (the centres) without seeds."""
    if seeds is None:
        return None
    numbers = torch.arange(first, first + rays, device=seeds.device)
    return hashed_uniform(seeds.unsqueeze(-1), numbers, num_samples, stream)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


def bin_positions(near: Tensor, far: Tensor, num_samples: int, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Samples in equal bins between near and far.

        t_i = near + (i + u_i) width,   delta_i = width = max(far - near, 0) / S,   u_i = 1/2 without offsets

    Args:
        near, far: [...], in units of t.
        num_samples: S.
        offsets: [..., S] in [0, 1), where in its bin each sample lies.

    Returns:
        t, delta: [..., S]. Differentiable in near and far.
    """
    width = ((far - near).clamp_min(0) / max(num_samples, 1)).unsqueeze(-1)
    steps = torch.arange(num_samples, device=near.device, dtype=near.dtype)
    steps = steps + 0.5 if offsets is None else steps + offsets.to(near.dtype)
    return near.unsqueeze(-1) + steps * width, width.expand(*width.shape[:-1], num_samples)


def sample_lengths(t: Tensor, far: Tensor, quadrature: str) -> Tensor:
    """How much of the ray each sample (left) or each pair of neighbours (else) stands for, for sorted `t`.

        left: delta_i = t_{i+1} - t_i, the last one reaching to far;      else: delta_i = t_{i+1} - t_i

    Args:
        t: [..., S], ascending. far: [...]. quadrature: "left", "midpoint" or "raw_midpoint".

    Returns:
        [..., S] for left, [..., S - 1] else; never negative. Differentiable in t and far.
    """
    inner = (t[..., 1:] - t[..., :-1]).clamp_min(0)
    if quadrature != "left":
        return inner
    last = (far.unsqueeze(-1) - t[..., -1:]).clamp_min(0)
    return torch.cat([inner, last], -1)


def bin_edges(t: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Edges [..., S + 1] of cells around samples [..., S]: half way between neighbours, near and far outside."""
    return torch.cat([near.unsqueeze(-1), 0.5 * (t[..., 1:] + t[..., :-1]), far.unsqueeze(-1)], -1)


def first_positions(near: Tensor, far: Tensor, num_samples: int, t: Tensor | None, seeds: Tensor | None,
                    quadrature: str, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and lengths of the samples that rays [B, R] begin with, and the bins that resampling draws from.

    Args:
        near, far: [B, R]. t: explicit positions [B, R, S] or None for equal bins. seeds: [B] for jitter or None.
        first: number of the first of these rays in its scene.

    Returns:
        t [B, R, S], delta [B, R, S] (S - 1 unless left), edges [B, R, S + 1] (S unless left: t itself).
    """
    if t is None:
        offsets = jitter_offsets(seeds, near.shape[1], num_samples, first=first)
        t, delta = bin_positions(near, far, num_samples, offsets)
        steps = torch.arange(num_samples + 1, device=near.device, dtype=near.dtype) / max(num_samples, 1)
        edges = near.unsqueeze(-1) + steps * (far - near).clamp_min(0).unsqueeze(-1)
    else:
        t = t.to(near.dtype)
        delta, edges = sample_lengths(t, far, quadrature), bin_edges(t, near, far)
    if quadrature != "left":
        return t, sample_lengths(t, far, quadrature), t
    return t, delta, edges


def finite_rays(origins: Tensor, directions: Tensor, near: Tensor,
                far: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same rays [..., 3] and bounds [...], those with a number that is not finite replaced by rays of no length."""
    finite = (origins + directions).isfinite().all(-1) & (near + far).isfinite()
    wide = finite.unsqueeze(-1)
    return (torch.where(wide, origins, 2.0), torch.where(wide, directions, 0.0), torch.where(finite, near, 0.0),
            torch.where(finite, far, 0.0))
