"""`python -m rodin_model.train.detail`: teach a trained upsampler the next of its details (`rodin_model.detail`).

All that is trained stays as it is: what it makes of the training avatars is computed once, in the detail's windows, and
what is added there learns from the avatars' own points: in windows in front of the face, ten thousand avatars a minute
on two CPU cores. Several data sets: one `--data`, `--coarse` and `--latents` for each. Under `torchrun` every process
takes a share of the avatars. Resumable like `rodin_model.train.base`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from rodin_kernels import TinyDecoder
from rodin_model.avatars.dataset import shard_paths
from rodin_model.config import LATENT_SIZE, PRESETS, DetailConfig
from rodin_model.decoder import load_decoder
from rodin_model.detail import Detail
from rodin_model.diffusion import BaseDiffusion
from rodin_model.fit import FitConfig, decode_points, point_loss
from rodin_model.fit_data import BEHIND, EVERYWHERE, FEATURES, Box, Cloud, draw_inside, read_cloud
from rodin_model.noise import beside
from rodin_model.train.denoiser import DenoiserSettings, DenoiserTrainer, all_planes, statistics, step_randomness
from rodin_model.train.latents import Latents
from rodin_model.train.resume import add_bounds, add_settings, settings_of, status_of
from rodin_model.train.upsample import Conditions, begin_with
from rodin_model.upsampler import Upsampler

#: Where points are drawn, as many of each kind, and how far from the surface, in world units, they may be.
PLACES: tuple[tuple[Box, float], ...] = ((FEATURES, 0.05), (EVERYWHERE, 4.0), (BEHIND, 0.1))


class Windows(NamedTuple):
    """What the U-Net makes of N avatars, V times: planes and condition float16 [N, V, 3, C, w, w].

    z [N, K, 512] are all latents of the avatars, of their pictures and of their captions.
    """

    planes: Tensor
    cond: Tensor
    z: Tensor


def window_box(config: DetailConfig, resolution: int) -> Box:
    """The part of the box [-1, 1]^3 that the windows show on all planes, x, y and z each from .. to."""
    low = [2 * first / resolution - 1 for first in config.corner]
    return tuple((start, start + 2 * config.window / resolution) for start in low)


@torch.no_grad()
def seen_windows(model: Upsampler, detail: Detail, conditions: Conditions, rows: Sequence[int], windows: Windows,
                 precision: str, batch: int | None = None) -> None:
    """Fill `windows` with what `model` draws where `detail` will add to it, of the avatars in `rows` of the conditions.

    Each variant is told something else of them. `batch` avatars at a time; what keeps the device busy if left out.
    """
    device = model.mean.device
    batch = batch or (8 if device.type == "cpu" else 64)
    bar = tqdm(total=windows.planes[:, :, 0, 0, 0, 0].numel(), disable=None, desc="windows")
    for variant in range(windows.planes.shape[1]):
        for start in range(0, len(rows), batch):
            some = torch.tensor(rows[start:start + batch])
            rng, generator = step_randomness(conditions.settings.seed + variant, int(some[0]), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                cond, z = conditions(model, some, rng, generator)
                noise = torch.randn(cond.shape, generator=generator, device=device)
                planes = model.first_estimate(noise, z, cond)
            for kept, whole in ((windows.planes, planes), (windows.cond, cond)):
                kept[start:start + len(some), variant] = detail.cut(whole).half()
            bar.update(len(some))
    bar.close()
    latents, avatars = conditions.latents, [conditions.avatars[row] for row in rows]
    z = torch.cat([latents.pictures[avatars], latents.words[avatars]], 1)
    windows.z[:] = z[:, torch.arange(windows.z.shape[1]) % z.shape[1]]


def window_points(folder: str, rows: Sequence[int], box: Box, count: int, seed: int,
                  device: torch.device | str = "cpu") -> tuple[Cloud, ...]:
    """`count` points of each avatar in `rows` of a data set in each of `PLACES` that `box` has a part of."""
    shared = [(tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, place, strict=True)), reach)
              for place, reach in PLACES]
    shared = [(part, reach) for part, reach in shared if all(low < high for low, high in part)]
    drawn: list[list[Cloud]] = [[] for _ in shared]
    wanted, first = set(rows), 0
    for shard in shard_paths(folder):
        cloud = read_cloud(shard)
        own = [row for row in range(first, first + len(cloud.points)) if row in wanted]
        some = Cloud(*(part[[row - first for row in own]].to(device) for part in cloud))
        for found, (part, reach) in zip(drawn, shared, strict=True):
            found.append(draw_inside(some, part, reach, count, [(seed, row) for row in own]))
        first += len(cloud.points)
    return tuple(Cloud(*(torch.cat(part) for part in zip(*clouds, strict=True))) for clouds in drawn)


class DetailLosses:
    """The loss at points in the window, as many of each of `PLACES`; avatars, conditions, points by (seed, step)."""

    def __init__(self, windows: Windows, points: tuple[Cloud, ...], box: Box, decoder: TinyDecoder, config: FitConfig,
                 settings: DenoiserSettings, count: int) -> None:
        self.windows, self.points, self.settings, self.count = windows, points, settings, count
        self.low, self.high = torch.tensor(box, device=windows.z.device).T
        self.decoder, self.config = decoder.requires_grad_(False), config

    def __call__(self, model: Upsampler, step: int) -> dict[str, Tensor]:
        detail, device = cast(Detail, model.details[-1]), model.mean.device
        _, generator = step_randomness(self.settings.seed, step, device)
        shape = (*self.windows.planes.shape[:2], self.windows.z.shape[1])
        rows, seen, told = (torch.randint(n, (self.settings.batch,), **beside(generator)) for n in shape)
        planes, cond = (part[rows, seen].float() for part in self.windows[:2])
        z = self.windows.z[rows, told].float()
        planes = planes + detail.within(planes, cond, z).float()
        planes = planes * model.std + detail.cut(model.mean[None])
        clouds = (self._draw(cloud, rows, generator) for cloud in self.points)
        drawn = Cloud(*(torch.cat(parts, 1) for parts in zip(*clouds, strict=True)))
        with torch.autocast(device.type, enabled=False):
            # the windows are planes of their own, whose box is a part of the avatar's
            inside = (drawn.points - self.low) / (self.high - self.low) * 2 - 1
            decoded = decode_points(planes, inside, self.decoder, self.config)
            return {"points": point_loss(*decoded, drawn, self.config.losses).mean()}

    def _draw(self, cloud: Cloud, rows: Tensor, generator: torch.Generator) -> Cloud:
        index = torch.randint(cloud.points.shape[1], (len(rows), self.count), **beside(generator))
        points, distance, color = (part[rows[:, None], index] for part in cloud)
        return Cloud(points.float(), distance.float(), color.float() / 255)


def gathered(args: argparse.Namespace, trained: Upsampler, detail: Detail, settings: DenoiserSettings,
             box: Box) -> tuple[Windows, tuple[Cloud, ...]]:
    """Windows and points of this process's share of all data sets."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    base = BaseDiffusion.from_folder(args.base).to(args.device)
    sets = [(all_planes(coarse), Latents.load(latents).to(args.device))
            for coarse, latents in zip(args.coarse, args.latents, strict=True)]
    shares = [range(rank, len(planes), world) for (planes, _), _ in sets]
    size, told = detail.config.window, max(z.pictures.shape[1] + z.words.shape[1] for _, z in sets)
    # all at once in their places: they fill most of the memory
    shape = (sum(map(len, shares)), args.variants, 3, trained.channels, size, size)
    windows = Windows(*(torch.empty(some, dtype=torch.float16, device=args.device)
                        for some in (shape, shape, (shape[0], told, LATENT_SIZE))))
    about, points, first = statistics(sets[0][0][0]), [], 0  # of the set that the upsampler has learned from
    for data, ((planes, numbers), latents), rows in zip(args.data, sets, shares, strict=True):
        conditions = Conditions(planes.to(args.device), numbers, latents, settings,
                                (about[0].to(args.device), about[1].to(args.device)), base)
        own = Windows(*(part[first:first + len(rows)] for part in windows))
        seen_windows(trained, detail, conditions, rows, own, settings.precision)
        points.append(window_points(data, rows, box, args.kept, settings.seed, args.device))
        first += len(rows)
    return windows, tuple(Cloud(*(torch.cat(part) for part in zip(*clouds, strict=True)))
                          for clouds in zip(*points, strict=True))


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say."""
    if not len(args.data) == len(args.coarse) == len(args.latents):
        raise ValueError(f"give as many --data as --coarse and --latents; got {len(args.data)}, {len(args.coarse)} and "
                         f"{len(args.latents)}")
    settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
    if not 1 <= args.number <= len(preset.details):
        raise ValueError(f"the preset {args.preset} has {len(preset.details)} details; got --number {args.number}")
    trained = Upsampler.from_folder(args.init).to(args.device)
    if len(trained.details) not in (args.number - 1, args.number):
        raise ValueError(f"--init has {len(trained.details)} details; number {args.number} needs those before it")
    torch.manual_seed(settings.seed)
    model = Upsampler(trained.config, trained.noise, trained.channels, preset.details[:args.number], preset.notch)
    begin_with(model, trained)
    model.requires_grad_(False)
    detail = cast(Detail, model.details[-1].requires_grad_(True))
    trained.details = trained.details[:args.number - 1]
    box = window_box(detail.config, trained.config.resolution)
    decoder, _, _ = load_decoder(args.decoder, args.device)
    windows, points = gathered(args, trained, detail, settings, box)
    losses = DetailLosses(windows, points, box, decoder, FitConfig(planes=preset.planes), settings, args.points)
    trainer = DenoiserTrainer(args.output, model, settings, losses, args.device, args.minutes)
    trainer.run(args.until, save_every=args.save_every)
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.detail", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--data", action="append", required=True, help="data set folder")
    parser.add_argument("--coarse", action="append", required=True, help="folder of its coarse planes")
    parser.add_argument("--latents", action="append", required=True, help="its file from rodin_model.train.latents")
    parser.add_argument("--init", required=True, help="the folder model/ of a trained upsampler")
    parser.add_argument("--base", required=True, help="the folder model/ of rodin_model.train.base")
    parser.add_argument("--decoder", required=True, help="decoder folder from rodin_model.train.fit joint")
    parser.add_argument("--output", required=True)
    parser.add_argument("--number", type=int, default=1, help="which of the preset's details, after those before it")
    parser.add_argument("--variants", type=int, default=2, help="how often each avatar is seen from other conditions")
    parser.add_argument("--kept", type=int, default=4096, help="points of each avatar that are kept, of either kind")
    parser.add_argument("--points", type=int, default=768, help="points of each kind of an avatar in a step")
    add_bounds(parser, save_every=1000)
    add_settings(parser, DenoiserSettings)
    parser.set_defaults(batch=16, steps=40000, learning_rate=2e-3, cooldown=0.7, text_share=0.4)
    args = parser.parse_args(arguments)
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())
