"""The picture tower learns portraits from every side, plain and as photographs, for a latent space that is given.

Words and heads stay. Of every picture the tower must say what the words of its avatar say: the loss is the heads'
cross-entropy, and the distance to z of captions that name everything. That distance is linear in the captions' z, so
their mean, which is computed once for each avatar, teaches the same as captions drawn anew in every step.
"""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_model.avatars.attributes import CHOICES, Attributes
from rodin_model.avatars.captions import caption_with_labels
from rodin_model.tokenizer import WordTokenizer
from rodin_model.towers import Towers
from rodin_model.train import towers as training
from rodin_model.train.changes import augment, color_weights, plain, recolor
from rodin_model.train.photographs import photographed
from rodin_model.train.resume import follow
from rodin_model.train.views import Views

#: Portraits are taken from at most so many degrees aside.
MAX_YAW = 70.0
#: Captions whose z are averaged, and avatars whose captions are written at once.
CAPTIONS, CHUNK = 8, 64
#: Yaws in degrees that bound the parts of what `probe_around` measures.
PARTS = (0.0, 15.0, 35.0, 60.0)
#: How much of the running average stays in a step.
AVERAGE = 0.998


def _tokens(job: tuple[int, list[Attributes], int, tuple[int, int, int]]) -> np.ndarray:
    """The words of `count` captions of each avatar as numbers [avatars * count, L, G], seeded by the job's number."""
    number, avatars, count, sizes = job
    rng = np.random.default_rng([0xA20, number])
    texts = [caption_with_labels(a, rng, full=1.0)[0] for a in avatars for _ in range(count)]
    return WordTokenizer(*sizes)(texts).numpy().astype(np.min_scalar_type(sizes[0]))


@torch.no_grad()
def caption_means(towers: Towers, avatars: Sequence[Attributes], count: int = CAPTIONS, workers: int = 1) -> Tensor:
    """The mean z of `count` captions that name everything, for each avatar: [avatars, 512], on the towers' device."""
    config, device = towers.config, towers.log_scale.device
    sizes = (config.buckets, config.max_words, config.max_groups)
    jobs = [(k, list(avatars[k:k + CHUNK]), count, sizes) for k in range(0, len(avatars), CHUNK)]

    def means(ids: np.ndarray) -> Tensor:
        return towers.text(torch.from_numpy(ids.astype(np.int64)).to(device)).unflatten(0, (-1, count)).mean(1)

    if workers == 1:
        return torch.cat([means(_tokens(job)) for job in jobs])
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        return torch.cat([means(ids) for ids in pool.imap(_tokens, jobs)])


class AroundTrainer(training.TowersTrainer):
    """`TowersTrainer` with words frozen: a quarter of every batch plain, a quarter changed, half photographs.

    The result is the running average of the picture tower. Everything that a step needs lies on the device.
    """

    def __init__(self, output: str | Path, settings: training.Settings, data: Sequence[str | Path], towers: Towers,
                 device: str | torch.device = "cpu", captions: int = CAPTIONS, workers: int = 1) -> None:
        self.average = copy.deepcopy(towers.image).to(device).requires_grad_(False)
        super().__init__(output, dataclasses.replace(settings, freeze_words=True, word_avatars=0), data, towers, device)
        size = self.towers.config.image_size
        self.seen = Views.load(data, size, MAX_YAW, self.device)
        self.labels, self.shapes = self.seen.labels(), self.seen.shapes()
        self.wanted = self.wanted_latents(captions, workers)

    def wanted_latents(self, captions: int, workers: int) -> Tensor:
        """The z that is wanted of every avatar [avatars, 512]: the mean of its captions'."""
        return caption_means(self.towers, self.seen.attributes, captions, workers)

    def below(self, most: int, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count]: numbers below `most`, drawn on the device."""
        return torch.randint(most, (count,), generator=generator, device=self.device)

    def modules(self) -> dict[str, nn.Module]:
        """What a state holds: the running average, too."""
        return {**super().modules(), "average": self.average}

    def finish(self) -> Towers:
        """The towers with the running average of the picture tower."""
        self.towers.image.load_state_dict(self.average.state_dict())
        return self.towers

    def train_step(self) -> dict[str, Tensor]:
        """One step, and the average after it."""
        losses = super().train_step()
        follow(self.average, self.towers.image, min(AVERAGE, (1 + self.step) / (10 + self.step)))
        return losses

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step, everything drawn from (seed, step)."""
        s, generator = self.settings, self.generator(step)
        front = torch.rand(s.image_batch, generator=generator, device=self.device) < s.front_share
        chosen = torch.where(front, self.seen.first[self.below(len(self.labels), s.image_batch, generator)],
                             self.below(len(self.seen), s.image_batch, generator))
        who, rgba, part = self.seen.owner[chosen], self.seen.rgba[chosen].float() / 255, s.image_batch // 4
        moved, changed = recolor(augment(rgba[part:2 * part], generator, white=0.8), generator)
        images = torch.cat([plain(rgba[:part]), moved, photographed(rgba[2 * part:], generator)])
        other = F.pad(changed, (part, s.image_batch - 2 * part))
        z = self.towers.image(images)
        logits, shape = self.towers.heads(z)
        pull = (1 - (z * self.wanted[who]).sum(-1)) * ~other
        return {"image": training.attribute_loss(logits, self.labels[who], color_weights(other)),
                "shape": s.shape_weight * F.mse_loss(shape.float(), self.shapes[who]),
                "pull": s.pull_weight * pull.mean()}


@torch.no_grad()
def probe_around(towers: Towers, data: Sequence[str | Path], seed: int = 0) -> dict[str, float]:
    """The share of all attributes that z says rightly of the pictures of data sets, by how far aside the camera stood:
    exactly in front, then between the bounds of `PARTS`; plain and, for all together, as photographs."""
    device = towers.log_scale.device
    views, towers = Views.load(data, towers.config.image_size, PARTS[-1], device), towers.eval()
    labels, generator = views.labels()[views.owner], torch.Generator(device).manual_seed(seed)

    def right(images: Tensor, wanted: Tensor) -> Tensor:
        logits = towers.heads(towers.image(images))[0]
        return (torch.stack([logits[name].argmax(1) for name in CHOICES], 1) == wanted).float().mean(1)

    pairs = [(part.float() / 255, wanted) for part, wanted in zip(views.rgba.split(64), labels.split(64), strict=True)]
    each = torch.cat([right(plain(part), wanted) for part, wanted in pairs])
    photographs = torch.cat([right(photographed(part, generator), wanted) for part, wanted in pairs])
    aside, found = views.yaw.abs(), {"front": float(each[views.first].mean())}
    for low, high in zip(PARTS, PARTS[1:], strict=False):
        inside = (aside > low + 1e-3) & (aside <= high)
        found[f"{low:g}-{high:g}"] = float(each[inside].mean())
    return {name: round(value, 4) for name, value in {**found, "photographs": float(photographs.mean())}.items()}
