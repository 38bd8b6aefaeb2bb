"""Signed-distance building blocks on separate coordinate tensors: primitives, soft unions and soft masks.

All functions are elementwise on tensors of one shape, differentiable almost everywhere, and work in any floating
dtype on any device. Distances are negative inside. The formulas are the well-known ones of Inigo Quilez
(https://iquilezles.org/articles/distfunctions/); ellipsoids and tapered shapes are first-order approximations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rodin_model.avatars.tape import recorded

Vector = tuple[float, float, float]


@dataclass
class Place:
    """Points as coordinate tensors [N], `m` = |x| for all that is mirrored, and distances that parts share."""

    x: Tensor
    y: Tensor
    z: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.m = self.x.abs()

    @classmethod
    def of(cls, points: Tensor) -> Place:
        """From points [N, 3]."""
        x, y, z = points.T.contiguous().unbind(0)
        return cls(x, y, z)

    def take(self, index: Tensor) -> Place:
        """The points at `index` [K], with what was already computed for them."""
        return Place(self.x[index], self.y[index], self.z[index], {k: v[index] for k, v in self.cache.items()})


def length(x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    """Euclidean length of two or three coordinates."""
    if (value := recorded(x)) is not None:
        return value.length(y, z)
    square = x * x + y * y
    return torch.sqrt(square if z is None else square + z * z)


def sphere(x: Tensor, y: Tensor, z: Tensor, centre: Vector, radius: float) -> Tensor:
    """Exact distance to a sphere."""
    return length(x - centre[0], y - centre[1], z - centre[2]) - radius


def ellipsoid(x: Tensor, y: Tensor, z: Tensor, centre: Vector, radii: Vector) -> Tensor:
    """First-order distance to an axis-aligned ellipsoid, |p/r| (|p/r| - 1) / |p/r^2|."""
    a, b, c = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    near = length(a, b, c)
    return near * (near - 1.0) / length(a / radii[0], b / radii[1], c / radii[2]).clamp_min(1e-4)


def capsule(x: Tensor, y: Tensor, z: Tensor, start: Vector, end: Vector, radius: float, end_radius: float | None = None,
            ) -> Tensor:
    """Distance to a segment with round ends; with `end_radius` the radius changes linearly along it."""
    dx, dy, dz = (e - s for s, e in zip(start, end, strict=True))
    px, py, pz = x - start[0], y - start[1], z - start[2]
    t = ((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz)).clamp(0.0, 1.0)
    away = length(px - t * dx, py - t * dy, pz - t * dz)
    return away - radius if end_radius is None else away - (radius + (end_radius - radius) * t)


def box(x: Tensor, y: Tensor, z: Tensor, centre: Vector, half: Vector, rounding: float) -> Tensor:
    """Distance to a box of half extents `half` whose edges are rounded by `rounding`."""
    a = (x - centre[0]).abs() - (half[0] - rounding)
    b = (y - centre[1]).abs() - (half[1] - rounding)
    c = (z - centre[2]).abs() - (half[2] - rounding)
    outside = length(a.clamp_min(0), b.clamp_min(0), c.clamp_min(0))
    return outside + torch.maximum(a, torch.maximum(b, c)).clamp_max(0) - rounding


def ring(across: Tensor, along: Tensor, height: Tensor, radius: float, tube: float) -> Tensor:
    """Exact distance to a torus around the `height` axis; pass coordinates relative to its centre."""
    return length(length(across, along) - radius, height) - tube


def union(a: Tensor, b: Tensor, blend: float) -> Tensor:
    """Union whose seam is filled over a width of `blend` (quadratic smooth minimum)."""
    if (value := recorded(a)) is not None:
        return value.union(b, blend)
    h = (blend - (a - b).abs()).clamp_min(0.0)
    return torch.minimum(a, b) - h * h * (0.25 / blend)


def meet(a: Tensor, b: Tensor, blend: float) -> Tensor:
    """Intersection with edges rounded over a width of `blend`; `meet(a, -b, blend)` cuts b out of a."""
    if recorded(a) is not None:
        return -union(-a, -b, blend)
    h = (blend - (a - b).abs()).clamp_min(0.0)
    return torch.maximum(a, b) + h * h * (0.25 / blend)


def turn(a: Tensor, b: Tensor, cosine: float, sine: float) -> tuple[Tensor, Tensor]:
    """The coordinates (a, b) in axes turned by the angle with this cosine and sine."""
    return a * cosine + b * sine, b * cosine - a * sine


def inside(distance: Tensor, soft: float = 0.008) -> Tensor:
    """Soft mask in [0, 1]: 1 where `distance` is negative, changing over a width of `soft`."""
    return (0.5 - distance / soft).clamp(0.0, 1.0)


def mix(base: Tensor, other: Tensor, weight: Tensor | float) -> Tensor:
    """Colours [N, 3] (or [3]) blended by `weight` [N] or a number."""
    w = weight if isinstance(weight, int | float) else weight[:, None]
    return base + (other - base) * w


def bubbles(x: Tensor, y: Tensor, z: Tensor, frequency: float, phase: float) -> Tensor:
    """Round bumps in [-1, 1], two interleaved lattices of sines: curls and fur."""
    one = torch.sin(frequency * x + phase) * torch.sin(frequency * y + 1.3 * phase)
    one = one * torch.sin(frequency * z + 0.7 * phase)
    two = torch.cos(frequency * 0.83 * (x + 0.5 * y)) * torch.cos(frequency * 0.83 * (y - 0.5 * z) + phase)
    return 0.6 * one + 0.4 * two
