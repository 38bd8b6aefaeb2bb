"""`python -m rodin_model.train.upsample`: train the diffusion upsampler on pairs of coarse and fine planes.

Two losses: on the planes, and on pictures, small patches rendered from the predicted and from the true planes
(Rodin 3.3: planes alone do not guarantee good renders). With `--base`, half of the coarse planes are what the base
diffusion makes of them, so that its kind of error is known to the upsampler. Resumable like `rodin_model.train.base`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rodin_kernels import TinyDecoder, render_triplane
from rodin_model.cameras import Camera, box_near_far
from rodin_model.config import PRESETS, PlanesConfig
from rodin_model.decoder import load_decoder
from rodin_model.diffusion import BaseDiffusion
from rodin_model.train.base import arguments_of
from rodin_model.train.denoiser import DenoiserSettings, DenoiserTrainer, all_planes, statistics, step_randomness
from rodin_model.train.latents import Latents
from rodin_model.train.resume import settings_of
from rodin_model.upsampler import Upsampler, degrade


def patch_rays(rng: np.random.Generator, pixels: int, size: int = 192) -> tuple[Tensor, Tensor]:
    """Rays of a random `pixels`^2 patch of a random view [1, pixels^2, 3]; two of three look at the face."""
    yaw = float(rng.normal(0.0, 40.0)) if rng.random() < 2 / 3 else float(rng.uniform(-180, 180))
    camera = Camera.orbit(yaw, float(rng.normal(5.0, 10.0)), size)
    origins, directions = (r.view(size, size, 3) for r in camera.rays())
    low, high = size // 6, size - pixels - size // 6  # the avatar stands in the middle
    top, left = rng.integers(low, high + 1, 2)
    part = (slice(top, top + pixels), slice(left, left + pixels))
    return origins[part].reshape(1, -1, 3), directions[part].reshape(1, -1, 3)


def picture_loss(predicted: Tensor, true: Tensor, decoder: TinyDecoder, config: PlanesConfig,
                 rng: np.random.Generator, *, pixels: int = 32, samples: int = 48) -> Tensor:
    """Mean absolute difference of one patch and of its differences between neighbours, planes [1, 3, C, R, R]."""
    origins, directions = (r.to(predicted.device) for r in patch_rays(rng, pixels))
    near, far = box_near_far(origins, directions)

    def draw(planes: Tensor) -> Tensor:
        picture = render_triplane(planes, origins, directions, decoder, near=near, far=far, num_samples=samples,
                                  background=1.0, layout=config.layout, reduce=config.reduce,
                                  align_corners=config.align_corners, padding_mode=config.padding_mode,
                                  outputs=("rgb",))
        return cast(Tensor, picture.rgb).view(pixels, pixels, 3)

    with torch.no_grad():
        wanted = draw(true)
    difference = draw(predicted) - wanted
    return difference.abs().mean() + difference.diff(dim=0).abs().mean() + difference.diff(dim=1).abs().mean()


@torch.no_grad()
def estimates(base: BaseDiffusion, coarse: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """What `base` takes for the clean planes after one look at noisy ones; coarse [B, 3, C, r, r] in feature units.

    Half of the samples, at random, stay as they are; the noise of the others goes up to 3/4 of the schedule.
    """
    t = torch.randint(3 * base.noise.steps // 4, (len(coarse),), generator=generator).to(coarse.device)
    clean = base.normalize(coarse)
    noisy = base.add_noise(clean, torch.randn(clean.shape, generator=generator).to(clean), t)
    guess = base.denormalize(base.clean_estimate(noisy, t, z))
    chosen = torch.rand(len(coarse), 1, 1, 1, 1, generator=generator).to(coarse) < 0.5
    return torch.where(chosen, guess, coarse)


class UpsampleLosses:
    """The upsampler's losses: pairs drawn from (seed, step), coarse planes degraded, x0 loss and picture loss."""

    def __init__(self, coarse: Tensor, fine: Tensor, avatars: Sequence[int], latents: Latents, decoder: TinyDecoder,
                 config: PlanesConfig, coarse_statistics: tuple[Tensor, Tensor], settings: DenoiserSettings,
                 base: BaseDiffusion | None = None) -> None:
        self.coarse, self.fine, self.avatars, self.latents = coarse, fine, avatars, latents
        self.decoder, self.config, self.settings = decoder.requires_grad_(False), config, settings
        self.coarse_mean, self.coarse_std = coarse_statistics
        self.base = base

    def __call__(self, model: Upsampler, step: int) -> dict[str, Tensor]:
        settings = self.settings
        rng, generator = step_randomness(settings.seed, step)
        rows = torch.from_numpy(rng.integers(0, len(self.fine), settings.batch))
        z = self.latents.draw([self.avatars[int(i)] for i in rows], rng, settings.text_share).to(model.mean)
        small = self.coarse[rows].float()
        if self.base is not None:
            small = estimates(self.base, small.to(model.mean), z, generator).cpu()
        small = (small - self.coarse_mean) / self.coarse_std
        small = degrade(small, generator) * self.coarse_std + self.coarse_mean
        cond = model.condition(small.to(model.mean))
        clean = model.normalize(self.fine[rows].to(model.mean))
        loss, prediction = model.training_loss(clean, z, generator, cond)
        if not settings.image_weight:
            return {"loss": loss}
        with torch.autocast(model.mean.device.type, enabled=False):
            pair = model.denormalize(torch.stack([prediction[0].float(), clean[0]]))
            picture = picture_loss(pair[:1], pair[1:], self.decoder, self.config, rng)
        return {"loss": loss, "picture": settings.image_weight * picture}


def paired(coarse: tuple[Tensor, list[int]], fine: tuple[Tensor, list[int]]) -> tuple[Tensor, Tensor, list[int]]:
    """The rows of both sets that show the same avatars, in the order of the fine set."""
    where = {avatar: row for row, avatar in enumerate(coarse[1])}
    rows = [row for row, avatar in enumerate(fine[1]) if avatar in where]
    if not rows:
        raise ValueError("--coarse and --fine have no avatar in common")
    avatars = [fine[1][row] for row in rows]
    return coarse[0][[where[avatar] for avatar in avatars]], fine[0][rows], avatars


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = arguments_of(__doc__, "upsample")
    parser.add_argument("--fine", required=True, help="folder of fine planes from rodin_model.train.fit")
    parser.add_argument("--decoder", required=True, help="decoder folder from rodin_model.train.fit joint")
    parser.add_argument("--base", help="the folder model/ of rodin_model.train.base, whose errors are to be repaired")
    parser.set_defaults(batch=4, image_weight=1.0)
    args = parser.parse_args(arguments)
    try:
        settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
        everyone = all_planes(args.coarse)
        coarse, fine, avatars = paired(everyone, all_planes(args.fine))
        torch.manual_seed(settings.seed)
        model = Upsampler(preset.upsampler, preset.upsampler_noise, preset.planes.channels)
        model.set_statistics(*statistics(fine))
        latents = Latents.load(args.latents)
        base = BaseDiffusion.from_folder(args.base).to(args.device) if args.base else None
        losses = UpsampleLosses(coarse, fine, avatars, latents, load_decoder(args.decoder)[0], preset.planes,
                                statistics(everyone[0]), settings, base)
        trainer = DenoiserTrainer(args.output, model, settings, losses, args.device)
        trainer.run(args.until, save_every=args.save_every)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
