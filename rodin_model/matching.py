"""An avatar is brought closer to the portrait that it was made from.

z says what kind of person a portrait shows: glasses, a green hat. Where these glasses end and which green it is, only
the portrait says. The renderer is differentiable, so planes P are changed until their picture is the portrait, as GAN
inversion tunes a generator about the latent that it found (pivotal tuning, Roich et al. 2022):

    min_d  |picture(P + d) - portrait|^2 + K |views(P + d) - views(P)|^2 + A air(P + d) + R |grad d|^2

What the portrait does not show is to stay as it was drawn, so views from all around are compared, at what its camera
does not see; and where air was, air stays, or paint would hang before the face. A portrait from the side counts again,
mirrored, with less weight: faces are nearly symmetric (Yin et al. 2023, section 3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rodin_kernels import render_triplane, sample_triplane
from rodin_model.cameras import Camera, box_near_far
from rodin_model.fit_data import shell_samples, widened
from rodin_model.retouch import falling, opaque, smooth
from rodin_model.triplane import Avatar

#: Steps of Adam, and its first learning rate, in the units of the planes.
STEPS, RATE = 60, 0.02
#: Pixels at which a portrait is compared, and those of the views that are to stay.
SIZE, VIEW_SIZE = 128, 64
#: Rays through the portrait in a step, through the other views, points of air, and samples along a ray.
RAYS, VIEW_RAYS, AIR, SAMPLES = 1024, 768, 1024, 14
#: Samples along a ray where the avatar is looked at before it changes.
GLANCES = 48
#: Weights of what is to stay, of air, of roughness, and of the mirrored portrait; of colours that the portrait shows,
#: in the views from elsewhere.
KEEP, FREE, ROUGH, MIRRORED, SHOWN = 1.0, 3.0, 0.1, 0.5, 0.3
#: Squared error beyond which a mirrored pixel does not count more: heads are not wholly symmetric.
CLIPPED = 0.05
#: Half the depth within which the portrait's surface may move, and how far before it is air, in the box's units.
SHELL, BEFORE = 0.1, 0.15
#: Degrees aside from which on a portrait counts mirrored, too; between the cameras tried; and the pitch of all.
ASIDE, TRIED, PITCH = 8.0, 10.0, 5.0
#: Mean squared error up to which an avatar and its portrait are pictures of one kind; photographs have ten times as
#: much, and what is matched to them looks like a mask.
ALIKE = 0.04


class Rays(NamedTuple):
    """Rays [R] and what is to be seen along them: `rgb` [R, 3] on white and `opacity` [R]; `depth` [R] about where the
    surface is, 0 where there is none; `weight` [R] of the colours."""

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    depth: Tensor
    rgb: Tensor
    opacity: Tensor
    weight: Tensor

    def at(self, index: Tensor) -> Rays:
        """Some of them."""
        return Rays(*(part[index] for part in self))

    def draw(self, count: int, generator: torch.Generator) -> Rays:
        """`count` of them, with replacement."""
        return self.at(torch.randint(len(self.near), (count,), generator=generator).to(self.near.device))


def closer(avatar: Avatar, portrait: Tensor, *, always: bool = False, seed: int = 0,
           bar: dict[str, Any] | None = None) -> Avatar:
    """`avatar` matched with a portrait [3, H, W] in [0, 1], from where it looks most like it.

    Unless `always`, only if it is near already (`ALIKE`); else the avatar as it is. `bar`: arguments for tqdm.
    """
    yaw, error = locate(avatar, portrait)
    if not always and error > ALIKE:
        return avatar
    with tqdm(**{"total": STEPS, "desc": "portrait", "leave": False, **(bar or {})}) as shown:
        return match(avatar, portrait, yaw, seed=seed, progress=lambda done, total: shown.update())


def locate(avatar: Avatar, portrait: Tensor, size: int = 48) -> tuple[float, float]:
    """The yaw, in degrees, from which `avatar` looks most like a portrait [3, H, W] in [0, 1] on white, and the mean
    squared error of their pictures there."""
    wanted = _shrunk(portrait, size).to(avatar.device)

    def error(yaw: float) -> tuple[float, float]:
        seen = avatar.picture(Camera.orbit(yaw, PITCH, size), num_samples=GLANCES).flatten(0, 1)
        return float((seen - wanted).square().mean()), yaw

    count = int(70 / TRIED)
    best = min(error(TRIED * i) for i in range(-count, count + 1))
    for step in (TRIED / 2, TRIED / 4):
        best = min(best, error(best[1] - step), error(best[1] + step))
    return best[1], best[0]


def match(avatar: Avatar, portrait: Tensor, yaw: float = 0.0, *, steps: int = STEPS, seed: int = 0,
          progress: Callable[[int, int], None] | None = None) -> Avatar:
    """`avatar` with planes changed so that from `yaw` degrees it looks like a portrait [3, H, W] in [0, 1].

    A portrait on white is matched as a whole; of any other, only what lies within the avatar's outline. Everything
    random follows from `seed`. Works in float32, without autocast.
    """
    generator, start = torch.Generator().manual_seed(seed), avatar.planes.detach().float()
    before, portrait = dataclasses.replace(avatar, planes=start), portrait.to(avatar.device)
    told, depths = [], []
    for angle, picture, weight in ((yaw, portrait, 1.0), (-yaw, portrait.flip(-1), MIRRORED))[:1 + (abs(yaw) > ASIDE)]:
        camera = Camera.orbit(angle, PITCH, SIZE)
        rays, close = _glance(before, camera)
        told.append((_portrait_rays(rays, close, picture), weight))
        depths.append((camera, rays.depth))
    views, air = _others(before, yaw, depths), _air(before, generator)
    with torch.enable_grad(), torch.autocast(start.device.type, enabled=False):
        change = torch.zeros_like(start).requires_grad_()
        adam = torch.optim.Adam([change], lr=RATE, betas=(0.9, 0.98))
        for step in range(steps):
            adam.param_groups[0]["lr"] = falling(RATE, step / steps)
            adam.zero_grad(set_to_none=True)
            soft = smooth(smooth(change))
            now = _Look(before, (start + soft)[None], generator)
            loss = torch.stack([*(weight * now.portrait(rays, RAYS // len(told), weight < 1) for rays, weight in told),
                                KEEP * now.stays(views), FREE * now.air(air), ROUGH * _roughness(soft)])
            loss.sum().backward()
            adam.step()
            if progress is not None:
                progress(step + 1, steps)
    planes = (start + smooth(smooth(change.detach()))).to(avatar.planes.dtype)
    return dataclasses.replace(avatar, planes=planes,
                               metadata={**avatar.metadata, "matched": {"yaw": yaw, "steps": steps}})


class _Look:
    """Planes [1, 3, C, R, R] in the middle of a step, and what they get wrong."""

    def __init__(self, avatar: Avatar, planes: Tensor, generator: torch.Generator) -> None:
        self.decoder, self.shared = avatar.decoder, avatar.conventions
        self.planes, self.generator = planes, generator

    def portrait(self, told: Rays, count: int, clipped: bool) -> Tensor:
        """Squared error along rays of a portrait, and what hangs in the air before its surface."""
        rays = told.draw(count, self.generator)
        u = self._uniform(count, SAMPLES)
        bins = (torch.arange(SAMPLES, device=u.device) + u) / SAMPLES
        shell = (rays.depth[:, None] + SHELL * (2 * bins - 1)).clamp_min(0)
        t = torch.where((rays.depth > 0)[:, None], shell, shell_samples(rays.depth, rays.near, rays.far, u))
        error = (self._seen(rays, t)[0] - rays.rgb).square().mean(1)
        known = rays.at((rays.depth > 0).nonzero()[:count // 2, 0])
        before = torch.lerp(known.near, (known.depth - BEFORE).maximum(known.near), self._uniform(len(known.near)))
        points = known.origins + known.directions * before[:, None]
        return (error.clamp(max=CLIPPED) if clipped else error).mean() + FREE * self._filled(points)

    def stays(self, views: Rays) -> Tensor:
        """How differently the views from elsewhere look now."""
        rays = views.draw(VIEW_RAYS, self.generator)
        t = shell_samples(rays.depth, rays.near, rays.far, self._uniform(VIEW_RAYS, SAMPLES))
        rgb, opacity = self._seen(rays, t)
        return ((rgb - rays.rgb).square().mean(1) * rays.weight + (opacity - rays.opacity).square()).mean()

    def air(self, points: Tensor) -> Tensor:
        """How much there is where nothing was."""
        return self._filled(points[torch.randint(len(points), (AIR,), generator=self.generator).to(points.device)])

    def _filled(self, points: Tensor) -> Tensor:
        if not len(points):
            return points.new_zeros(())
        density, _ = self.decoder(sample_triplane(self.planes, points[None], **self.shared)[0])
        return opaque(density).square().mean()

    def _seen(self, rays: Rays, t: Tensor) -> tuple[Tensor, Tensor]:
        seen = render_triplane(self.planes, rays.origins[None], rays.directions[None], self.decoder,
                               near=rays.near[None], far=rays.far[None], num_samples=SAMPLES, t=t[None],
                               background=self.planes.new_ones(3), outputs=("rgb", "opacity"), **self.shared)
        return cast(Tensor, seen.rgb)[0], cast(Tensor, seen.opacity)[0]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.planes.device)


def _glance(avatar: Avatar, camera: Camera) -> tuple[Rays, Tensor]:
    """All rays of a camera with what is seen along them, and which of them meet the avatar or pass close by."""
    seen = avatar.render(camera, num_samples=GLANCES)
    rgb, depth, opacity = (cast(Tensor, part) for part in (seen.rgb, seen.depth, seen.opacity))
    depth = widened(torch.where(opacity > 0.3, depth / opacity.clamp_min(1e-3), 0.0))
    close = F.max_pool2d((opacity > 0.02).float()[None, None], 5, 1, 2).flatten() > 0
    origins, directions = camera.rays(avatar.device)
    near, far = box_near_far(origins, directions)
    return Rays(origins, directions, near, far, depth.flatten(), rgb.flatten(0, 1), opacity.flatten(),
                torch.ones_like(near)), close


def _portrait_rays(rays: Rays, close: Tensor, portrait: Tensor) -> Rays:
    """Of a glance, the rays through a portrait; where it is not on white, those within the avatar's outline."""
    wanted = _shrunk(portrait, SIZE)
    edge = torch.cat([portrait[:, 0].T, portrait[:, :, 0].T, portrait[:, :, -1].T])
    some = close | (wanted < 0.97).any(1) if float(edge.mean(1).median()) > 0.97 else rays.opacity > 0.5
    if not bool(some.any()):
        raise ValueError("the avatar cannot be matched with a portrait: nothing of it is to be seen")
    return rays._replace(rgb=wanted).at(some)


def _others(avatar: Avatar, yaw: float, depths: list[tuple[Camera, Tensor]]) -> Rays:
    """Views from all around; colours that cameras with `depths` see count less."""
    found = []
    for camera in _around(yaw):
        rays, close = _glance(avatar, camera)
        points, shown = rays.origins + rays.directions * rays.depth[:, None], torch.zeros_like(close)
        for eye, depth in depths:
            pixel, distance = _projected(eye, points)
            shown |= (rays.depth > 0) & (distance < depth[pixel] + 0.06)
        found.append(rays._replace(weight=torch.where(shown, SHOWN, 1.0)).at(close))
    return Rays(*(torch.cat(part) for part in zip(*found, strict=True)))


def _around(yaw: float) -> Iterator[Camera]:
    """Twelve cameras around the head, from below and from above in turn, none of them the portrait's."""
    for i in range(12):
        yield Camera.orbit(yaw + 15 + 30 * i, PITCH + (20 if i % 2 else -10), VIEW_SIZE)


def _projected(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel, a place in [height * width], in which a camera sees points [N, 3], and how far away they are."""
    matrix = camera.cam2world.to(points)
    x, y, z = ((points - matrix[:3, 3]) @ matrix[:3, :3]).unbind(1)
    column = (x / z * camera.fx + camera.cx).long().clamp(0, camera.width - 1)
    row = (y / z * camera.fy + camera.cy).long().clamp(0, camera.height - 1)
    return row * camera.width + column, (points - matrix[:3, 3]).norm(dim=1)


def _air(avatar: Avatar, generator: torch.Generator, count: int = 60_000) -> Tensor:
    """Points [N, 3] of the box where nothing is; a corner of the box is among them, so that there is one."""
    points = torch.cat([torch.rand(count, 3, generator=generator) * 2 - 1, torch.ones(1, 3)]).to(avatar.device)
    density = avatar.density(points)
    return points[(density < 0.5) | (torch.arange(len(points), device=points.device) == count)]


def _shrunk(portrait: Tensor, size: int) -> Tensor:
    """A picture [3, H, W] as the colours of size^2 pixels [size^2, 3]."""
    return F.interpolate(portrait.float()[None], (size, size), mode="bilinear", antialias=True)[0].flatten(1).T


def _roughness(planes: Tensor) -> Tensor:
    """Mean squared difference of neighbouring texels."""
    return planes.diff(dim=-1).square().mean() + planes.diff(dim=-2).square().mean()
