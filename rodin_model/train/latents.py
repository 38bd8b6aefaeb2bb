"""`python -m rodin_model.train.latents`: the frozen towers' z of every picture in a data set and of captions for it.

Computed once, so that training the diffusions needs neither towers nor pictures; words and pictures condition alike.
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
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.captions import caption
from rodin_model.avatars.dataset import imagined_avatars
from rodin_model.conditioning import Conditioner
from rodin_model.train.resume import add_imagined
from rodin_model.train.towers import encode_sorted


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

    def rows(self, avatars: Sequence[int], count: int, rng: np.random.Generator, pictured: float = 0.0) -> np.ndarray:
        """`count` positions in `avatars`, a share `pictured` of them among those with pictures, the rest among all."""
        rows, seen = rng.integers(0, len(avatars), count), np.flatnonzero(np.asarray(avatars) < len(self.pictures))
        if pictured and len(seen):
            chosen = rng.random(count) < pictured
            rows = np.where(chosen, seen[rng.integers(0, len(seen), count)], rows)
        return rows

    def draw(self, avatars: Sequence[int], rng: np.random.Generator, text_share: float) -> Tensor:
        """One z [512] for each avatar, of one of its captions with probability `text_share`, else of one of its views.

        Half of the pictures are the frontal view 0; what has no pictures is always worded. [B, 512] float32.
        """
        count, who = len(avatars), torch.as_tensor(avatars)
        pictured = who < len(self.pictures)
        views = np.where(rng.random(count) < 0.5, 0, rng.integers(0, self.pictures.shape[1], count))
        captions = rng.integers(0, self.words.shape[1], count)
        worded = torch.from_numpy(rng.random(count) < text_share) | ~pictured
        seen, told = (source[rows, torch.from_numpy(which)].float()
                      for source, rows, which in ((self.pictures, who * pictured, views), (self.words, who, captions)))
        return torch.where(worded[:, None], told, seen)


@torch.no_grad()
def encode_data(data: str | Path, conditioner: Conditioner, views: int, captions: int, seed: int = 0,
                more: Sequence[Attributes] = ()) -> Latents:
    """z float16 of the first `views` views on white, and of `captions` captions, of every avatar of a data set.

    `more` avatars, of which there are no pictures, follow with their captions.
    """
    from rodin_model.avatars.dataset import AvatarDataset

    dataset, rng = AvatarDataset(data), np.random.default_rng(seed)
    pictures, words = [], []
    for i in tqdm(range(len(dataset) + len(more)), disable=None, desc="latents"):
        if i < len(dataset):
            seen = dataset.images(i)[:views].permute(0, 3, 1, 2)
            pictures.append(conditioner.encode_image(seen).half().cpu())
        avatar = dataset.attributes(i) if i < len(dataset) else more[i - len(dataset)]
        words.append(encode_sorted(conditioner, [caption(avatar, rng) for _ in range(captions)]).half().cpu())
    return Latents(torch.stack(pictures), torch.stack(words))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    from rodin_model.conditioning import TowerConditioner

    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.latents", description=__doc__)
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--towers", required=True, help="folder of the trained towers")
    parser.add_argument("--output", required=True, help="safetensors file to write")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32)
    add_imagined(parser)
    args = parser.parse_args(arguments)
    try:
        latents = encode_data(args.data, TowerConditioner.from_folder(args.towers), args.views, args.captions,
                              more=imagined_avatars(args.imagined_seed, args.imagined))
        checkpoints.save_tensors(args.output, {"pictures": latents.pictures, "words": latents.words})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: z of {args.views} views and {args.captions} captions of {len(latents.words)} avatars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
