"""`python -m rodin_model.train.principal`: find the principal components of coarse planes and train their denoiser.

The first part of the base diffusion, and the cheap one: its batches are a few hundred numbers for each avatar, so
thousands of steps take minutes. `rodin_model.train.base` then trains the U-Net on top. Resumable like that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rodin_model.config import PRESETS
from rodin_model.principal import PrincipalDenoiser, principal_components
from rodin_model.train.base import arguments_of
from rodin_model.train.denoiser import DenoiserSettings, DenoiserTrainer, all_planes, statistics, step_randomness
from rodin_model.train.latents import Latents
from rodin_model.train.resume import settings_of


class PrincipalLosses:
    """The loss on how much of each component the avatars' planes hold, [N, K]."""

    def __init__(self, numbers: Tensor, avatars: Sequence[int], latents: Latents, settings: DenoiserSettings) -> None:
        self.numbers, self.avatars = numbers, np.asarray(avatars)
        self.latents, self.settings = latents, settings

    def __call__(self, model: PrincipalDenoiser, step: int) -> dict[str, Tensor]:
        rng, generator = step_randomness(self.settings.seed, step, model.basis.device)
        rows = self.latents.rows(self.avatars, self.settings.batch, rng, self.settings.pictured)
        z = self.latents.draw(self.avatars[rows], rng, self.settings.text_share)
        clean = self.numbers[torch.from_numpy(rows).to(self.numbers.device)].to(model.basis.device)
        return {"loss": model.training_loss(clean, z.to(clean), generator)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = arguments_of(__doc__, "principal")
    parser.set_defaults(batch=256, learning_rate=1.5e-3, cooldown=0.5, ema=0.995)
    args = parser.parse_args(arguments)
    try:
        settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
        if preset.principal is None:
            raise ValueError(f"the preset {args.preset} has no principal components")
        planes, avatars = all_planes(args.coarse)
        planes = planes.to(args.device)
        mean, std = statistics(planes)
        planes = (planes - mean) / std
        torch.manual_seed(settings.seed)
        model = PrincipalDenoiser(preset.principal, preset.base_noise, preset.planes.channels, planes.shape[-1])
        model.set_components(*principal_components(planes, preset.principal))
        numbers = model.to(args.device).numbers(planes)
        losses = PrincipalLosses(numbers, avatars, Latents.load(args.latents).to(args.device), settings)
        del planes
        trainer = DenoiserTrainer(args.output, model, settings, losses, args.device, args.minutes)
        trainer.run(args.until, save_every=args.save_every)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
