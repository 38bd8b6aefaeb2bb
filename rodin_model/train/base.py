"""`python -m rodin_model.train.base`: train the base diffusion on coarse planes.

Resumable: the same command goes on where it stopped and reaches the weights of a run that never stopped. Several GPUs:
`torchrun --nproc-per-node 8 -m rodin_model.train.base ...`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rodin_model.config import PRESETS
from rodin_model.diffusion import BaseDiffusion, TriplaneDiffusion
from rodin_model.principal import PrincipalDenoiser
from rodin_model.train.denoiser import DenoiserSettings, DenoiserTrainer, all_planes, statistics, step_randomness
from rodin_model.train.latents import Latents
from rodin_model.train.resume import add_bounds, add_settings, settings_of, status_of


class BaseLosses:
    """The base model's loss: planes and latents of a batch drawn from (seed, step), the denoising loss on them."""

    def __init__(self, planes: Tensor, avatars: Sequence[int], latents: Latents, settings: DenoiserSettings) -> None:
        self.planes, self.avatars, self.latents, self.settings = planes, avatars, latents, settings

    def __call__(self, model: TriplaneDiffusion, step: int) -> dict[str, Tensor]:
        rng, generator = step_randomness(self.settings.seed, step, model.mean.device)
        rows = rng.integers(0, len(self.planes), self.settings.batch)
        z = self.latents.draw([self.avatars[i] for i in rows], rng, self.settings.text_share)
        clean = model.normalize(self.planes[torch.from_numpy(rows).to(self.planes.device)].to(model.mean))
        return {"loss": model.training_loss(clean, z.to(model.mean), generator)[0]}


def arguments_of(doc: str | None, program: str) -> argparse.ArgumentParser:
    """The options that both diffusions take; every training setting is an option of the same name."""
    parser = argparse.ArgumentParser(prog=f"python -m rodin_model.train.{program}", description=doc,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--coarse", required=True, help="folder of coarse planes from rodin_model.train.fit")
    parser.add_argument("--latents", required=True, help="file from rodin_model.train.latents")
    parser.add_argument("--output", required=True)
    add_bounds(parser, save_every=500)
    add_settings(parser, DenoiserSettings)
    return parser


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say."""
    settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
    if (preset.principal is None) != (args.principal is None):
        raise ValueError(f"the preset {args.preset} needs {'no --principal' if args.principal else '--principal'}")
    planes, avatars = all_planes(args.coarse)
    planes = planes.to(args.device)
    torch.manual_seed(settings.seed)
    model = BaseDiffusion(preset.base, preset.base_noise, preset.planes.channels, preset.principal)
    model.set_statistics(*statistics(planes))
    if model.principal is not None:
        model.principal.load_state_dict(PrincipalDenoiser.from_folder(args.principal).state_dict())
        model.principal.requires_grad_(False)
    if args.init:
        model.unet.load_state_dict(BaseDiffusion.from_folder(args.init).unet.state_dict())
    losses = BaseLosses(planes, avatars, Latents.load(args.latents).to(args.device), settings)
    trainer = DenoiserTrainer(args.output, model, settings, losses, args.device, args.minutes)
    trainer.run(args.until, save_every=args.save_every)
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = arguments_of(__doc__, "base")
    parser.add_argument("--principal", help="the folder model/ of rodin_model.train.principal, for presets with one")
    parser.add_argument("--init", help="the folder model/ of a trained base diffusion whose U-Net to start from")
    args = parser.parse_args(arguments)
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())
