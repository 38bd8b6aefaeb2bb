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
from rodin_model.avatars.captions import caption
from rodin_model.conditioning import Conditioner
from rodin_model.train.towers import encode_sorted


class Latents:
    """z of pictures [N, V, 512] and of captions [N, W, 512] of the same N avatars, any float dtype."""

    def __init__(self, pictures: Tensor, words: Tensor) -> None:
        if pictures.ndim != 3 or words.ndim != 3 or len(pictures) != len(words):
            raise ValueError(f"pictures and words must be [N, n, 512] of the same avatars; got {tuple(pictures.shape)} "
                             f"and {tuple(words.shape)}")
        self.pictures, self.words = pictures, words

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Read what this program wrote."""
        tensors, _ = checkpoints.load_tensors(path)
        if set(tensors) != {"pictures", "words"}:
            raise ValueError(f"{path} must hold pictures and words; it holds {', '.join(sorted(tensors))}")
        return cls(**tensors)

    def draw(self, avatars: Sequence[int], rng: np.random.Generator, text_share: float) -> Tensor:
        """One z [512] for each avatar, of one of its captions with probability `text_share`, else of one of its views.

        Half of the pictures are the frontal view 0. [B, 512] float32.
        """
        count, who = len(avatars), torch.as_tensor(avatars)
        views = np.where(rng.random(count) < 0.5, 0, rng.integers(0, self.pictures.shape[1], count))
        captions = rng.integers(0, self.words.shape[1], count)
        worded = torch.from_numpy(rng.random(count) < text_share)[:, None]
        seen, told = (source[who, torch.from_numpy(which)].float()
                      for source, which in ((self.pictures, views), (self.words, captions)))
        return torch.where(worded, told, seen)


@torch.no_grad()
def encode_data(data: str | Path, conditioner: Conditioner, views: int, captions: int, seed: int = 0) -> Latents:
    """z float16 of the first `views` views on white, and of `captions` captions, of every avatar of a data set."""
    from rodin_model.avatars.dataset import AvatarDataset

    dataset, rng = AvatarDataset(data), np.random.default_rng(seed)
    pictures, words = [], []
    for i in tqdm(range(len(dataset)), disable=None, desc="latents"):
        seen = dataset.images(i)[:views].permute(0, 3, 1, 2)
        texts = [caption(dataset.attributes(i), rng) for _ in range(captions)]
        pictures.append(conditioner.encode_image(seen).half().cpu())
        words.append(encode_sorted(conditioner, texts).half().cpu())
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
    args = parser.parse_args(arguments)
    try:
        latents = encode_data(args.data, TowerConditioner.from_folder(args.towers), args.views, args.captions)
        checkpoints.save_tensors(args.output, {"pictures": latents.pictures, "words": latents.words})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: z of {args.views} views and {args.captions} captions of {len(latents.words)} avatars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
