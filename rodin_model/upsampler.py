"""The diffusion upsampler: coarse planes to fine ones (Rodin 3.3, last part).

It predicts the clean fine planes themselves (x0), as a correction of the coarse planes enlarged; in training the coarse
planes are blurred, shrunk and made noisy, so that it also repairs what the base diffusion gets wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DetailConfig, DiffusionConfig, NoiseConfig, UNetConfig
from .detail import Detail
from .diffusion import Progress, TriplaneDiffusion
from .layers import enlarge
from .noise import beside

if TYPE_CHECKING:
    from typing_extensions import Self


def degrade(coarse: Tensor, generator: torch.Generator | None = None, *, strength: float = 1.0) -> Tensor:
    """Condition augmentation (Rodin 3.3): each sample blurred, shrunk and noised at random, in normalised units.

    Blur: Gaussian, half the samples, sigma up to 0.8 texels. Shrink: a third of them, to 50 to 100 % and back, the same
    size for all of a batch. Noise: always, standard deviation up to 0.25. Coarse [B, 3, C, r, r] -> the same shape.
    """
    size = coarse.shape[-1]
    share = torch.rand(1, **beside(generator)).item()
    blurred, sigma, shrunk, noise = torch.rand(4, len(coarse), **beside(generator)).to(coarse)
    out = gaussian_blur(coarse, torch.where(blurred < 0.5, 0.8 * strength * sigma, 0.0))
    small = max(4, round(size * (1 - 0.5 * strength * share)))
    rough = enlarge(F.interpolate(out.flatten(0, 1), (small, small), mode="area").unflatten(0, (-1, 3)), size)
    out = torch.where((shrunk < 1 / 3).view(-1, 1, 1, 1, 1), rough, out)
    grain = torch.randn(coarse.shape, **beside(generator)).to(coarse)
    return out + 0.25 * strength * noise.view(-1, 1, 1, 1, 1) * grain


def gaussian_blur(planes: Tensor, sigma: Tensor) -> Tensor:
    """[B, 3, C, r, r] blurred along both axes by Gaussians of `sigma` [B] texels, at most 1, borders repeated."""
    reach, size = 3, planes.shape[-1]
    x = torch.arange(-reach, reach + 1, device=planes.device, dtype=planes.dtype)
    kernels = torch.softmax(-0.5 * (x / sigma.clamp_min(1e-3)[:, None]) ** 2, 1).view(len(planes), -1, 1, 1, 1, 1)
    for dim in (-1, -2):
        border = (reach, reach, 0, 0) if dim == -1 else (0, 0, reach, reach)
        wide = F.pad(planes.flatten(0, 1), border, mode="replicate").unflatten(0, (-1, 3))
        planes = torch.stack([kernels[:, k] * wide.narrow(dim, k, size) for k in range(2 * reach + 1)]).sum(0)
    return planes


def notched(planes: Tensor, reach: float) -> Tensor:
    """Planes [B, 3, C, R, R] without what alternates from one texel to the next, along rows and along columns.

        y_i = x_i - (-1)^i G[(-1)^j x_j],   G a Gaussian of standard deviation `reach` texels, borders mirrored

    It takes the share exp(-reach^2 (pi - w)^2 / 2) of what oscillates by w a texel: all of the finest grid, and next to
    nothing of anything a little coarser. That grid is what drawing patches of 2² texels at once leaves behind (the
    checkerboards of sub-pixel convolution, Odena et al. 2016).
    """
    radius, size = math.ceil(3 * reach), planes.shape[-1]
    at = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    weights = torch.softmax(-0.5 * (at / reach) ** 2, 0) * (1 - 2 * (at.abs() % 2))
    flat = planes.reshape(-1, 1, size, size)
    for shape, border in (((1, 1, 1, -1), (radius, radius, 0, 0)), ((1, 1, -1, 1), (0, 0, radius, radius))):
        flat = flat - F.conv2d(F.pad(flat, border, mode="reflect"), weights.view(shape))
    return flat.view_as(planes)


class Upsampler(TriplaneDiffusion):
    """Coarse planes and latent to fine planes: a U-Net, and `details` drawn on top of it, one after another.

    Both may draw patches of 2² texels at once; `notch` says over how many texels the grid that this leaves is looked
    for, and taken away (`notched`); 0: it is left.
    """

    def __init__(self, config: UNetConfig, noise: NoiseConfig, channels: int, details: Sequence[DetailConfig] = (),
                 notch: float = 0.0) -> None:
        super().__init__(config, noise, channels)
        if details and noise.prediction != "sample":
            raise ValueError(f'detail is drawn on clean planes: prediction must be "sample"; got {noise.prediction!r}')
        if not 0 <= 3 * notch <= config.resolution - 1:
            raise ValueError(f"notch must be 0 or more, and 3 notch less than the {config.resolution} texels of a "
                             f"plane; got {notch}")
        self.details = nn.ModuleList(Detail(own, channels, config.resolution, config.layout) for own in details)
        self.notch = notch

    def denormalize(self, planes: Tensor) -> Tensor:
        """Planes [B, 3, C, R, R] that `predict` gave -> feature units, without their grid."""
        return super().denormalize(notched(planes, self.notch) if self.notch else planes)

    def predict(self, noisy: Tensor, t: Tensor, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """x0 = cond + network(noisy, cond) + details, with `cond` [B, 3, C, R, R] as `condition` makes it."""
        if cond is None:
            raise ValueError("the upsampler needs cond, what its method condition makes of coarse planes")
        output = self.unet(torch.cat([noisy, cond], 2), t, z)
        if self.noise.prediction != "sample":
            return output
        clean = output[:, :, :self.channels] + cond
        for detail in self.details:
            clean = detail(clean, cond, z)
        return torch.cat([clean, output[:, :, self.channels:]], 2)

    def first_estimate(self, noise: Tensor, z: Tensor, cond: Tensor) -> Tensor:
        """The normalised planes [B, 3, C, R, R] that are predicted from noise alone, for models that predict planes."""
        last = torch.full((len(noise),), self.noise.steps - 1, device=noise.device)
        return self.predict(noise, last, z, cond)[:, :, :self.channels]

    def configuration(self) -> DiffusionConfig:
        """All that `configured` needs to build such a model."""
        return dataclasses.replace(super().configuration(), details=self.detail_configs(), notch=self.notch)

    def detail_configs(self) -> tuple[DetailConfig, ...]:
        """What describes the details that this model has."""
        return tuple(cast(Detail, detail).config for detail in self.details)

    @classmethod
    def configured(cls, config: DiffusionConfig) -> Self:
        """A model as `config` describes it, its weights yet to be loaded or learned."""
        return cls(config.unet, config.noise, config.channels, config.details, config.notch)

    def condition(self, coarse: Tensor) -> Tensor:
        """Coarse planes [B, 3, C, r, r] in feature units -> the condition [B, 3, C, R, R], normalised.

        What sets them apart from the average avatar, enlarged: enlarge(coarse - shrink(mean)) / std. The average's own
        fine detail is in `mean` and comes back when the result is denormalised.
        """
        shrunk = F.interpolate(self.mean, coarse.shape[-2:], mode="area")
        return enlarge(coarse.float() - shrunk, self.config.resolution) / self.std

    def sample(self, coarse: Tensor, z: Tensor, *, generators: Sequence[torch.Generator], steps: int = 8,
               guidance_scale: float = 1.0, scheduler: str = "dpm++", progress: Progress | None = None,
               noise: Tensor | None = None) -> Tensor:
        """coarse [B, 3, C, r, r] and z [B, 512] -> fine planes [B, 3, C, R, R] in feature units, float32."""
        planes = self.denoise(z, generators, steps=steps, guidance_scale=guidance_scale, scheduler=scheduler,
                              cond=self.condition(coarse), progress=progress, noise=noise)
        return self.denormalize(planes)
