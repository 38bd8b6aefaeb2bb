"""`python -m rodin_model.train.pairs`: what the refiner learns from, renderings of planes beside the true pictures.

Planes come from three sources, drawn anew for each view: fitted ones; ones between the enlarged coarse and the fine
fit; and, with `--model`, what that model's diffusions make of the fitted coarse planes after part of the noise, so that
the kind of error is there that planes have in use. Without `--fine`, the model's upsampler makes them all. Truth is
drawn anew from the avatar's number, at the refined size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from rodin_kernels import TinyDecoder
from rodin_model import checkpoints
from rodin_model.avatars.attributes import sample_attributes
from rodin_model.avatars.dataset import SEED_STEP, avatar_cameras
from rodin_model.avatars.pictures import Picture, render_views
from rodin_model.config import PRESETS, PlanesConfig
from rodin_model.decoder import load_decoder
from rodin_model.fit import conventions, enlarge, fine_start
from rodin_model.pipeline import RodinPipeline
from rodin_model.refiner import look
from rodin_model.train.denoiser import all_planes
from rodin_model.train.pace import Pace
from rodin_model.train.resume import add_settings, settings_of
from rodin_model.train.upsample import paired, remade
from rodin_model.triplane import Avatar
from rodin_model.upsampler import degrade

FORMAT = "rodin-pairs-1"
#: How planes are chosen for a view: fitted, between coarse and fine, remade by a model; and without a model.
SHARES = {True: (0.35, 0.15, 0.5), False: (0.7, 0.3, 0.0)}
#: Of fine planes that the upsampler makes: of the fitted coarse ones, and of remade ones.
UPSAMPLED_SHARES = (0.3, 0.7)
#: How much of the coarse planes is left in the noise that they are remade from (alpha bar).
KEPT = (0.4, 0.97)


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made: `views` of each avatar, `size` pixels rendered, `scale` times as many along a side as truth.

    The first view is the front. `data_seed` is the seed that the data set of the planes was made with.
    """

    views: int = 4
    size: int = 256
    scale: int = 2
    seed: int = 0
    data_seed: int = 0


@torch.no_grad()
def upsampled(model: RodinPipeline, coarse: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """Fine planes [3, C, R, R] that the upsampler makes of coarse ones [1, 3, C, r, r] told by z [1, 512].

    One step from noise to planes, where the model takes no more and predicts them, needs no scheduler.
    """
    part, steps = model.upsampler, model.index.upsampler_steps
    if steps > 1 or part.noise.prediction != "sample":
        return part.sample(coarse, z, generators=[generator], steps=steps)[0]
    condition = part.condition(coarse)
    noise = torch.randn(condition.shape, generator=generator).to(condition)
    return part.denormalize(part.first_estimate(noise, z, condition).float())[0]


class PairMaker:
    """Renderings and truth of one avatar after another."""

    def __init__(self, decoder: TinyDecoder, mean: Tensor, planes: PlanesConfig, settings: PairSettings,
                 model: RodinPipeline | None = None) -> None:
        self.decoder, self.planes, self.settings, self.model = decoder, planes, settings, model
        self.mean = enlarge(mean[None], planes.resolution)[0] if mean.shape[-1] < planes.resolution else mean
        self.device = self.mean.device

    def generated(self, coarse: Tensor, front: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Fine planes [3, C, R, R] that the model makes of coarse ones [3, C, r, r], told by the front picture."""
        assert self.model is not None
        z = self.model.conditioner.encode_image(front[None]).float()
        base, kept = self.model.base, float(rng.uniform(*KEPT))
        coarse = remade(base, coarse[None], z, ((base.bars >= kept).sum() - 1).clamp_min(0)[None], generator)
        if rng.random() < 0.5:
            spread = coarse.std((-2, -1), keepdim=True)
            coarse = degrade(coarse / spread, generator, strength=0.5) * spread
        return upsampled(self.model, coarse, z, generator)

    def sources(self, coarse: Tensor, fine: Tensor | None, front: Tensor,
                rng: np.random.Generator) -> tuple[list[Tensor], tuple[float, ...]]:
        """Planes [3, C, R, R] that views are made of, and how often each."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62))) if self.model is not None else None
        if fine is None:
            assert self.model is not None and generator is not None
            z = self.model.conditioner.encode_image(front[None]).float()
            return [upsampled(self.model, coarse[None], z, generator),
                    self.generated(coarse, front, rng, generator)], UPSAMPLED_SHARES
        found = [fine, fine_start(self.mean, coarse[None])[0]]
        if generator is not None:
            found.append(self.generated(coarse, front, rng, generator))
        return found, SHARES[self.model is not None]

    @torch.no_grad()
    def make(self, number: int, coarse: Tensor, fine: Tensor | None) -> dict[str, Tensor]:
        """Pairs of avatar `number`: `seen` float16 [V, 5 + C, H, W] (`refiner.look`), `truth` uint8 [V, 4, sH, sW].

        Truth is premultiplied colour and coverage. coarse [3, C, r, r], fine [3, C, R, R] or None for the upsampler's.
        """
        settings, identity = self.settings, self.settings.data_seed * SEED_STEP + number
        rng = np.random.default_rng([settings.seed, 0x9A1, number])
        cameras = avatar_cameras(identity, settings.views, settings.size * settings.scale)
        pictures = render_views(sample_attributes(identity), cameras, background=0.0, device=self.device)
        truth = torch.stack([_rgba(p) for p in pictures])
        front = F.interpolate((truth[:1, :3] + 1 - truth[:1, 3:]).clamp(0, 1), (settings.size, settings.size),
                              mode="area")[0]
        sources, shares = self.sources(coarse, fine, front, rng)
        seen = []
        for camera in cameras:
            kind = int(rng.choice(len(shares), p=shares))
            between = fine is not None and kind == 1
            planes = torch.lerp(sources[0], sources[1], float(rng.random())) if between else sources[kind]
            avatar = Avatar(planes, self.decoder, **conventions(self.planes))
            seen.append(look(avatar, camera.resized(settings.size), self.planes.channels)[0].half())
        return {"seen": torch.stack(seen).cpu(), "truth": (truth * 255).round().to(torch.uint8).cpu()}


def _rgba(picture: Picture) -> Tensor:
    return torch.cat([picture.rgb, picture.alpha[..., None]], -1).permute(2, 0, 1)


class Pairs:
    """Pairs in the folders that this program wrote, read a piece at a time; `len(pairs)` pictures."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        files = [file for folder in folders for file in sorted(Path(folder).glob("pair-*.safetensors"))]
        if not files:
            raise FileNotFoundError(f"no pair-*.safetensors in {', '.join(map(str, folders))}: "
                                    "python -m rodin_model.train.pairs makes them")
        self._open = [safe_open(file, framework="pt") for file in files]
        self._where = [(i, view) for i, file in enumerate(self._open)
                       for view in range(file.get_slice("seen").get_shape()[0])]
        _, self.channels, self.height, self.width = self._open[0].get_slice("seen").get_shape()
        self.scale = self._open[0].get_slice("truth").get_shape()[-1] // self.width

    def __len__(self) -> int:
        return len(self._where)

    def files(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything as it is stored, a file at a time: `seen` float16 [V, C, H, W], `truth` uint8 [V, 4, sH, sW]."""
        for file in self._open:
            yield file.get_tensor("seen"), file.get_tensor("truth")

    def read(self, number: int, top: int = 0, left: int = 0, size: int | None = None) -> tuple[Tensor, Tensor]:
        """A square piece of one picture, or all of it: `seen` [C, H, W] and `truth` [4, sH, sW], float32."""
        file, view = self._where[number]
        s, bottom, right = self.scale, top + (size or self.height), left + (size or self.width)
        seen = self._open[file].get_slice("seen")[view, :, top:bottom, left:right]
        truth = self._open[file].get_slice("truth")[view, :, top * s:bottom * s, left * s:right * s]
        return seen.float(), truth.float() / 255


def run(args: argparse.Namespace) -> int:
    """Write the pairs of every avatar that has none yet, until time is up; returns how many there are."""
    settings, output, pace = settings_of(args, PairSettings), Path(args.output), Pace(2**62, args.minutes)
    if not args.model and not (args.fine and args.decoder):
        raise ValueError("without --model there must be --fine and --decoder")
    model = RodinPipeline.from_pretrained(args.model, device=args.device) if args.model else None
    coarse, avatars = all_planes(args.coarse)
    fine: Tensor | None = None
    if args.fine:
        coarse, fine, avatars = paired((coarse, avatars), all_planes(args.fine))
    if args.decoder or model is None:
        decoder, mean, _ = load_decoder(args.decoder, args.device)
    else:
        decoder, mean = model.decoder, model.mean
    maker = PairMaker(decoder.requires_grad_(False), mean, PRESETS[args.preset].planes, settings, model)
    made = {**asdict(settings), "model": model.index.name if model else None}
    recipe = json.dumps(made if fine is not None else {**made, "fine": None}, sort_keys=True)
    done = 0
    for row, number in enumerate(tqdm(avatars[:args.avatars], disable=None, desc="pairs")):
        if pace.done(row):
            break
        done, path = row + 1, output / f"pair-{number:06d}.safetensors"
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                found = file.metadata() or {}
            if found.get("format") != FORMAT or found.get("recipe") != recipe:
                raise ValueError(f"{path} was made otherwise ({found.get('recipe')}); choose another folder")
            continue
        planes = [None if t is None else t[row].float().to(args.device) for t in (coarse, fine)]
        assert planes[0] is not None
        checkpoints.save_tensors(path, maker.make(number, planes[0], planes[1]), {"format": FORMAT, "recipe": recipe})
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.pairs", description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--coarse", required=True, help="folder of coarse planes from rodin_model.train.fit")
    parser.add_argument("--fine", help="folder of fine planes of the same avatars; without it, the model's own")
    parser.add_argument("--decoder", help="decoder folder from rodin_model.train.fit joint; without it, the model's")
    parser.add_argument("--model", help="folder of a model whose diffusions remake the planes of half of the views")
    parser.add_argument("--avatars", type=int, help="only the first so many")
    parser.add_argument("--minutes", type=float, help="end after so much time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini", help="how the planes are read")
    parser.add_argument("--output", required=True)
    add_settings(parser, PairSettings)
    args = parser.parse_args(arguments)
    try:
        count = run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output} holds pairs of {count} avatars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
