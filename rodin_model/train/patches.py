"""Patches of pairs for the refiner, drawn on the device that holds all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.train.pairs import Pairs
from rodin_model.train.views import uniform_on_host

if TYPE_CHECKING:
    from rodin_model.train.refine import RefineSettings


class ResidentPairs:
    """What `Pairs` reads, all of it on one device: `seen` float16 [N, C, H, W], `truth` uint8 [N, 4, sH, sW]."""

    def __init__(self, folders: Sequence[str | Path], device: str | torch.device) -> None:
        pairs = Pairs(folders)
        self.scale, self.channels, self.height, self.width = pairs.scale, pairs.channels, pairs.height, pairs.width
        both = [(seen.to(device), truth.to(device)) for seen, truth in pairs.files()]
        self.seen, self.truth = torch.cat([seen for seen, _ in both]), torch.cat([truth for _, truth in both])

    def __len__(self) -> int:
        return len(self.seen)

    def draw(self, settings: RefineSettings, step: int) -> tuple[Tensor, Tensor]:
        """The batch of one step, float32: `seen` [B, C, P, P] and `truth` [B, 4, sP, sP], as `refine.draw` gives it.

        Half of them are mirrored, half mottled; the grain is the same for all patches of a step.
        """
        device, count = self.seen.device, settings.batch
        generator = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
        size = min(settings.patch, self.height, self.width)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=device)

        which = (uniform() * len(self)).long().clamp(max=len(self) - 1)
        # more often about the middle, where the face is
        top, left = (((uniform() + uniform()) / 2 * (full - size)).long() for full in (self.height, self.width))
        flip = uniform() < 0.5
        seen = cut(self.seen, which, top, left, flip, size).float()
        truth = cut(self.truth, which, top * self.scale, left * self.scale, flip, size * self.scale).float() / 255
        strength = settings.mottle * uniform(1, 1, 1) * (uniform(1, 1, 1) < 0.5)
        cells = max(2, size // (2 + int(7 * uniform_on_host(generator))))
        coarse = torch.randn((count, self.channels, cells, cells), generator=generator, device=device)
        noise = F.interpolate(coarse, (size, size), mode="bicubic") * strength * seen[:, 3:4].clamp(0, 1)
        colors = (seen[:, :3] + noise[:, :3]).clamp(0, 1)
        return torch.cat([colors, seen[:, 3:5], seen[:, 5:] + 2 * noise[:, 5:]], 1), truth


def cut(pictures: Tensor, which: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> Tensor:
    """Squares of `size` pixels [B, C, size, size] from pictures [N, C, H, W], mirrored where `flip` [B] says so."""
    along = torch.arange(size, device=pictures.device)
    rows = top[:, None] + along
    columns = left[:, None] + torch.where(flip[:, None], along.flip(0), along)
    return pictures[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
