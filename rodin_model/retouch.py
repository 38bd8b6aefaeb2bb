"""Planes are changed until they say at points what is wanted there: a density and a colour.

Features are a sum over three planes, so what one plane shows, it shows at every depth. But the decoder is not linear:
with other features in the other two planes it says one thing in front and another behind. Which features these are is
found by descent on what the decoder says at points (`retouched`), without rays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import sample_triplane
from rodin_kernels.layouts import plane_axes
from rodin_model.cameras import turntable
from rodin_model.regions import face
from rodin_model.triplane import Avatar

#: First learning rate of Adam, in the units of the planes, and points in a step.
RATE, POINTS = 0.02, 8192
#: Weight of the error of colours beside that of what is solid: a faint face differs little in colour.
COLOR = 20.0
#: How many times as often points of a face that is to stay are drawn.
FACE = 2
#: How long a way light goes through what is solid, and through air, where haze is seen: in the box's units.
SHORT, LONG = 0.1, 1.0
#: Half the depth around a visible surface in which points are drawn, and how far beside it air is looked for.
SHELL, BESIDE = 0.06, 0.06
#: Density from which on a point is inside, and below which it is air.
INSIDE, AIR = 2.0, 0.5
#: Cameras around the head, their pixels, and points for each pixel that meets something.
VIEWS, SIZE, PER_PIXEL = 12, 64, 4
#: How many points anywhere are tried at least: an avatar may be empty.
FEWEST = 4096
#: Samples along a ray.
SAMPLES = 48


class Said(NamedTuple):
    """What planes say at points: `density` [N] >= 0 and `rgb` [N, 3] in [0, 1]."""

    density: Tensor
    rgb: Tensor

    def toward(self, other: Said, share: Tensor) -> Said:
        """This where `share` [N] is 0, and the other where it is 1."""
        return Said(torch.lerp(self.density, other.density, share), torch.lerp(self.rgb, other.rgb, share[:, None]))


class Wanted(NamedTuple):
    """What planes are to say at `points` [N, 3] of the box: `density` [N] >= 0 and `rgb` [N, 3] in [0, 1]. `colored`
    [N] is 1 where the colour matters, 0 where only the density does; `often` [N] is how often a point is drawn beside
    the others."""

    points: Tensor
    density: Tensor
    rgb: Tensor
    colored: Tensor
    often: Tensor


def opaque(density: Tensor, length: Tensor | float = SHORT) -> Tensor:
    """How much of the light is stopped on a way of this length through this density, in [0, 1]."""
    return 1 - torch.exp(-length * density)


def smooth(planes: Tensor) -> Tensor:
    """[3, C, H, W] blurred by (1 2 1)/4 along rows and columns, borders repeated."""
    x = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4


def falling(rate: float, done: float) -> float:
    """A learning rate after a share `done` of the steps: half a cosine from `rate` down to a twentieth of it."""
    return rate * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))


def retouched(avatar: Avatar, wanted: Wanted, steps: int, generator: torch.Generator,
              progress: Callable[[int, int], None] | None = None) -> Avatar:
    """`avatar` with planes changed so that they say what is wanted:

        min_d  mean_x  COLOR colored(x) a(x) |rgb_d(x) - rgb(x)|^2 / 3 + (a_d(x) - a(x))^2,   a = opaque(density)

    over changes d of the planes that are smooth over neighbouring texels, by `steps` of Adam from d = 0; in air a is of
    a longer way (`LONG`), and the mean is over points as `often` draws them. The generator is one on the CPU. Works in
    float32, without autocast.
    """
    start, shared = avatar.planes.detach().float(), avatar.conventions
    length = torch.where(wanted.density < AIR, LONG, SHORT)
    goal = opaque(wanted.density, length)
    weight = wanted.colored * opaque(wanted.density)
    drawn = torch.multinomial(wanted.often.double().cpu(), steps * POINTS, True, generator=generator)
    with torch.enable_grad(), torch.autocast(start.device.type, enabled=False):
        change = torch.zeros_like(start).requires_grad_()
        adam = torch.optim.Adam([change], lr=RATE, betas=(0.9, 0.98))
        for step, some in enumerate(drawn.to(start.device).view(steps, POINTS)):
            adam.param_groups[0]["lr"] = falling(RATE, step / steps)
            adam.zero_grad(set_to_none=True)
            features = sample_triplane((start + smooth(change))[None], wanted.points[some][None], **shared)[0]
            density, rgb = avatar.decoder(features)
            color = (rgb - wanted.rgb[some]).square().mean(1) * weight[some]
            (COLOR * color + (opaque(density, length[some]) - goal[some]).square()).mean().backward()
            adam.step()
            if progress is not None:
                progress(step + 1, steps)
    planes = start + smooth(change.detach())
    return dataclasses.replace(avatar, planes=planes.to(avatar.planes.dtype))


def said(avatar: Avatar, points: Tensor) -> Said:
    """What `avatar` says at points [N, 3]."""
    return Said(*avatar.decode(points))


def wanted_of(what: Said, points: Tensor, colored: Tensor, share: Tensor) -> Wanted:
    """`what` is wanted at points, as `points_of` gives them, where a large `share` [N] means a change.

    What changes and what stays, air and all else are drawn alike, though there may be few points of one; twice as often
    the face, where it stays: nobody sees a hundredth of the colour elsewhere.
    """
    changes, air = share > 0.5, what.density < AIR
    stays = (face(points) > 0.5) & ~changes & ~air
    often = torch.zeros_like(share)
    for some, weight in ((changes & air, 1), (changes & ~air, 1), (~changes & air, 1), (~changes & ~air & ~stays, 1),
                         (stays, FACE)):
        often[some] = weight / some.sum()
    return Wanted(points, what.density, what.rgb, colored, often)


def above(planes: Tensor, layout: Sequence[str], points: Tensor, share: Tensor) -> Tensor:
    """The mean `share` [N] of the points [N, 3] that project onto each texel of planes [3, C, H, W], over neighbouring
    texels: [3, 1, H, W], 0 where no point is near."""
    height, width = planes.shape[-2:]
    size = torch.tensor([height, width], device=points.device)
    sums = points.new_zeros(2, 3, height * width)
    for i, (column, row) in enumerate(plane_axes(layout)):
        texel = ((points[:, [row, column]] + 1) / 2 * size).long().clamp_min(0).minimum(size - 1)
        for total, values in zip(sums, (share, torch.ones_like(share)), strict=True):
            total[i].index_add_(0, texel[:, 0] * width + texel[:, 1], values)
    shares, counts = smooth(smooth(sums.view(2, 3, height, width)))
    return (shares / counts.clamp_min(1e-6))[:, None]


@torch.no_grad()
def points_of(avatars: Sequence[Avatar], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [N, 3] of the box by which avatars are told apart, and for which of them [N] the colour matters.

    Most lie about the surfaces that are seen from all around, where colours matter; others in the air beside these,
    anywhere, and inside. The generator is one on the CPU.
    """
    seen = torch.cat([part for avatar in avatars for part in _visible(avatar, generator)])
    anywhere = torch.rand(max(len(seen), FEWEST), 3, generator=generator).to(seen) * 2 - 1
    deep = torch.stack([avatar.density(anywhere) > INSIDE for avatar in avatars]).any(0)
    inside = anywhere[deep][:len(anywhere) // 8]
    beside = seen + BESIDE * torch.randn(seen.shape, generator=generator).to(seen)
    empty = torch.stack([avatar.density(beside) < AIR for avatar in avatars]).all(0)
    points = torch.cat([seen, beside[empty][:len(seen) // 2], anywhere[~deep][:len(anywhere) // 2], inside])
    within = (points.abs() <= 1).all(1)
    return points[within], (torch.arange(len(points), device=points.device) < len(seen)).float()[within]


def _visible(avatar: Avatar, generator: torch.Generator) -> Iterator[Tensor]:
    """Points about what cameras all around see."""
    for camera in (*turntable(VIEWS, SIZE, pitch=25.0), *turntable(VIEWS, SIZE, pitch=-10.0)):
        seen = avatar.render(camera, num_samples=SAMPLES, outputs=("depth", "opacity"))
        assert seen.depth is not None and seen.opacity is not None
        origins, directions = camera.rays(avatar.device)
        met = (seen.opacity > 0.5).flatten()
        depth = (seen.depth / seen.opacity.clamp_min(1e-3)).flatten()[met]
        for _ in range(PER_PIXEL):
            aside = SHELL * (2 * torch.rand(len(depth), generator=generator).to(depth) - 1)
            yield origins[met] + directions[met] * (depth + aside)[:, None]
