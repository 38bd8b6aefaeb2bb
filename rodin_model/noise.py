"""The noise of every diffusion here: how much signal each step leaves, and diffusers' samplers set up for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .config import NoiseConfig


def alpha_bars(noise: NoiseConfig) -> Tensor:
    """Share of signal variance left after step 1, 2, ..., `steps`: [steps], float64, falling from about 1 to about 0.

    The two families of RodinHD, section 4.2 (see `NoiseConfig`); each beta is capped at 0.999 as in Improved DDPM.
    """
    def v(t: float) -> float:
        u = t * (noise.end - noise.start) + noise.start
        return max(math.cos(u * math.pi / 2), 0.0) ** (2 * noise.tau) if noise.schedule == "cosine" \
            else 1 / (1 + math.exp(-u / noise.tau))

    bars = [(v(1) - v(i / noise.steps)) / (v(1) - v(0)) for i in range(noise.steps + 1)]
    betas = [min(1 - bars[i + 1] / bars[i], 0.999) if bars[i] > 0 else 0.999 for i in range(noise.steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def beside(generator: torch.Generator | None) -> dict[str, Any]:
    """Keyword arguments that let torch draw from `generator` where that lives: on a GPU nothing has to be carried."""
    return {"generator": generator, "device": None if generator is None else generator.device}


def make_scheduler(noise: NoiseConfig, kind: str = "dpm++") -> Any:
    """A fresh diffusers scheduler on this process: "dpm++" (DPM-Solver++ 2M, trailing steps) or "ddpm" (ancestral)."""
    return scheduler_of(alpha_bars(noise), noise.prediction, kind, learn_variance=noise.learn_variance)


def scheduler_of(bars: Tensor, prediction: str, kind: str = "dpm++", *, learn_variance: bool = False) -> Any:
    """`make_scheduler` for any list of alpha_bar [steps], float64, and diffusers' word for the target."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    betas = 1 - bars / torch.cat([torch.ones(1, dtype=bars.dtype), bars[:-1]])
    common = {"num_train_timesteps": len(bars), "trained_betas": betas.float().numpy(),
              "prediction_type": prediction, "timestep_spacing": "trailing"}
    if kind == "dpm++":
        return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    if kind == "ddpm":
        variance = "learned_range" if learn_variance else "fixed_small"
        return DDPMScheduler(**common, clip_sample=False, variance_type=variance)
    raise ValueError(f'scheduler must be "dpm++" or "ddpm"; got {kind!r}')
