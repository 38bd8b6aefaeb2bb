"""Points of an avatar with distance and colour: the quick supervision of a fit, before any ray is cast."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.geometry import AvatarField
from rodin_model.avatars.pictures import trace

#: Spread of the near-surface points along the normal, in world units: half of them tight, half of them wide.
TIGHT, WIDE = 0.008, 0.035


@torch.no_grad()
def sample_points(field: AvatarField | Attributes, uniform: int = 12_000, surface: int = 40_000, seed: int = 0,
                  ) -> tuple[Tensor, Tensor, Tensor]:
    """`uniform` points in the box [-1, 1]^3, then `surface` points close to what can be seen from outside.

    Returns points [N, 3], signed distance [N] and shaded colour [N, 3] in 0..1 (that of the nearest surface, also
    for the uniform points), N = uniform + surface. The same seed gives the same points.
    """
    if uniform < 0 or surface < 0:
        raise ValueError(f"uniform and surface must not be negative; got {uniform} and {surface}")
    if isinstance(field, Attributes):
        field = AvatarField(field)
    if uniform + surface == 0:
        none = torch.zeros(0, 3, device=field.device)
        return none, none[:, 0], none
    rng = np.random.default_rng([0x907, seed])
    spread = torch.from_numpy(rng.uniform(-1, 1, (uniform, 3)).astype(np.float32)).to(field.device)
    skin = _surface(field, surface, rng)
    width = torch.where(torch.arange(surface, device=field.device) % 2 == 0, TIGHT, WIDE)
    offset = torch.from_numpy(rng.normal(size=surface).astype(np.float32)).to(field.device) * width
    near = (skin + field.normal(skin) * offset[:, None]).clamp(-1, 1)
    points = torch.cat([spread, near])
    distance, which = field.nearest(points)
    # colour is taken where the point's own normal meets the surface, so that it does not fade away from it
    normal = field.normal(points)
    foot = points - normal * distance[:, None].clamp(-0.12, 0.12)
    return points, distance, field.color(foot)


def _surface(field: AvatarField, count: int, rng: np.random.Generator) -> Tensor:
    """`count` points on the surface where random lines from outside first meet it, the head denser than the bust."""
    found: list[Tensor] = []
    missing = count
    while missing > 0:
        total = int(missing * 1.6) + 64
        away = rng.normal(size=(total, 3)) * np.array([1.0, 0.7, 1.0]) + np.array([0.0, 0.1, 0.35])
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        target = rng.normal(size=(total, 3)) * np.array([0.26, 0.36, 0.20]) + np.array([0.0, 0.05, 0.0])
        origin = torch.from_numpy((target + 2.5 * away).astype(np.float32)).to(field.device)
        direction = torch.from_numpy((-away).astype(np.float32)).to(field.device)
        depth, _ = trace(field, origin, direction)
        hit = depth > 0
        found.append((origin + depth[:, None] * direction)[hit][:missing])
        missing -= len(found[-1])
    return torch.cat(found) if found else torch.zeros(0, 3, device=field.device)
