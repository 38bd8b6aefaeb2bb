"""The diffusion over z: noise to the z of a picture, freely or as a text asks for.

The paper samples avatars without a prompt from such a model and gives texts a conditioned one (Rodin, section 3.3);
here one network does both, the null text being a learned vector.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_model import checkpoints
from rodin_model.noise import beside, scheduler_of
from rodin_model.towers import LATENT_SIZE

_STEPS = 1000


def cosine_alpha_bars(steps: int = _STEPS) -> Tensor:
    """alpha_bar after steps 1..`steps`, float64, by cos^2 with offset 0.008 (Nichol and Dhariwal 2021, eq. 17)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    bars = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cumprod((bars[1:] / bars[:-1]).clamp(min=0.001), 0)


class _PriorBlock(nn.Module):
    """A residual MLP whose normalised input is scaled and shifted by what is known: time and text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in (self.modulate, self.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        scale, shift = self.modulate(known).chunk(2, -1)
        return x + self.narrow(F.silu(self.widen(self.norm(x) * (1 + scale) + shift)))


class LatentPrior(nn.Module):
    """Denoises z: x0-prediction by a residual MLP, cosine schedule, classifier-free guidance on the text's z.

    z is whitened per number with `mean` and `std` [512] of the training set; results are brought back to unit length.
    """

    mean: Tensor
    std: Tensor
    bars: Tensor

    def __init__(self, width: int = 192, blocks: int = 3) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks)):
            if not isinstance(value, int) or not 1 <= value <= 8192 or (name == "width" and value % 2):
                raise ValueError(f"{name} must be a whole number from 1 to 8192, an even one for width; got {value!r}")
        self.width = width
        self.input, self.text = nn.Linear(LATENT_SIZE, width), nn.Linear(LATENT_SIZE, width)
        self.null = nn.Parameter(torch.zeros(width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_PriorBlock(width) for _ in range(blocks))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, LATENT_SIZE)
        self.register_buffer("mean", torch.zeros(LATENT_SIZE))
        self.register_buffer("std", torch.full((LATENT_SIZE,), LATENT_SIZE ** -0.5))
        self.register_buffer("bars", cosine_alpha_bars().float(), persistent=False)

    def forward(self, noisy: Tensor, t: Tensor, text_z: Tensor, keep: Tensor) -> Tensor:
        """The clean whitened z [B, 512] from `noisy`, the step t [B] (0..999) and, where `keep` [B], the text's z."""
        rates = torch.exp(-math.log(10_000.0) * torch.arange(self.width // 2, device=t.device) / (self.width // 2))
        angles = t[:, None].float() * rates
        known = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        known = F.silu(known + torch.where(keep[:, None], self.text(text_z * LATENT_SIZE ** 0.5), self.null))
        x = self.input(noisy)
        for block in self.blocks:
            x = block(x, known)
        return self.output(self.norm(x))

    def training_loss(self, z: Tensor, text_z: Tensor, generator: torch.Generator, drop: float = 0.25) -> Tensor:
        """Mean squared error of the denoised whitened z, min-SNR weighted (gamma 5); texts are dropped at rate `drop`.

        z and text_z are [B, 512] of unit length; the loss is a scalar, differentiable in the weights.
        """
        clean = (z - self.mean) / self.std
        t = torch.randint(_STEPS, (len(z),), **beside(generator)).to(z.device)
        noise = torch.randn(z.shape, **beside(generator)).to(z)
        keep = (torch.rand(len(z), **beside(generator)) >= drop).to(z.device)
        bar = self.bars[t][:, None]
        predicted = self(bar.sqrt() * clean + (1 - bar).sqrt() * noise, t, text_z, keep)
        weight = (bar / (1 - bar)).clamp(max=5.0) / 5.0 + 0.05
        return (weight * (predicted.float() - clean) ** 2).mean()

    @torch.no_grad()
    def sample(self, generators: Sequence[torch.Generator], text_z: Tensor | None = None, *,
               guidance_scale: float = 1.0, steps: int = 20) -> Tensor:
        """z [len(generators), 512] of unit length; row i depends on generator i (on the CPU) and on text_z[i] alone.

        Without `text_z` [B, 512] the avatars are free. Guidance: null + scale (text - null). DPM-Solver++ by diffusers.
        Raises ValueError for no generators, a text_z of another shape, or fewer than 1 step.
        """
        count = len(generators)
        if count == 0:
            raise ValueError("generators is empty: one is needed for each sample")
        if text_z is not None and text_z.shape != (count, LATENT_SIZE):
            raise ValueError(f"text_z must be [{count}, {LATENT_SIZE}], a row for each generator; "
                             f"got {tuple(text_z.shape)}")
        if not 1 <= steps <= _STEPS:
            raise ValueError(f"steps must lie between 1 and {_STEPS}; got {steps}")
        device, scheduler = self.mean.device, scheduler_of(cosine_alpha_bars(), "sample")
        scheduler.set_timesteps(steps)
        x = torch.stack([torch.randn(LATENT_SIZE, generator=g, device=g.device) for g in generators]).to(device)
        text = torch.zeros_like(x) if text_z is None else text_z.to(x)
        told, untold = (torch.full((count,), flag, device=device) for flag in (True, False))
        for t in scheduler.timesteps:
            when = t.to(device).expand(count)
            clean = self(x, when, text, untold if text_z is None else told)
            if text_z is not None and guidance_scale != 1.0:
                free = self(x, when, text, untold)
                clean = free + guidance_scale * (clean - free)
            x = scheduler.step(clean, t, x).prev_sample
        return F.normalize(x * self.std + self.mean, dim=-1)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> LatentPrior:
        """Read `config.json` and `model.safetensors`; FileNotFoundError or ValueError say what is wrong with them."""
        config = checkpoints.read_config(folder)
        if set(config) != {"kind", "width", "blocks"} or config["kind"] != "prior":
            raise ValueError(f"{Path(folder) / 'config.json'} does not describe a latent prior (kind, width, blocks)")
        prior = cls(config["width"], config["blocks"])
        checkpoints.load_component(folder, prior)
        return prior.eval()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write what `from_folder` reads, in half precision."""
        config = {"kind": "prior", "width": self.width, "blocks": len(self.blocks)}
        checkpoints.save_component(folder, config, self.state_dict(), dtype=torch.float16)
