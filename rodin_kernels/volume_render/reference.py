"""The specification of `render_triplane`: plain torch, every sample materialised, any device, any floating type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import RODIN
from ..triplane_sample.reference import sample_triplane_reference
from .composite import add_background, sample_pdf, volume_weights
from .decoder import TinyDecoder
from .occupancy import OccupancyGrid, query_cells
from .rays import Rendered, finite_rays, first_positions, jitter_offsets, jitter_seeds, sample_lengths


def render_triplane_reference(
    planes: Tensor, origins: Tensor, directions: Tensor, decoder: Callable[..., tuple[Tensor, Tensor]], *,
    near: float | Tensor, far: float | Tensor, num_samples: int, num_importance: int = 0, t: Tensor | None = None,
    jitter: torch.Generator | Sequence[torch.Generator] | int | None = None, background: Tensor | float | None = None,
    occupancy: OccupancyGrid | Tensor | None = None, stop_below: float = 0.0, quadrature: str = "left",
    deltas: str = "world",
    layout: Sequence[str] = RODIN, reduce: str = "sum", align_corners: bool = False, padding_mode: str = "zeros",
    outputs: Sequence[str] = ("rgb", "depth", "opacity"),
) -> Rendered:
    """What `render_triplane` means, step by step; see there for every argument.

    Differentiable in planes, decoder, origins, directions, near, far, t and background. float64 planes are computed in
    float64, everything else in float32. Needs memory for every sample's hidden layers.
    """
    dtype = torch.float64 if planes.dtype == torch.float64 else torch.float32
    planes, origins, directions = planes.to(dtype), origins.to(dtype), directions.to(dtype)
    batch, rays = origins.shape[:2]
    near, far = (torch.as_tensor(x).to(origins).expand(batch, rays) for x in (near, far))
    origins, directions, near, far = finite_rays(origins, directions, near, far)
    speed = directions.norm(dim=-1, keepdim=True) if deltas == "world" else 1.0
    raw = quadrature == "raw_midpoint"
    cells = occupancy.cells if isinstance(occupancy, OccupancyGrid) else occupancy

    def field(t: Tensor, with_normals: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Density (or raw) [B, R, S], colour [B, R, S, F] and unit normals [B, R, S, 3] at positions t [B, R, S]."""
        points = origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)
        filled = (points.abs() <= 1).all(-1)
        if cells is not None:
            filled = filled & query_cells(cells, points)
        points = torch.where(filled.unsqueeze(-1), points, 0.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() or with_normals):
            if with_normals and not points.requires_grad:
                points.requires_grad_()
            features = sample_triplane_reference(planes, points.flatten(1, 2), layout=layout, reduce=reduce,
                                                 align_corners=align_corners, padding_mode=padding_mode)
            decode = decoder.raw if isinstance(decoder, TinyDecoder) and raw else decoder
            sigma, color = decode(features.unflatten(1, t.shape[1:]), directions.unsqueeze(2).expand(*points.shape))
            normals = _normals(sigma, points, filled) if with_normals else None
        sigma = torch.where(filled, sigma, -torch.inf if raw else 0.0)
        return sigma, torch.where(filled.unsqueeze(-1), color, 0.0), normals

    def density(sigma: Tensor) -> Tensor:
        """What each weight is made of: [B, R, S], one less where neighbours are averaged."""
        means = _paired(sigma, quadrature)
        return decoder.density(means) if isinstance(decoder, TinyDecoder) and raw else means

    seeds = jitter_seeds(jitter, batch, origins.device)
    t, delta, edges = first_positions(near, far, num_samples, t, seeds, quadrature)
    if num_importance:
        with torch.no_grad():
            weights, _ = volume_weights(density(field(t)[0]), delta * speed, stop_below=stop_below)
            offsets = jitter_offsets(seeds, rays, num_importance, stream=1)
            fine = sample_pdf(edges, weights, num_importance, offsets=offsets)
        t = torch.cat([t, fine], -1).sort(-1).values
        delta = sample_lengths(t, far, quadrature)

    sigma, color, normals = field(t, "normals" in outputs)
    weights, _ = volume_weights(density(sigma), delta * speed, stop_below=stop_below)
    color, where = (_paired(color.movedim(-1, 0), quadrature).movedim(0, -1), _paired(t, quadrature))
    opacity = weights.sum(-1)
    found = {
        "rgb": add_background((weights.unsqueeze(-1) * color).sum(-2), opacity, _as_background(background, origins)),
        "depth": (weights * where).sum(-1),
        "opacity": opacity, "weights": weights, "t": where,
    }
    if normals is not None:
        normals = _paired(normals.movedim(-1, 0), quadrature).movedim(0, -1)
        found["normals"] = (weights.unsqueeze(-1) * normals).sum(-2)
    wanted = {*outputs, "t"} if "weights" in outputs else {*outputs}
    return Rendered(**{name: value for name, value in found.items() if name in wanted})


def _paired(x: Tensor, quadrature: str) -> Tensor:
    """For midpoint quadratures the means of neighbouring samples [..., S - 1], else x itself."""
    return x if quadrature == "left" else 0.5 * (x[..., 1:] + x[..., :-1])


def _normals(sigma: Tensor, points: Tensor, filled: Tensor) -> Tensor:
    """-grad sigma / |grad sigma|, zero where nothing is."""
    (slope,) = torch.autograd.grad(sigma.sum(), points, create_graph=torch.is_grad_enabled() and sigma.requires_grad)
    return torch.where(filled.unsqueeze(-1), F.normalize(-slope, dim=-1), 0.0)


def _as_background(background: Tensor | float | None, like: Tensor) -> Tensor | None:
    return None if background is None else torch.as_tensor(background).to(like)
