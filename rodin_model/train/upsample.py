"""`python -m rodin_model.train.upsample`: train the diffusion upsampler on pairs of coarse and fine planes.

Two losses: on the planes, and on pictures, small patches rendered from the predicted and from the true planes
(Rodin 3.3: planes alone do not guarantee good renders). With `--data` the avatars themselves are the target instead of
fitted fine planes: what the predicted planes say at labelled points and along rays, as in `rodin_model.fit`. With
`--base`, most of the coarse planes are what the base diffusion makes of them after some of the noise or all, so that
its kind of error is known to the upsampler. `--init` starts from a trained one. Resumable like
`rodin_model.train.base`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rodin_kernels import TinyDecoder, render_triplane
from rodin_model.cameras import Camera, box_near_far
from rodin_model.config import PRESETS, PlanesConfig, Preset
from rodin_model.decoder import load_decoder
from rodin_model.diffusion import BaseDiffusion, TriplaneDiffusion
from rodin_model.fit import FitConfig, decode_points, enlarge, fine_start, plane_loss, point_loss
from rodin_model.fit import picture_loss as ray_loss
from rodin_model.fit_data import Cloud, Rays, Views, draw_points, draw_rays, load_clouds, load_views, stored_ray_depths
from rodin_model.noise import beside
from rodin_model.train.base import arguments_of
from rodin_model.train.denoiser import (
    DenoiserSettings,
    DenoiserTrainer,
    all_planes,
    draw_keys,
    statistics,
    step_randomness,
)
from rodin_model.train.latents import Latents
from rodin_model.train.resume import settings_of, status_of
from rodin_model.upsampler import Upsampler, degrade

#: How many of the coarse planes the base diffusion makes anew, and in how many steps.
REMADE, STEPS = 0.75, 6


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
                                  outputs=("rgb",), image_width=pixels)
        return cast(Tensor, picture.rgb).view(pixels, pixels, 3)

    with torch.no_grad():
        wanted = draw(true)
    difference = draw(predicted) - wanted
    return difference.abs().mean() + difference.diff(dim=0).abs().mean() + difference.diff(dim=1).abs().mean()


@torch.no_grad()
def remade(base: TriplaneDiffusion, coarse: Tensor, z: Tensor, last: Tensor, generator: torch.Generator, *,
           quick: bool = False) -> Tensor:
    """Coarse planes [B, 3, C, r, r] in feature units, noised up to steps `last` [B], and denoised for latents z.

    Deterministic steps (DDIM, Song et al. 2021, eta = 0) at equal distances: x0 from the prediction, the noise that it
    leaves, both mixed for the next step. `quick` leaves the U-Net out where principal components say nearly all.
    """
    estimate = base.principal if quick and base.principal is not None else base.clean_estimate
    clean = base.normalize(coarse)
    noise = torch.randn(clean.shape, **beside(generator)).to(clean)
    for share in torch.linspace(1, 0, STEPS):
        t = (last * float(share)).round().long().to(clean.device)
        noisy, bar = base.add_noise(clean, noise, t), base.bars[t].view(-1, 1, 1, 1, 1)
        clean = estimate(noisy, t, z)
        noise = (noisy - bar.sqrt() * clean) / (1 - bar).sqrt()
    return base.denormalize(clean)


class Conditions:
    """What the upsampler is told in training: coarse planes, some as the base diffusion draws them, degraded; and z."""

    def __init__(self, coarse: Tensor, avatars: Sequence[int], latents: Latents, settings: DenoiserSettings,
                 coarse_statistics: tuple[Tensor, Tensor], base: BaseDiffusion | None = None) -> None:
        self.coarse, self.avatars, self.latents, self.settings = coarse, avatars, latents, settings
        self.coarse_mean, self.coarse_std = coarse_statistics
        self.base = base

    def __call__(self, model: Upsampler, rows: Tensor, rng: np.random.Generator,
                 generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(cond [B, 3, C, R, R] normalised, z [B, 512]) of the avatars in `rows` of the coarse planes."""
        z = self.latents.draw([self.avatars[int(i)] for i in rows], rng, self.settings.text_share).to(model.mean)
        small = self.coarse[rows.to(self.coarse.device)].float()
        if self.base is not None:
            last = torch.randint(self.base.noise.steps, (len(small),), **beside(generator))
            drawn = remade(self.base, small.to(model.mean), z, last, generator, quick=True).to(small)
            chosen = torch.rand(len(small), 1, 1, 1, 1, **beside(generator)).to(small) < REMADE
            small = torch.where(chosen, drawn, small)
        small = (small - self.coarse_mean) / self.coarse_std
        strength = 1.0 if self.base is None else 0.5  # errors of the base's own kind need less of another kind
        small = degrade(small, generator, strength=strength) * self.coarse_std + self.coarse_mean
        return model.condition(small.to(model.mean)), z


class UpsampleLosses:
    """Against fitted fine planes: x0 loss and picture loss, pairs drawn from (seed, step)."""

    def __init__(self, conditions: Conditions, fine: Tensor, decoder: TinyDecoder, config: PlanesConfig) -> None:
        self.conditions, self.fine = conditions, fine
        self.decoder, self.config = decoder.requires_grad_(False), config

    def __call__(self, model: Upsampler, step: int) -> dict[str, Tensor]:
        settings = self.conditions.settings
        rng, generator = step_randomness(settings.seed, step, model.mean.device)
        rows = torch.from_numpy(rng.integers(0, len(self.fine), settings.batch))
        cond, z = self.conditions(model, rows, rng, generator)
        clean = model.normalize(self.fine[rows.to(self.fine.device)].to(model.mean))
        loss, prediction = model.training_loss(clean, z, generator, cond)
        if not settings.image_weight:
            return {"loss": loss}
        with torch.autocast(model.mean.device.type, enabled=False):
            pair = model.denormalize(torch.stack([prediction[0].float(), clean[0]]))
            picture = picture_loss(pair[:1], pair[1:], self.decoder, self.config, rng)
        return {"loss": loss, "picture": settings.image_weight * picture}


class PointLosses:
    """Against the avatars themselves, where there are no fine planes: density and colour at labelled points.

    The clean planes that are made noisy are the network's own estimate from noise alone, as it will meet them when it
    draws; most batches are that first estimate itself. `points` of each avatar, half of them in the face, most of
    these between brows and mouth, some at the back of the head. With `views` also what `rays` of the avatars' true
    pictures show, weighted by `settings.image_weight`.
    """

    def __init__(self, conditions: Conditions, cloud: Cloud, decoder: TinyDecoder, config: FitConfig,
                 points: int = 8192, views: Views | None = None, rays: int = 512) -> None:
        self.conditions, self.cloud, self.points = conditions, cloud, points
        self.decoder, self.config = decoder.requires_grad_(False), config
        self.views, self.rays = views, rays
        self.depths = None if views is None else stored_ray_depths(views)

    def __call__(self, model: Upsampler, step: int) -> dict[str, Tensor]:
        settings, device = self.conditions.settings, model.mean.device
        rng, generator = step_randomness(settings.seed, step, device)
        rows = torch.from_numpy(rng.integers(0, len(self.cloud.points), settings.batch))
        cond, z = self.conditions(model, rows, rng, generator)
        noisy, t = self._noisy(model, cond, z, rng, generator)
        planes = model.denormalize(model.predict(noisy, t, z, cond)[:, :, :model.channels].float())
        keys = draw_keys(generator, settings.seed, rows, step)
        index = rows.to(self.cloud.points.device)
        drawn = draw_points(Cloud(*(part[index] for part in self.cloud)), self.points, keys, 0.2,
                            face_share=0.15, feature_share=0.3, behind_share=0.15)
        drawn = Cloud(*(part.to(device) for part in drawn))
        losses = self.config.losses
        with torch.autocast(device.type, enabled=False):
            decoded = decode_points(planes, drawn.points, self.decoder, self.config)
            found = {"points": point_loss(*decoded, drawn, losses).mean(),
                     "planes": plane_loss(planes, model.denormalize(cond.float()), losses).mean()}
            if self.views is not None and self.depths is not None:
                seen, depths = Views(*(part[index] for part in self.views)), self.depths[index].float()
                own = draw_keys(generator, settings.seed, rows, step, 1)
                rays = Rays(*(part.to(device) for part in draw_rays(seen, depths, self.rays, 20, own)))
                found["rays"] = settings.image_weight * ray_loss(planes, self.decoder, rays, self.config).mean()
            return found

    @staticmethod
    @torch.no_grad()
    def _noisy(model: Upsampler, cond: Tensor, z: Tensor, rng: np.random.Generator,
               generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(noisy planes [B, 3, C, R, R], steps t [B]): the last step for nine batches of ten, any for the others."""
        last = torch.full((len(cond),), model.noise.steps - 1, device=cond.device)
        noise = torch.randn(cond.shape, **beside(generator)).to(cond)
        if rng.random() < 0.9:
            return noise, last
        clean = model.predict(noise, last, z, cond)[:, :, :model.channels].float()
        t = torch.randint(model.noise.steps, (len(cond),), **beside(generator)).to(cond.device)
        return model.add_noise(clean, torch.randn(cond.shape, **beside(generator)).to(cond), t), t


def paired(coarse: tuple[Tensor, list[int]], fine: tuple[Tensor, list[int]]) -> tuple[Tensor, Tensor, list[int]]:
    """The rows of both sets that show the same avatars, in the order of the fine set."""
    where = {avatar: row for row, avatar in enumerate(coarse[1])}
    rows = [row for row, avatar in enumerate(fine[1]) if avatar in where]
    if not rows:
        raise ValueError("--coarse and --fine have no avatar in common")
    avatars = [fine[1][row] for row in rows]
    return coarse[0][[where[avatar] for avatar in avatars]], fine[0][rows], avatars


def losses_of(args: argparse.Namespace, settings: DenoiserSettings,
              preset: Preset) -> tuple[UpsampleLosses | PointLosses, tuple[Tensor, Tensor]]:
    """The losses that the arguments ask for, and the statistics of the fine planes."""
    (planes, numbers), latents = all_planes(args.coarse), Latents.load(args.latents).to(args.device)
    planes = planes.to(args.device)
    base = BaseDiffusion.from_folder(args.base).to(args.device) if args.base else None
    (decoder, mean, _), about = load_decoder(args.decoder, args.device), statistics(planes)
    if args.data:
        conditions = Conditions(planes, numbers, latents, settings, about, base)
        config = FitConfig(planes=preset.planes, decoder_hidden=preset.decoder_hidden)
        cloud = Cloud(*(part.to(args.device) for part in load_clouds([args.data])))
        views = Views(*(part.to(args.device) for part in load_views(args.data))) if args.rays else None
        # points tell nothing of the statistics of fine planes: the average avatar is that of the joint fit or of
        # --average, moved to where the coarse planes are, and the coarse planes' deviation serves for the fine ones
        if args.average:
            mean = Upsampler.from_folder(args.average).mean
        average = fine_start(enlarge(mean[None], preset.planes.resolution)[0].to(args.device), about[0][None])[0]
        return PointLosses(conditions, cloud, decoder, config, args.points, views, args.rays), (average, about[1])
    coarse, fine, avatars = paired((planes, numbers), all_planes(args.fine))
    conditions = Conditions(coarse, avatars, latents, settings, about, base)
    fine = fine.to(args.device)
    return UpsampleLosses(conditions, fine, decoder, preset.planes), statistics(fine)


def begin_with(model: Upsampler, trained: Upsampler) -> None:
    """Give `model` the weights of a trained one, which may lack maps of places or detail: both start without effect."""
    lacking, unknown = model.load_state_dict(trained.state_dict(), strict=False)
    if unknown or any(not name.startswith(("unet.positions", "unet.placing", "details")) for name in lacking):
        raise ValueError(f"--init is another kind of upsampler: it lacks {', '.join([*lacking, *unknown])}")


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say."""
    if bool(args.fine) == bool(args.data):
        raise ValueError("give either --fine, a folder of fine planes, or --data, the data set itself")
    settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
    torch.manual_seed(settings.seed)
    trained = Upsampler.from_folder(args.init) if args.init else None
    model = Upsampler(preset.upsampler, preset.upsampler_noise, preset.planes.channels,
                      () if trained is None else trained.detail_configs(), preset.notch)
    losses, about = losses_of(args, settings, preset)
    if trained is not None:
        begin_with(model, trained)
    else:
        model.set_statistics(*about)
    trainer = DenoiserTrainer(args.output, model, settings, losses, args.device, args.minutes)
    trainer.run(args.until, save_every=args.save_every)
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = arguments_of(__doc__, "upsample")
    parser.add_argument("--fine", help="folder of fine planes from rodin_model.train.fit")
    parser.add_argument("--data", help="data set whose points are the target, instead of --fine")
    parser.add_argument("--points", type=int, default=8192, help="points of each avatar in a step, with --data")
    parser.add_argument("--rays", type=int, default=0, help="rays through its pictures in a step, with --data")
    parser.add_argument("--average", help="a trained upsampler whose average avatar to begin with, with --data")
    parser.add_argument("--decoder", required=True, help="decoder folder from rodin_model.train.fit joint")
    parser.add_argument("--base", help="the folder model/ of rodin_model.train.base, whose errors are to be repaired")
    parser.add_argument("--init", help="the folder model/ of a trained upsampler to start from")
    parser.set_defaults(batch=4, image_weight=1.0)
    args = parser.parse_args(arguments)
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())
