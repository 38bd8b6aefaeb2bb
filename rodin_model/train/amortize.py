"""`python -m rodin_model.train.amortize`: fit the planes of all avatars at once, as one function of their attributes.

It stands in the place of `rodin_model.train.fit coarse` where the data set knows what its avatars are: the same frozen
decoder, the same losses on the same points, but the planes of every avatar come from one network, and so do those of
avatars without pictures or points (`--imagined`). `--within` seeks the planes among those that a trained base diffusion
knows. Resumable; `--planes` then writes planes as `fit coarse` does.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from rodin_kernels import TinyDecoder
from rodin_model import checkpoints
from rodin_model.amortized import AmortizedPlanes
from rodin_model.avatars.attributes import SHAPE, VECTOR_SIZE, Attributes
from rodin_model.avatars.dataset import AvatarDataset, imagined_avatars
from rodin_model.config import PRESETS, AmortizedConfig
from rodin_model.decoder import load_decoder
from rodin_model.diffusion import BaseDiffusion
from rodin_model.fit import FitConfig, coarse_start, decode_points, plane_loss, point_loss
from rodin_model.fit_data import Cloud, draw_points, load_clouds
from rodin_model.train.denoiser import DenoiserSettings, DenoiserTrainer, draw_keys, step_randomness
from rodin_model.train.fit import SHARD, planes_file
from rodin_model.train.resume import add_bounds, add_imagined, add_settings, settings_of, status_of

#: Frequencies of the waves that a description holds for each of SHAPE, in half periods from -2 to 2.
WAVES = (1, 2, 4)
#: Length of a row of `descriptions`.
DESCRIPTION_SIZE = VECTOR_SIZE + 2 * len(WAVES) * len(SHAPE)


def descriptions(avatars: Sequence[Attributes]) -> Tensor:
    """What the function is told of each avatar, float32 [N, DESCRIPTION_SIZE].

    `Attributes.vector`, then sin(k pi v / 4) and cos(k pi v / 4) of every number v of SHAPE for k in `WAVES`: colours
    of accessories are looked up by such a number, which a smooth network finds hard.
    """
    vector = torch.tensor([avatar.vector() for avatar in avatars], dtype=torch.float32)
    angles = torch.cat([vector[:, -len(SHAPE):] * (k * math.pi / 4) for k in WAVES], 1)
    return torch.cat([vector, angles.sin(), angles.cos()], 1)


def known_avatars(folders: Sequence[str]) -> list[Attributes]:
    """What the avatars of some data sets are, one set after the other."""
    return [data.attributes(i) for data in map(AvatarDataset, folders) for i in range(len(data))]


class AmortizedLosses:
    """The fit's own losses (`rodin_model.fit`) on the planes of a batch of avatars drawn from (seed, step).

    Where cloud and descriptions lie on a GPU, so do all draws.
    """

    def __init__(self, cloud: Cloud, known: Tensor, decoder: TinyDecoder, config: FitConfig, points: int,
                 settings: DenoiserSettings) -> None:
        self.cloud, self.known, self.decoder = cloud, known, decoder.requires_grad_(False)
        self.config, self.points, self.settings = config, points, settings

    def __call__(self, model: AmortizedPlanes, step: int) -> dict[str, Tensor]:
        seed, device = self.settings.seed, model.mean.device
        rng, generator = step_randomness(seed, step, self.known.device)
        rows = rng.integers(0, len(self.known), self.settings.batch)
        index = torch.from_numpy(rows).to(self.known.device)
        keys = draw_keys(generator, seed, rows, step)
        drawn = draw_points(Cloud(*(part[index] for part in self.cloud)), self.points, keys, far_share=0.35)
        drawn = Cloud(*(part.to(device) for part in drawn))
        planes = model(self.known[index].to(device))
        losses = self.config.losses
        return {"points": point_loss(*decode_points(planes, drawn.points, self.decoder, self.config), drawn,
                                     losses).mean(),
                "planes": plane_loss(planes, model.mean[None], losses).mean()}


def imagined_descriptions(seed: int, count: int) -> Tensor:
    """`descriptions` of avatars without pictures."""
    return descriptions(imagined_avatars(seed, count))


@torch.no_grad()
def write_planes(folder: Path, model: AmortizedPlanes, known: Tensor) -> None:
    """The planes that rows of `descriptions` ask for, in shards of `planes_file`; each whole or not at all."""
    for start in tqdm(range(0, len(known), SHARD), disable=None, desc="planes"):
        some = known[start:start + SHARD]
        planes = model(some.to(model.mean.device)).half().cpu().contiguous()
        checkpoints.save_tensors(planes_file(folder, start // SHARD),
                                 {"planes": planes, "avatars": torch.arange(len(some)) + start})


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say, then write the planes that they ask for."""
    settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
    cloud, avatars = load_clouds(args.data), known_avatars(args.data)
    decoder, mean, _ = load_decoder(args.decoder, args.device)
    config = FitConfig(planes=preset.planes, decoder_hidden=preset.decoder_hidden)
    torch.manual_seed(settings.seed)
    within = BaseDiffusion.from_folder(args.within) if args.within else None
    components = AmortizedConfig.components
    if within is not None and within.principal is not None:
        components = within.principal.config.components
    model = AmortizedPlanes(AmortizedConfig(DESCRIPTION_SIZE, preset.planes.coarse_resolution, preset.planes.channels,
                                            args.width, args.blocks, components))
    if within is not None:
        model.set_components(within)
    else:
        model.mean.copy_(coarse_start(mean, preset.planes.coarse_resolution))
    known, cloud = descriptions(avatars).to(args.device), Cloud(*(part.to(args.device) for part in cloud))
    losses = AmortizedLosses(cloud, known, decoder, config, args.points, settings)
    trainer = DenoiserTrainer(args.output, model, settings, losses, args.device, args.minutes)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        # drawing very many attributes takes as long as training: a process does it meanwhile
        apart = args.planes and args.imagined > 1000
        later = pool.submit(imagined_descriptions, args.imagined_seed, args.imagined) if apart else None
        trainer.run(args.until, save_every=args.save_every)
        print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")
        if args.planes:
            shown = [descriptions(known_avatars(args.data[:1]))]
            if args.imagined:
                shown.append(later.result() if later else imagined_descriptions(args.imagined_seed, args.imagined))
            model = AmortizedPlanes.from_folder(Path(args.output) / "model").to(args.device)
            write_planes(Path(args.planes), model, torch.cat(shown))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.amortize", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="data set folder; several: one option each")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--decoder", required=True, help="decoder folder from rodin_model.train.fit joint")
    parser.add_argument("--output", required=True)
    parser.add_argument("--points", type=int, default=2048, help="points of each avatar in a step")
    parser.add_argument("--width", type=int, default=AmortizedConfig.width, help="of the function's hidden layers")
    parser.add_argument("--blocks", type=int, default=AmortizedConfig.blocks, help="of two layers each")
    parser.add_argument("--within", help="folder of a base diffusion: seek the planes in its principal components")
    parser.add_argument("--planes", help="folder for the planes of the first data set, as fit coarse writes them")
    add_imagined(parser)
    add_bounds(parser, save_every=1000)
    add_settings(parser, DenoiserSettings)
    parser.set_defaults(batch=32, steps=10000, learning_rate=1e-3, cooldown=0.6, ema=0.998, precision="fp32")
    args = parser.parse_args(arguments)
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())
