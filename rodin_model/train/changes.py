"""How pictures are changed in training, so that a tower or a reader learns what they show and not how they look."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES
from rodin_model.train.views import uniform_on_host

#: Attributes that a picture in other colours no longer shows.
COLORS = ("skin_tone", "eye_color", "hair_color", "makeup", "clothing_color")


def in_full_precision(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`change` of pictures, the first argument, outside of mixed precision: bfloat16 misplaces pixels."""
    @wraps(change)
    def exact(images: Tensor, *arguments: Any, **options: Any) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return change(images, *arguments, **options)
    return exact


def on_background(rgba: Tensor, color: Tensor) -> Tensor:
    """Premultiplied RGBA [B, 4, H, W] in [0, 1] over colours [B, 3]: [B, 3, H, W]."""
    return rgba[:, :3] + (1.0 - rgba[:, 3:]) * color[:, :, None, None]


def plain(rgba: Tensor) -> Tensor:
    """Premultiplied RGBA [B, 4, S, S] in [0, 1] on white: [B, 3, S, S]."""
    return on_background(rgba, rgba.new_ones(len(rgba), 3)).clamp(0, 1)


@in_full_precision
def augment(rgba: Tensor, generator: torch.Generator, white: float = 0.6) -> Tensor:
    """Premultiplied RGBA [B, 4, S, S] in [0, 1] to pictures [B, 3, S, S] that are mirrored, moved, dimmed, blurred.

    A share `white` keeps the white background, the others get a flat colour, so that portraits from elsewhere read too.
    """
    count, _, size, _ = rgba.shape

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low

    angle, scale = uniform(count, low=-0.08, high=0.08), uniform(count, low=0.85, high=1.15)
    mirror = torch.where(uniform(count, low=0, high=1) < 0.5, -1.0, 1.0)
    turn = torch.stack([torch.stack([angle.cos() * mirror, -angle.sin()], 1),
                        torch.stack([angle.sin() * mirror, angle.cos()], 1)], 1)
    matrix = torch.cat([turn * scale[:, None, None], uniform(count, 2, 1, low=-0.1, high=0.1)], 2)
    rgba = F.grid_sample(rgba, F.affine_grid(matrix, list(rgba.shape), align_corners=False), align_corners=False)
    small = int((uniform_on_host(generator) * 0.35 + 0.6) * size)
    soft = F.interpolate(rgba, (small, small), mode="bilinear", antialias=True)
    soft = F.interpolate(soft, (size, size), mode="bilinear")
    rgba = torch.where(uniform(count, 1, 1, 1, low=0, high=1) < 0.25, soft, rgba)
    keep = uniform(count, 1, low=0, high=1) < white
    images = on_background(rgba, torch.where(keep, 1.0, uniform(count, 3, low=0, high=1)))
    gain = uniform(count, 1, 1, 1, low=0.9, high=1.1) * uniform(count, 3, 1, 1, low=0.97, high=1.03)
    images = images * gain + uniform(count, 1, 1, 1, low=-0.03, high=0.03)
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    return (images + noise * uniform(count, 1, 1, 1, low=0.0, high=0.03)).clamp(0, 1)


def recolor(images: Tensor, generator: torch.Generator, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """A `share` of the pictures [B, 3, S, S] in other colours, white staying white, and which they are, bool [B].

    A small data set is learned by heart by its colours. Shapes must be read without them, so the attributes that are
    colours (`COLORS`) are not asked of these pictures. Channels trade places and are mixed, contrast changes.
    """
    count = len(images)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=generator.device)

    order = uniform(3).argsort(1)
    swapped = torch.gather(images, 1, order[:, :, None, None].expand_as(images))
    mixed = torch.lerp(swapped, swapped.mean(1, keepdim=True), uniform(1, 1, 1) * 0.9)
    power = torch.exp(0.7 * (2 * uniform(1, 1, 1) - 1))
    changed = uniform() < share
    return torch.where(changed[:, None, None, None], mixed.clamp(0, 1) ** power, images), changed


def color_weights(changed: Tensor) -> Tensor:
    """[B, attributes]: 0 for the attributes that are colours of the pictures that are `changed`, bool [B], else 1."""
    return torch.where(changed[:, None], _without_colors(changed.device), 1.0)


@lru_cache
def _without_colors(device: torch.device) -> Tensor:
    """[1, attributes]: 0 for colours, 1 for the others; kept, because copying it in every step would wait each time."""
    return torch.tensor([[float(name not in COLORS) for name in CHOICES]], device=device)
