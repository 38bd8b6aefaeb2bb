"""What a photograph adds to a drawn head: another light, a background, a crop that nobody centred.

Every change is drawn from one generator, so a step of training can be repeated to the bit. Nothing is mirrored: words
such as "side part" do not say which side, but a portrait does. The ranges are about those in which people still name
the colours of hair, skin and clothes rightly; beyond them the labels would no longer be true.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.train.changes import in_full_precision
from rodin_model.train.views import uniform_on_host

#: Share of the pictures that keep a white background, as a cut-out portrait has.
WHITE = 0.25
#: Largest turn in radians, shift in halves of the picture, and the range of scales.
TURN, SHIFT, SCALE = 0.15, 0.18, (0.75, 1.3)
#: Largest change of brightness (a factor), of gamma, of one channel against the others, and of light across a head.
GAIN, GAMMA, TINT, SHADE = 1.25, 1.3, 1.08, 0.35


class Draws:
    """Numbers for `count` pictures from one generator, on the generator's device."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator, self.device = count, generator, generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[count, *shape] between `low` and `high`."""
        drawn = torch.rand((self.count, *shape), generator=self.generator, device=self.device)
        return drawn * (high - low) + low

    def factor(self, *shape: int, most: float) -> Tensor:
        """[count, *shape] between 1 / `most` and `most`, as often above 1 as below."""
        return torch.exp(self.uniform(*shape, low=-1.0) * math.log(most))

    def normal(self, *shape: int) -> Tensor:
        """[count, *shape], standard normal."""
        return torch.randn((self.count, *shape), generator=self.generator, device=self.device)


@in_full_precision
def photographed(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Premultiplied RGBA [B, 4, S, S] in [0, 1] as photographs [B, 3, S, S] of the same heads, float32 in [0, 1].

    In the order of the world: the head is framed, lit, put before its background, and then the camera sees it. Raises
    ValueError for anything that is no batch of square RGBA pictures.
    """
    if rgba.ndim != 4 or rgba.shape[1] != 4 or rgba.shape[-1] != rgba.shape[-2]:
        raise ValueError(f"rgba must be [B, 4, S, S]; got {list(rgba.shape)}")
    draws = Draws(len(rgba), generator)
    head = lit(framed(rgba.float(), draws), draws)
    return exposed(head[:, :3] + (1 - head[:, 3:]) * background(rgba.shape[-1], draws), draws)


def framed(rgba: Tensor, draws: Draws) -> Tensor:
    """Turned, shifted and scaled; what comes in from outside is empty, and shoulders that leave below go on below."""
    angle, scale = draws.uniform(low=-TURN, high=TURN), draws.uniform(low=SCALE[0], high=SCALE[1])
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1),
                        torch.stack([angle.sin(), angle.cos()], 1)], 1) / scale[:, None, None]
    matrix = torch.cat([turn, draws.uniform(2, 1, low=-SHIFT, high=SHIFT)], 2)
    size = rgba.shape[-1]
    # a few more rows of the last one, so that a head moved up does not float over its own cut edge
    below = F.pad(rgba, (0, 0, 0, size // 2), mode="replicate")
    grid = F.affine_grid(matrix, list(rgba.shape), align_corners=False)
    grid = torch.stack([grid[..., 0], (grid[..., 1] + 1) * (size / below.shape[-2]) - 1], -1)
    return F.grid_sample(below, grid, align_corners=False)


def lit(rgba: Tensor, draws: Draws) -> Tensor:
    """Light that falls off across the head in some direction: colours times 1 + s (d . x), alpha unchanged.

    d is a random unit vector in the picture, x the place in [-1, 1]^2, |s| at most `SHADE`.
    """
    size = rgba.shape[-1]
    axis = (torch.arange(size, device=draws.device) + 0.5) / size * 2 - 1
    angle = draws.uniform(high=2 * torch.pi)[:, None, None]
    ramp = angle.cos() * axis[None, None, :] + angle.sin() * axis[None, :, None]
    light = 1 + draws.uniform(1, 1, high=SHADE) * ramp
    color = torch.minimum((rgba[:, :3] * light[:, None]).clamp_min(0), rgba[:, 3:])
    return torch.cat([color, rgba[:, 3:]], 1)


def background(size: int, draws: Draws) -> Tensor:
    """[B, 3, size, size]: white, a flat colour, a gradient from one to another, or blots of several, as rooms are."""
    first, second = draws.uniform(3, 1, 1), draws.uniform(3, 1, 1)
    axis = torch.linspace(0, 1, size, device=draws.device)
    angle = draws.uniform(high=2 * torch.pi)[:, None, None]
    ramp = (angle.cos() * axis[None, None, :] + angle.sin() * axis[None, :, None])[:, None]
    low, high = (ramp.flatten(1).aminmax(dim=1)[i].view(-1, 1, 1, 1) for i in (0, 1))
    ramp = (ramp - low) / (high - low)
    blots = torch.lerp(F.interpolate(draws.uniform(3, 6, 6), (size, size), mode="bicubic"),
                       F.interpolate(draws.uniform(3, 24, 24), (size, size), mode="bilinear"), 0.3)
    kinds = torch.stack([torch.ones_like(blots), first.expand(-1, -1, size, size),
                         torch.lerp(first, second, ramp), torch.lerp(first, blots, draws.uniform(1, 1, 1))])
    which = torch.where(draws.uniform() < WHITE, 0, (1 + 3 * draws.uniform()).long().clamp(1, 3))
    return kinds[which, torch.arange(draws.count, device=draws.device)].clamp(0, 1)


def exposed(images: Tensor, draws: Draws) -> Tensor:
    """The camera: gamma, brightness, white balance, a lens out of focus now and then, and grain."""
    size = images.shape[-1]
    images = images.clamp(0, 1) ** draws.factor(1, 1, 1, most=GAMMA)
    images = images * draws.factor(1, 1, 1, most=GAIN) * draws.factor(3, 1, 1, most=TINT)
    small = max(8, int(size * (uniform_on_host(draws.generator) * 0.5 + 0.4)))
    soft = F.interpolate(F.interpolate(images, (small, small), mode="bilinear", antialias=True), (size, size),
                         mode="bilinear")
    images = torch.where(draws.uniform(1, 1, 1) < 0.3, soft, images)
    return (images + draws.normal(3, size, size) * draws.uniform(1, 1, 1, high=0.04)).clamp(0, 1)
