"""`python -m rodin_model.train.latents`: the frozen towers' z of every picture in a data set and of captions for it.

Computed once, so that training the diffusions needs neither towers nor pictures; words and pictures condition alike.
With `--prior` the captions' z are those that a trained latent prior makes of them, as it does in use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rodin_model import checkpoints
from rodin_model.avatars.dataset import SEED_STEP, AvatarDataset, shard_paths
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.fit_data import read_views
from rodin_model.latent_prior import LatentPrior
from rodin_model.train.resume import add_imagined
from rodin_model.train.words import encode_words


class Latents:
    """z of pictures [N, V, 512] and of captions [M, W, 512], M >= N, any float dtype.

    Row i of both is avatar i; avatars from N on are known by their words alone.
    """

    def __init__(self, pictures: Tensor, words: Tensor) -> None:
        if pictures.ndim != 3 or words.ndim != 3 or not 0 < len(pictures) <= len(words):
            raise ValueError("pictures and words must be [N, V, 512] and [M, W, 512], M >= N > 0, of the same avatars; "
                             f"got {tuple(pictures.shape)} and {tuple(words.shape)}")
        self.pictures, self.words = pictures, words

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Read what this program wrote."""
        tensors, _ = checkpoints.load_tensors(path)
        if set(tensors) != {"pictures", "words"}:
            raise ValueError(f"{path} must hold pictures and words; it holds {', '.join(sorted(tensors))}")
        return cls(**tensors)

    def to(self, device: torch.device | str) -> Latents:
        """The same on a device; `draw` then gives rows there."""
        return Latents(self.pictures.to(device), self.words.to(device))

    def rows(self, avatars: Sequence[int] | np.ndarray, count: int, rng: np.random.Generator,
             pictured: float = 0.0) -> np.ndarray:
        """`count` positions in `avatars`, a share `pictured` of them among those with pictures, the rest among all."""
        rows, seen = rng.integers(0, len(avatars), count), np.flatnonzero(np.asarray(avatars) < len(self.pictures))
        if pictured and len(seen):
            chosen = rng.random(count) < pictured
            rows = np.where(chosen, seen[rng.integers(0, len(seen), count)], rows)
        return rows

    def draw(self, avatars: Sequence[int] | np.ndarray, rng: np.random.Generator, text_share: float) -> Tensor:
        """One z [512] for each avatar, of one of its captions with probability `text_share`, else of one of its views.

        Half of the pictures are the frontal view 0; what has no pictures is always worded. [B, 512] float32.
        """
        count, who = len(avatars), np.asarray(avatars)
        pictured = who < len(self.pictures)
        views = np.where(rng.random(count) < 0.5, 0, rng.integers(0, self.pictures.shape[1], count))
        captions = rng.integers(0, self.words.shape[1], count)
        worded = (rng.random(count) < text_share) | ~pictured
        # one transfer for all that chooses
        chosen = torch.from_numpy(np.stack([who * pictured, views, who, captions, worded])).to(self.words.device)
        seen, told = self.pictures[chosen[0], chosen[1]].float(), self.words[chosen[2], chosen[3]].float()
        return torch.where(chosen[4, :, None] > 0, told, seen)


@torch.no_grad()
def encode_pictures(folder: str | Path, conditioner: Conditioner, views: int) -> Tensor:
    """z float16 [N, views, 512] of the first `views` views, on white, of every avatar of the data set in `folder`."""
    encoded = []
    for shard in tqdm(shard_paths(folder), disable=None, desc="pictures"):
        rgb = read_views(shard).rgb[:, :views]
        z = conditioner.encode_image(rgb.flatten(0, 1).permute(0, 3, 1, 2).float() / 255)
        encoded.append(z.half().cpu().unflatten(0, rgb.shape[:2]))
    return torch.cat(encoded)


@torch.no_grad()
def through_prior(words: Tensor, folder: str, scale: float, device: str, seed: int = 0) -> Tensor:
    """What the latent prior in `folder` makes of captions' z [M, W, 512], one drawing of each; the same shape."""
    prior, drawn = LatentPrior.from_folder(folder).to(device), []
    for first, part in enumerate(tqdm(words.flatten(0, 1).split(64), disable=None, desc="prior")):
        generators = [torch.Generator().manual_seed(seed + 64 * first + i) for i in range(len(part))]
        drawn.append(prior.sample(generators, part.float().to(device), guidance_scale=scale).half().cpu())
    return torch.cat(drawn).view_as(words)


def encode_data(args: argparse.Namespace) -> Latents:
    """What the arguments ask for: a data set's pictures, its captions, and those of avatars without pictures."""
    data = AvatarDataset(args.data)
    full = round(args.captions * args.full)
    avatars = [*map(data.attributes, range(len(data))),
               *(args.imagined_seed * SEED_STEP + number for number in range(args.imagined))]
    words = encode_words(args.towers, avatars, (1.0,) * full + (None,) * (args.captions - full),
                         device=args.device, workers=args.workers)
    if args.prior:
        words = through_prior(words, args.prior, args.prior_scale, args.device)
    conditioner = TowerConditioner.from_folder(args.towers).to(args.device)
    return Latents(encode_pictures(args.data, conditioner, args.views), words)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.latents", description=__doc__)
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--towers", required=True, help="folder of the trained towers")
    parser.add_argument("--output", required=True, help="safetensors file to write")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--full", type=float, default=0.0,
                        help="share of the captions that name all that can be seen; the others name any part of it")
    parser.add_argument("--prior", help="folder of a trained latent prior that the captions' z go through")
    parser.add_argument("--prior-scale", type=float, default=2.5, help="its guidance")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that write and read captions")
    add_imagined(parser)
    args = parser.parse_args(arguments)
    try:
        if not 0 <= args.full <= 1:
            raise ValueError(f"--full is a share, from 0 to 1; got {args.full}")
        latents = encode_data(args)
        checkpoints.save_tensors(args.output, {"pictures": latents.pictures, "words": latents.words})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: z of {args.views} views and {args.captions} captions of {len(latents.words)} avatars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
