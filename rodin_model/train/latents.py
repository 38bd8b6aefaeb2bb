"""`python -m rodin_model.train.latents`: the frozen towers' z of every picture in a data set, computed once.

Beside them the training draws z of fresh captions, so words and pictures condition the diffusion alike.
"""

from __future__ import annotations

import argparse
import json
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
from rodin_model.conditioning import Conditioner


class Latents:
    """z of pictures [N, V, 512] as stored, and z of captions made on the way."""

    def __init__(self, z: Tensor, attributes: list[Attributes], conditioner: Conditioner) -> None:
        self.z, self.attributes, self.conditioner = z, attributes, conditioner

    @classmethod
    def load(cls, path: str | Path, conditioner: Conditioner) -> Latents:
        """Read what this program wrote."""
        tensors, metadata = checkpoints.load_tensors(path)
        return cls(tensors["z"], [Attributes.from_dict(a) for a in json.loads(metadata["attributes"])], conditioner)

    def draw(self, avatars: Sequence[int], rng: np.random.Generator, text_share: float) -> Tensor:
        """One z [512] for each avatar, from a fresh caption with probability `text_share`, else from one of its views.

        Half of the pictures are the frontal view 0. [B, 512] float32.
        """
        views = np.where(rng.random(len(avatars)) < 0.5, 0, rng.integers(0, self.z.shape[1], len(avatars)))
        z = self.z[torch.as_tensor(avatars), torch.from_numpy(views)].float()
        worded = np.flatnonzero(rng.random(len(avatars)) < text_share)
        if len(worded):
            texts = [caption(self.attributes[avatars[i]], rng) for i in worded.tolist()]
            with torch.no_grad():
                z[torch.from_numpy(worded)] = self.conditioner.encode_text(texts).float().cpu()
        return z


def encode_data(data: str | Path, conditioner: Conditioner, views: int) -> tuple[Tensor, list[Attributes]]:
    """z float16 [N, V, 512] of the first `views` views on white, and who they show."""
    from rodin_model.avatars.dataset import AvatarDataset

    dataset = AvatarDataset(data)
    z, attributes = [], []
    for i in tqdm(range(len(dataset)), disable=None, desc="latents"):
        pictures = dataset.images(i)[:views].permute(0, 3, 1, 2)
        with torch.no_grad():
            z.append(conditioner.encode_image(pictures).half().cpu())
        attributes.append(dataset.attributes(i))
    return torch.stack(z), attributes


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    from rodin_model.conditioning import TowerConditioner

    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.latents", description=__doc__)
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--towers", required=True, help="folder of the trained towers")
    parser.add_argument("--output", required=True, help="safetensors file to write")
    parser.add_argument("--views", type=int, default=8)
    args = parser.parse_args(arguments)
    try:
        z, attributes = encode_data(args.data, TowerConditioner.from_folder(args.towers), args.views)
        names = json.dumps([a.to_dict() for a in attributes])
        checkpoints.save_tensors(args.output, {"z": z}, {"attributes": names})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: z of {z.shape[1]} views of {len(z)} avatars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
