"""The diffusion upsampler: coarse planes to fine ones (Rodin 3.3, last part).

It predicts the clean fine planes themselves (x0), as a correction of the coarse planes enlarged; in training the coarse
planes are blurred, shrunk and made noisy, so that it also repairs what the base diffusion gets wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import Progress, TriplaneDiffusion
from .layers import enlarge
from .noise import beside


def degrade(coarse: Tensor, generator: torch.Generator | None = None, *, strength: float = 1.0) -> Tensor:
    """Condition augmentation (Rodin 3.3): each sample blurred, shrunk and noised at random, in normalised units.

    Blur: Gaussian, half the samples, sigma up to 0.8 texels. Shrink: a third of them, to 50 to 100 % and back. Noise:
    always, standard deviation up to 0.25. Coarse [B, 3, C, r, r] -> the same shape.
    """
    size = coarse.shape[-1]
    out = []
    chance = torch.rand(len(coarse), 5, **beside(generator)).tolist()
    for sample, u in zip(coarse, chance, strict=True):
        if u[0] < 0.5:
            sample = gaussian_blur(sample, 0.8 * strength * u[1])
        if u[2] < 1 / 3:
            small = max(4, round(size * (1 - 0.5 * strength * u[3])))
            sample = enlarge(F.interpolate(sample, (small, small), mode="area")[None], size)[0]
        noise = torch.randn(sample.shape, **beside(generator)).to(sample)
        out.append(sample + 0.25 * strength * u[4] * noise)
    return torch.stack(out)


def gaussian_blur(planes: Tensor, sigma: float) -> Tensor:
    """[3, C, r, r] blurred along both axes by a Gaussian of `sigma` texels, borders repeated."""
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.softmax(-0.5 * (x / max(sigma, 1e-3)) ** 2, 0)
    flat = planes.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat[:, 0].view_as(planes)


class Upsampler(TriplaneDiffusion):
    """Coarse planes and latent to fine planes."""

    def predict(self, noisy: Tensor, t: Tensor, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """x0 = cond + network(noisy, cond), with `cond` [B, 3, C, R, R] as `condition` makes it."""
        if cond is None:
            raise ValueError("the upsampler needs cond, what its method condition makes of coarse planes")
        output = self.unet(torch.cat([noisy, cond], 2), t, z)
        if self.noise.prediction != "sample":
            return output
        return torch.cat([output[:, :, :self.channels] + cond, output[:, :, self.channels:]], 2)

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
