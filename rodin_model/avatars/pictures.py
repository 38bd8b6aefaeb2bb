"""Pictures of avatars: rays step through the baked distances, land on the exact surface and take its colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.fused import march, runs_on
from rodin_model.avatars.geometry import AvatarField
from rodin_model.cameras import Camera, box_near_far

#: Rays per pixel along each side, most steps of a ray, and how close counts as a hit.
OVERSAMPLING, STEPS, CLOSE = 2, 96, 0.0015
#: A ray that grazes a surface moves on by at least this much, so that it does not starve beside it.
STRIDE = 0.004


@dataclass(frozen=True)
class Picture:
    """A rendered view: `rgb` [H, W, 3] in 0..1 over the background, `depth` [H, W] along the unit ray (0 where there is
    nothing), `alpha` [H, W] antialiased coverage in 0..1."""

    rgb: Tensor
    depth: Tensor
    alpha: Tensor


def render_avatar(field: AvatarField | Attributes, camera: Camera, *, background: float = 1.0,
                  device: torch.device | str = "cpu") -> Picture:
    """The picture of one avatar that `camera` sees, on a gray `background` in 0..1; see `Picture`."""
    return render_views(field, [camera], background=background, device=device)[0]


@torch.no_grad()
def render_views(field: AvatarField | Attributes, cameras: list[Camera], *, background: float = 1.0,
                 device: torch.device | str = "cpu") -> list[Picture]:
    """Several pictures of one avatar, `OVERSAMPLING`^2 rays a pixel; cheaper than one by one."""
    if isinstance(field, Attributes):
        field = AvatarField(field, device)
    if not 0.0 <= background <= 1.0:
        raise ValueError(f"background must lie in [0, 1]; got {background}")
    rays = [camera.resized(camera.width * OVERSAMPLING, camera.height * OVERSAMPLING).rays(field.device)
            for camera in cameras]
    origins, directions = torch.cat([o for o, _ in rays]), torch.cat([d for _, d in rays])
    depth, which = trace(field, origins, directions)
    hit = (depth > 0).nonzero()[:, 0]
    color = torch.zeros_like(origins)
    color[hit] = field.color(origins[hit] + depth[hit, None] * directions[hit], which[hit])
    pictures, start = [], 0
    for camera in cameras:
        end = start + camera.width * camera.height * OVERSAMPLING ** 2
        pictures.append(_resolve(camera, color[start:end], depth[start:end], background))
        start = end
    return pictures


def _resolve(camera: Camera, color: Tensor, depth: Tensor, background: float) -> Picture:
    """Average the rays of every pixel: colours premultiplied, depths only over the rays that hit."""
    s = OVERSAMPLING
    shape = (camera.height, s, camera.width, s)
    hit = (depth > 0).to(color.dtype)
    alpha = hit.reshape(shape).mean((1, 3))
    rgb = color.reshape(*shape, 3).mean((1, 3)) + (1 - alpha)[..., None] * background
    far = depth.reshape(shape).sum((1, 3)) / hit.reshape(shape).sum((1, 3)).clamp_min(1)
    return Picture(rgb.clamp(0, 1), far, alpha)


def trace(field: AvatarField, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays [N, 3] first meet the surface: distances [N] (0 for those that miss) and part indices [N]."""
    near, far = box_near_far(origins, directions, 0.95)
    depth, which = torch.zeros_like(near), torch.zeros(len(near), dtype=torch.long, device=near.device)
    if field.fused is None:
        index, t = _step(field, origins, directions, near, far)
    else:
        rays = (origins, directions, near, far)
        landing = march(field.grid, *rays, STEPS, CLOSE, STRIDE) if runs_on(near) else march_all(field, *rays)
        index = (landing >= 0).nonzero()[:, 0]
        t = landing[index]
    gap, part = field.nearest(origins[index] + t[:, None] * directions[index])
    depth[index] = t + gap.clamp(-0.02, 0.02)
    which[index] = part
    return depth, which


def _step(field: AvatarField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rays that come close to the surface, and how far along; rays that are done are dropped."""
    alive = (far > near).nonzero()[:, 0]
    o, d, t, end = origins[alive], directions[alive], near[alive].clone(), far[alive]
    landed, where = [], []
    for _ in range(STEPS):
        gap = field.lookup(o + t[:, None] * d)
        t = t + torch.where(gap < CLOSE, gap, (gap * 0.92).clamp_min(STRIDE))
        done = gap < CLOSE
        landed.append(alive[done])
        where.append(t[done])
        keep = ~done & (t < end)
        alive, o, d, t, end = alive[keep], o[keep], d[keep], t[keep], end[keep]
        if not len(alive):
            break
    return torch.cat(landed), torch.cat(where)


def march_all(field: AvatarField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """The same without dropping rays, [N]: where each lands, -1 where it misses; what `kernels.march` computes."""
    t, going, landed = near.clone(), far > near, torch.full_like(near, -1.0)
    for _ in range(STEPS):
        gap = field.lookup(origins + t[:, None] * directions)
        hit = gap < CLOSE
        t = torch.where(going, t + torch.where(hit, gap, (gap * 0.92).clamp_min(STRIDE)), t)
        landed = torch.where(going & hit, t, landed)
        going = going & ~hit & (t < far)
    return landed
