"""The diffusion over planes: training loss, sampling, and the base model built of them.

Training and sampling share one list of alpha_bar (`rodin_model.noise`); the samplers are diffusers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import load_component, read_config, save_component
from .config import LATENT_SIZE, DiffusionConfig, NoiseConfig, PrincipalConfig, UNetConfig, from_dict, to_dict
from .noise import alpha_bars, beside, make_scheduler
from .principal import PrincipalDenoiser
from .unet import TriplaneUNet
from .variational import variational_bound

if TYPE_CHECKING:
    from typing_extensions import Self

#: Called after every denoising step with (steps done, steps in all, current planes).
Progress = Callable[[int, int, Tensor], None]


def sample_noise(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Standard normal noise [len(generators), *shape]; sample i depends on generator i alone, not on the batch."""
    return torch.stack([torch.randn(*shape, generator=g, device=g.device) for g in generators]).to(device)


class TriplaneDiffusion(nn.Module):
    """A denoiser with its noise schedule and the statistics that normalise the planes.

    Planes are diffused as (planes - mean) / std, `mean` being the average avatar's planes [3, C, R, R] and `std` one
    number for each plane and channel [3, C, 1, 1]. With `principal` the network starts from what the principal
    components say (`PrincipalDenoiser`): it sees their estimate beside the noisy planes and predicts what is missing.
    """

    mean: Tensor
    std: Tensor
    bars: Tensor

    def __init__(self, config: UNetConfig, noise: NoiseConfig, channels: int,
                 principal: PrincipalConfig | None = None) -> None:
        super().__init__()
        self.config, self.noise, self.channels = config, noise, channels
        self.unet = TriplaneUNet(config)
        size = config.resolution
        self.principal = None if principal is None else PrincipalDenoiser(principal, noise, channels, size)
        self.register_buffer("mean", torch.zeros(3, channels, size, size))
        self.register_buffer("std", torch.ones(3, channels, 1, 1))
        self.register_buffer("bars", alpha_bars(noise).float(), persistent=False)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the normalisation: `mean` [3, C, R, R] and `std` [3, C, 1, 1], in feature units."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-4))

    def normalize(self, planes: Tensor) -> Tensor:
        """Planes in feature units [B, 3, C, R, R] -> normalised."""
        return (planes - self.mean) / self.std

    def denormalize(self, planes: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return planes * self.std + self.mean

    def predict(self, noisy: Tensor, t: Tensor, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output: noise, planes or v, by `noise.prediction`, and the variance if it learns that."""
        if self.principal is None:
            return self.unet(noisy, t, z)
        with torch.autocast(noisy.device.type, enabled=False):
            estimate = self.principal(noisy, t, z)
        output = self.unet(torch.cat([noisy, estimate], 2), t, z).float()
        known = self._in_terms_of_prediction(estimate, noisy, t)
        return torch.cat([output[:, :, :self.channels] + known, output[:, :, self.channels:]], 2)

    def _in_terms_of_prediction(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """An estimate of the clean planes as what `noise.prediction` names."""
        bar = self.bars[t].view(-1, 1, 1, 1, 1)
        return self.target(clean, (noisy - bar.sqrt() * clean) / (1 - bar).sqrt(), t)

    def add_noise(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """sqrt(alpha_bar_t) clean + sqrt(1 - alpha_bar_t) eps, all [B, 3, C, R, R], t [B] in 0 .. steps - 1."""
        bar = self.bars[t].view(-1, 1, 1, 1, 1)
        return bar.sqrt() * clean + (1 - bar).sqrt() * eps

    def target(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should say: eps, clean, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) clean."""
        if self.noise.prediction == "epsilon":
            return eps
        if self.noise.prediction == "sample":
            return clean
        bar = self.bars[t].view(-1, 1, 1, 1, 1)
        return bar.sqrt() * eps - (1 - bar).sqrt() * clean

    def clean_estimate(self, noisy: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The clean planes that the prediction for noisy planes [B, 3, C, R, R] at steps t [B] amounts to, float32."""
        said, bar = self.predict(noisy, t, z).float()[:, :, :self.channels], self.bars[t].view(-1, 1, 1, 1, 1)
        if self.noise.prediction == "epsilon":
            return (noisy - (1 - bar).sqrt() * said) / bar.sqrt()
        if self.noise.prediction == "sample":
            return said
        return bar.sqrt() * noisy - (1 - bar).sqrt() * said

    def training_loss(self, clean: Tensor, z: Tensor, generator: torch.Generator | None = None,
                      cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(loss, prediction) for normalised planes [B, 3, C, R, R] and latents [B, 512].

        Latents are zeroed with probability `condition_drop` (classifier-free guidance, Rodin 3.3); where the variance
        is learned, the variational bound is added to the simple loss (Improved DDPM, eq. 16).
        """
        batch = clean.shape[0]
        t = torch.randint(self.noise.steps, (batch,), **beside(generator)).to(clean.device)
        eps = torch.randn(clean.shape, **beside(generator)).to(clean)
        keep = (torch.rand(batch, 1, **beside(generator)) >= self.noise.condition_drop).to(clean)
        noisy = self.add_noise(clean, eps, t)
        output = self.predict(noisy, t, z * keep, cond).float()
        prediction = output[:, :, :self.channels]
        loss = F.mse_loss(prediction, self.target(clean, eps, t))
        if self.noise.learn_variance:
            loss = loss + variational_bound(self.bars, clean, noisy, t, output)
        return loss, prediction

    @torch.no_grad()
    def denoise(self, z: Tensor, generators: Sequence[torch.Generator], *, steps: int, guidance_scale: float = 1.0,
                guidance_stop: float = 1.0, scheduler: str = "dpm++", cond: Tensor | None = None,
                progress: Progress | None = None, noise: Tensor | None = None) -> Tensor:
        """Run the reverse process: z [B, 512], one generator a sample -> normalised planes [B, 3, C, R, R].

        `noise` [B, 3, C, R, R] is where it starts; without it, every sample's generator draws its own.

        Guidance: prediction = s f(x, z) + (1 - s) f(x, 0) with strength s = `guidance_scale` (Rodin 3.3), until the
        share `guidance_stop` of the way from noise to planes; then s = 1, which costs half. What z says is settled
        early: later the two predictions differ by the network's own error, and guidance would strengthen that
        (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval").
        """
        if not 1 <= steps <= self.noise.steps:
            raise ValueError(f"steps must lie between 1 and {self.noise.steps}; got {steps}")
        count = len(generators) if noise is None else len(noise)
        if z.ndim != 2 or z.shape != (count, LATENT_SIZE):
            raise ValueError(f"z must be [{count}, {LATENT_SIZE}], a row for each generator; got {list(z.shape)}")
        process = make_scheduler(self.noise, scheduler)
        process.set_timesteps(steps)
        shape = (3, self.channels, self.config.resolution, self.config.resolution)
        planes = sample_noise(shape, generators, z.device) if noise is None else noise
        keep_variance = scheduler == "ddpm" and self.noise.learn_variance
        for done, t in enumerate(process.timesteps, 1):
            scale = guidance_scale if int(t) >= (1 - guidance_stop) * self.noise.steps else 1.0
            output = self._guided(planes, t.expand(len(z)).to(z.device), z, scale, cond)
            output = output if keep_variance else output[:, :, :self.channels]
            # schedulers split off a learned variance at dimension 1, where these planes are folded
            folded = process.step(output.flatten(1, 2) if not keep_variance else _interleave(output), t,
                                  planes.flatten(1, 2), **self._noise_source(scheduler, generators)).prev_sample
            planes = folded.view_as(planes)
            if progress is not None:
                progress(done, steps, planes)
        return planes

    def _guided(self, planes: Tensor, t: Tensor, z: Tensor, scale: float, cond: Tensor | None) -> Tensor:
        if scale == 1.0:
            return self.predict(planes, t, z, cond).float()
        both = None if cond is None else torch.cat([cond, cond])
        known, free = self.predict(torch.cat([planes, planes]), torch.cat([t, t]),
                                   torch.cat([z, torch.zeros_like(z)]), both).float().chunk(2)
        return scale * known + (1 - scale) * free

    @staticmethod
    def _noise_source(scheduler: str, generators: Sequence[torch.Generator]) -> dict[str, Any]:
        return {"generator": list(generators)} if scheduler == "ddpm" else {}

    def save(self, folder: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """Write config.json and the weights (safetensors shards) into `folder`."""
        save_component(folder, to_dict(self.configuration()), self.state_dict(), dtype=dtype)

    def configuration(self) -> DiffusionConfig:
        """All that `configured` needs to build such a model."""
        principal = None if self.principal is None else self.principal.config
        return DiffusionConfig(self.config, self.noise, self.channels, principal)

    @classmethod
    def configured(cls, config: DiffusionConfig) -> Self:
        """A model as `config` describes it, its weights yet to be loaded or learned."""
        return cls(config.unet, config.noise, config.channels, config.principal)

    @classmethod
    def from_folder(cls, folder: Path | str) -> Self:
        """Read what `save` wrote, in float32; unknown keys, absurd sizes and shapes that differ are a ValueError."""
        model = cls.configured(from_dict(DiffusionConfig, read_config(folder)))
        load_component(folder, model)
        return model.eval().requires_grad_(False)


def _interleave(output: Tensor) -> Tensor:
    """[B, 3, 2C, H, W] -> [B, 2 * 3C, H, W]: the predictions of all planes first, then the variances of all planes."""
    prediction, variance = output.chunk(2, 2)
    return torch.cat([prediction.flatten(1, 2), variance.flatten(1, 2)], 1)


class BaseDiffusion(TriplaneDiffusion):
    """Latent to coarse planes (Rodin 3.3)."""

    def sample(self, z: Tensor, *, generators: Sequence[torch.Generator], steps: int = 25, guidance_scale: float = 2.0,
               guidance_stop: float = 1.0, scheduler: str = "dpm++", progress: Progress | None = None,
               noise: Tensor | None = None) -> Tensor:
        """z [B, 512] (zeros: unconditional) -> coarse planes [B, 3, C, R, R] in feature units, float32."""
        planes = self.denoise(z, generators, steps=steps, guidance_scale=guidance_scale, guidance_stop=guidance_stop,
                              scheduler=scheduler, progress=progress, noise=noise)
        return self.denormalize(planes)
