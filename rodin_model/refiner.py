"""The convolutional refiner (Rodin, section 3.4): from what is rendered to a picture of twice the resolution.

It is optional and off by default. Planes show the same head from everywhere; the refiner sees one picture at a time, so
what it adds need not agree between views. `rodin_model.evaluation.consistency` measures that cost.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_kernels import Rendered
from rodin_model import checkpoints
from rodin_model.cameras import Camera
from rodin_model.config import RefinerConfig, from_dict, to_dict

if TYPE_CHECKING:
    from rodin_model.triplane import Avatar

#: Channels that every refiner reads, before the plane features: premultiplied red, green, blue, opacity, nearness.
SEEN = 5
#: Share of a dense block's result that is added to what went in (ESRGAN).
RESIDUAL = 0.2


class Refiner(nn.Module):
    """What is rendered [B, 5 + F, H, W] to premultiplied colour and opacity [B, 4, sH, sW].

        out = enlarge(rgba) + network(seen)

    with bilinear enlargement and a last layer that starts at zero: untrained, it changes nothing. The body has ESRGAN's
    residual-in-residual dense blocks (Wang et al. 2018) and works at low resolution; pixels are shuffled at the end.
    """

    def __init__(self, config: RefinerConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or RefinerConfig()
        inputs = SEEN + c.features
        self.stem = nn.Conv2d(inputs, c.width, c.shrink + 2, c.shrink, 1)
        self.body = nn.Sequential(*(_Block(c.width, c.growth, c.dense) for _ in range(c.blocks)))
        self.trunk = _convolution(c.width, c.width)
        self.rise = _convolution(c.width, c.detail * c.shrink ** 2)
        self.near = _convolution(inputs, c.detail)
        self.mix = _convolution(c.detail, c.detail)
        self.head = _convolution(c.detail, 4 * c.scale ** 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, seen: Tensor) -> Tensor:
        """`seen` [B, 5 + F, H, W] as `look` makes it -> rgba [B, 4, sH, sW], premultiplied, not yet clamped to [0, 1].

        Any H and W of at least 1, any floating-point dtype; the result has it, too. Differentiable. TypeError or
        ValueError for anything else.
        """
        if not isinstance(seen, Tensor) or not seen.is_floating_point():
            raise TypeError("seen must be a floating-point tensor [B, channels, H, W]")
        channels = SEEN + self.config.features
        if seen.ndim != 4 or seen.shape[1] != channels or 0 in seen.shape:
            raise ValueError(f"seen must have the shape [B, {channels}, H, W], nothing empty; got {list(seen.shape)}")
        scale, shrink = self.config.scale, self.config.shrink
        height, width = seen.shape[-2:]
        x = seen.to(self.head.weight.dtype)
        x = F.pad(x, (0, -width % shrink, 0, -height % shrink)).contiguous(memory_format=torch.channels_last)
        small = self.stem(x)
        small = small + self.trunk(self.body(small))
        fine = F.leaky_relu(F.pixel_shuffle(self.rise(small), shrink) + self.near(x), 0.2)
        fine = F.leaky_relu(self.mix(fine), 0.2)
        detail = F.pixel_shuffle(self.head(fine), scale)[..., :height * scale, :width * scale]
        return enlarge(seen[:, :4], scale) + detail.to(seen.dtype)

    @torch.no_grad()
    def render(self, avatar: Avatar, camera: Camera, *, background: float | Sequence[float] = 1.0,
               outputs: Sequence[str] = ("rgb", "depth", "opacity"), **options: Any) -> Rendered:
        """Look at `avatar` through `camera`, refined: what `Avatar.render` gives, for `scale`^2 times fewer rays.

        rgb [height, width, 3] in [0, 1] on `background`, opacity [height, width] in [0, 1]; depth is enlarged only.
        `options` go to `Avatar.render`. ValueError for other outputs, and for planes of another number of features.
        """
        if other := sorted({*outputs} - {"rgb", "depth", "opacity"}):
            raise ValueError(f"a refined picture has rgb, depth and opacity; got {', '.join(other)}")
        size, scale = (camera.height, camera.width), self.config.scale
        seen, rendered = look(avatar, smaller(camera, scale), self.config.features, **options)
        weight = self.head.weight
        rgba = self(seen[None].to(weight.device)).to(avatar.device)[0, :, :size[0], :size[1]].clamp(0, 1)
        behind = torch.as_tensor(background, dtype=rgba.dtype, device=rgba.device).expand(3)
        found: dict[str, Tensor] = {"rgb": over(rgba, behind.view(3, 1, 1)).permute(1, 2, 0), "opacity": rgba[3]}
        if "depth" in outputs:
            depth = cast(Tensor, rendered.depth)
            found["depth"] = enlarge(depth[None, None], scale)[0, 0, :size[0], :size[1]]
        return rendered._replace(**{name: found[name] if name in outputs else None
                                    for name in ("rgb", "depth", "opacity")})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` (half precision) into `folder`."""
        checkpoints.save_component(folder, to_dict(self.config), self.state_dict(), dtype=torch.float16)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Refiner:
        """Read what `save` wrote, in float32; unknown keys, absurd sizes and shapes that differ are a ValueError."""
        refiner = cls(from_dict(RefinerConfig, checkpoints.read_config(folder)))
        checkpoints.load_component(folder, refiner)
        return refiner.eval().requires_grad_(False)


def look(avatar: Avatar, camera: Camera, features: int, **options: Any) -> tuple[Tensor, Rendered]:
    """What a refiner sees [5 + features, H, W] float32, and the rendering on black that it comes from.

    Premultiplied rgb, opacity, nearness (sum of weights times how far a sample lies before the plane through the box's
    centre), and the plane features at the expected depth times opacity. ValueError unless `features` is 0 or
    the number that the planes give. `options` go to `Avatar.render`.
    """
    reads = avatar.decoder.choices.in_features
    if features not in (0, reads):
        raise ValueError(f"this refiner reads {features} plane features; the avatar's planes give {reads}")
    rendered = avatar.render(camera, background=0.0, outputs=("rgb", "depth", "opacity"), **options)
    origins, directions = camera.rays(avatar.device)
    rgb, opacity, depth = (cast(Tensor, t) for t in (rendered.rgb, rendered.opacity, rendered.depth))
    nearness = opacity * origins[0].norm() - depth
    parts = [rgb.permute(2, 0, 1), opacity[None], nearness[None]]
    if features:
        hit = (opacity > 1e-3).flatten().nonzero()[:, 0]
        distance = (depth.flatten()[hit] / opacity.flatten()[hit])[:, None]
        read = origins.new_zeros(len(origins), features)
        read[hit] = avatar.features(origins[hit] + distance * directions[hit]) * opacity.flatten()[hit, None]
        parts.append(read.T.unflatten(1, (camera.height, camera.width)))
    return torch.cat(parts), rendered


def smaller(camera: Camera, scale: int) -> Camera:
    """The view on pixels `scale` times as wide and high, rounded up to whole ones: the first pixels still coincide."""
    return Camera(camera.cam2world, camera.fx / scale, camera.fy / scale, camera.cx / scale, camera.cy / scale,
                  -(-camera.width // scale), -(-camera.height // scale))


def enlarge(pictures: Tensor, scale: int) -> Tensor:
    """[B, C, H, W] on pixels `scale` times as small, bilinear, borders repeated."""
    return F.interpolate(pictures, scale_factor=scale, mode="bilinear", align_corners=False)


def over(rgba: Tensor, background: Tensor | float) -> Tensor:
    """Premultiplied pictures [..., 4, H, W] on `background` (what broadcasts to [..., 3, H, W]): [..., 3, H, W]."""
    return (rgba[..., :3, :, :] + (1 - rgba[..., 3:, :, :]) * background).clamp(0, 1)


class _Block(nn.Module):
    """x + 0.2 times several dense blocks one after the other."""

    def __init__(self, width: int, growth: int, dense: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(_Dense(width, growth) for _ in range(dense)))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.dense(x)


class _Dense(nn.Module):
    """x + 0.2 times five convolutions of which each reads x and all that came before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.grow = nn.ModuleList(_convolution(width + i * growth, growth) for i in range(4))
        self.last = _convolution(width + 4 * growth, width)

    def forward(self, x: Tensor) -> Tensor:
        known = x
        for convolution in self.grow:
            known = torch.cat([known, F.leaky_relu(convolution(known), 0.2)], 1)
        return x + RESIDUAL * self.last(known)


def _convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, 1, 1)
