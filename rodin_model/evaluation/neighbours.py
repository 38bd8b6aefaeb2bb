"""Which avatar of the training set looks most like a picture, in the eyes of the attribute reader.

The training set is remembered as features and seeds: any of its avatars can be drawn again from its seed, so neither
the pictures nor the data set have to be shipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rodin_model import checkpoints
from rodin_model.avatars.attributes import Attributes, sample_attributes
from rodin_model.avatars.pictures import render_avatar
from rodin_model.cameras import Camera
from rodin_model.reader import SHIPPED, AttributeReader

#: The file beside a reader's weights.
FILE = "neighbours.safetensors"
#: Numbers that are kept of what the reader sees.
SIZE = 256


def true_fronts(avatars: Sequence[Attributes], size: int, what: str = "true pictures", *, yaw: float = 0.0) -> Tensor:
    """True pictures [N, 3, size, size] of procedural avatars, in [0, 1] on white, `yaw` degrees from the front."""
    camera = Camera.orbit(yaw, 5.0, size)
    pictures = [render_avatar(a, camera).rgb.permute(2, 0, 1).cpu() for a in tqdm(avatars, desc=what, disable=None)]
    return torch.stack(pictures)


@torch.no_grad()
def features(reader: AttributeReader, pictures: Tensor, batch: int = 64) -> Tensor:
    """What the reader sees in pictures [N, 3, H, W] in [0, 1] on white, in `SIZE` numbers: [N, SIZE].

    A fixed projection on random signs, which keeps distances within a few percent (Johnson and Lindenstrauss 1984) and
    the file of neighbours small; scaled so that distances are about 1.
    """
    seen = torch.cat([reader.features(part) for part in pictures.split(batch)]).float()
    signs = np.random.default_rng([0x51, SIZE]).integers(0, 2, (seen.shape[1], SIZE)) * 2 - 1
    return seen @ torch.from_numpy(signs).to(seen) / (SIZE * seen.shape[1]) ** 0.5


def nearest_other(points: Tensor) -> Tensor:
    """The distance of each of [N, F] to the nearest of the others: [N]; infinite if there is no other."""
    return (torch.cdist(points, points) + torch.full((len(points),), float("inf")).diag()).amin(1)


@dataclass(frozen=True)
class Neighbours:
    """The training avatars as the reader sees them: `features` [N, F] and the `seeds` [N] that draw them again."""

    features: Tensor
    seeds: Tensor

    @classmethod
    def of(cls, reader: AttributeReader, seeds: Sequence[int], fronts: Tensor | None = None) -> Neighbours:
        """Look at the avatars of some seeds, whose front pictures [N, 3, H, W] are drawn unless they are given."""
        if fronts is None:
            fronts = true_fronts([sample_attributes(s) for s in seeds], reader.config.size, "training avatars")
        return cls(features(reader, fronts), torch.tensor(list(seeds), dtype=torch.int64))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write them beside a reader's weights, in half precision."""
        checkpoints.save_tensors(Path(folder) / FILE, {"features": self.features.half(), "seeds": self.seeds})

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None) -> Neighbours:
        """Read what `save` wrote; without a folder, the shipped ones. FileNotFoundError if there are none."""
        tensors, _ = checkpoints.load_tensors(Path(folder or SHIPPED) / FILE)
        return cls(tensors["features"].float(), tensors["seeds"])

    def nearest(self, points: Tensor) -> tuple[Tensor, list[Attributes]]:
        """For features [M, F]: the distance to the nearest training avatar [M], and that avatar."""
        distance, index = torch.cdist(points, self.features).min(1)
        return distance, [sample_attributes(int(seed)) for seed in self.seeds[index]]
