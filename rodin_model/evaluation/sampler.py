"""The pipeline as the evaluation uses it: many avatars, each from its own seed, looked at from the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from rodin_model import sheets
from rodin_model.avatars.attributes import Attributes, sample_attributes
from rodin_model.pipeline import RodinPipeline
from rodin_model.triplane import Avatar

#: Avatar i of seed s is drawn from the number s million + i; held-out avatars are those of seed 1.
TRAINING_SEED, HELD_OUT_SEED, PER_SEED = 0, 1, 1_000_000


@dataclass(frozen=True)
class Options:
    """How much is measured, and how the model is sampled (None: as its index recommends)."""

    count: int = 64
    noise: int = 16
    fits: int = 4
    edited: int = 8
    alike: int = 16
    phrasings: int | None = None
    size: int = 256
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    candidates: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, on how many, by chance, at best, and by this model; None where that has
    no meaning. Shares are printed as percent, all else by `unit`, a format such as "{:.2f} s"."""

    what: str
    n: int
    result: float | None
    chance: float | None = None
    ceiling: float | None = None
    unit: str = "{:.1%}"


@dataclass
class Section:
    """One part of the report: its lines, its figures as data, its sheets by file name, its rows of the table."""

    text: str
    metrics: dict[str, Any]
    pictures: dict[str, Image] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


class Sampler:
    """Makes avatars and their front pictures; `options` says how."""

    batch = 16

    def __init__(self, pipe: RodinPipeline, options: Options) -> None:
        self.pipe, self.options = pipe, options
        pipe.set_progress_bar_config(disable=True)

    def look(self, avatar: Avatar) -> Tensor:
        """The front picture [3, S, S] of an avatar, in [0, 1]."""
        return avatar.turntable(1, self.options.size)[0].permute(2, 0, 1).cpu().clamp(0, 1)

    def fronts(self, what: str, *, prompts: Sequence[str] = (), portraits: Sequence[Tensor] | Tensor = (),
               count: int = 0) -> Tensor:
        """Front pictures [N, 3, S, S] of avatars made from words, from portraits [3, H, W], or from noise."""
        pictures = []
        with tqdm(total=len(prompts) or len(portraits) or count, desc=what, disable=None) as progress:
            for first in range(0, progress.total, self.batch):
                rows = range(first, min(first + self.batch, progress.total))
                for avatar in self.avatars(rows, prompts, portraits):
                    pictures.append(self.look(avatar))
                progress.update(len(rows))
        return torch.stack(pictures)

    def avatars(self, rows: range, prompts: Sequence[str] = (),
                portraits: Sequence[Tensor] | Tensor = ()) -> list[Avatar]:
        """The avatars of some rows, each from a seed of its own."""
        seed = self.options.seed * 1_000_003
        settings: dict[str, Any] = {"num_inference_steps": self.options.num_inference_steps,
                                    "guidance_scale": self.options.guidance_scale,
                                    "candidates": self.options.candidates,
                                    "generator": [torch.Generator().manual_seed(seed + row) for row in rows]}
        if len(prompts):
            return self.pipe([prompts[row] for row in rows], **settings).avatars  # type: ignore[union-attr]
        if len(portraits):
            return self.pipe(image=[portraits[row] for row in rows], **settings).avatars  # type: ignore[union-attr]
        return self.pipe(num_avatars_per_prompt=len(rows), **settings).avatars  # type: ignore[union-attr]


def held_out(count: int, first: int = 0) -> list[Attributes]:
    """`count` held-out avatars from number `first` on: no stage of training has seen them."""
    return [sample_attributes(HELD_OUT_SEED * PER_SEED + i) for i in range(first, first + count)]


def pairs(first: Tensor, second: Tensor, names: tuple[str, str], title: str) -> Image:
    """A sheet of up to 16 pairs of pictures [N, 3, H, W], side by side, four pairs a row."""
    both = [p for pair in zip(channels_last(first[:16]), channels_last(second[:16]), strict=True) for p in pair]
    return sheets.sheet(both, min(8, len(both)), list(names) * (len(both) // 2), cell=192, title=title, lines=1)


def channels_last(pictures: Tensor) -> Tensor:
    """[N, 3, H, W] as [N, H, W, 3]."""
    return pictures.permute(0, 2, 3, 1)
