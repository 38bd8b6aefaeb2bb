"""The picture tower learns to say of portraits from the side what it says of the front, and stays where it is in front.

The diffusions were trained on the latents of one tower, so another tower must mean the same by them. Its teacher is the
tower that it starts from, looking at the front, plain. The pupil says the same of the front, of the views aside and of
photographs (`photographed`) of both; the heads of the words, frozen, add what is true. A mirrored avatar counts as
another one: its teacher looks at the mirrored front.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.towers import Towers
from rodin_model.train import towers as training
from rodin_model.train.around import CAPTIONS, AroundTrainer
from rodin_model.train.changes import color_weights, plain, recolor
from rodin_model.train.photographs import photographed

#: Weights of the distance to the teacher, in front and elsewhere, and of attributes and shape.
FRONT, ELSEWHERE, TRUTH = 8.0, 2.0, 1.0


class AsideTrainer(AroundTrainer):
    """`AroundTrainer` whose batches are a quarter plain fronts, half views aside, plain, and a quarter photographs.

    Half of the plain views aside are recoloured: these have no teacher, only their shapes are asked. Batch
    normalisation keeps the teacher's statistics, so that nothing moves unless the weights do.
    """

    def __init__(self, output: str | Path, settings: training.Settings, data: Sequence[str | Path], towers: Towers,
                 device: str | torch.device = "cpu", captions: int = CAPTIONS, workers: int = 1) -> None:
        # before a state is read: who goes on has moved already, and is no teacher
        self.teacher = copy.deepcopy(towers.image).to(device).eval().requires_grad_(False)
        super().__init__(output, settings, data, towers, device, captions, workers)

    def wanted_latents(self, captions: int, workers: int) -> Tensor:
        """What the teacher says of the front and of the mirrored front of every avatar: [avatars, 2, 512]."""
        with torch.no_grad():
            said = [torch.stack([self.teacher(front), self.teacher(front.flip(-1))], 1)
                    for front in (plain(self.seen.rgba[some].float() / 255) for some in self.seen.first.split(64))]
        return torch.cat(said)

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step, everything drawn from (seed, step)."""
        s, generator, quarter = self.settings, self.generator(step), self.settings.image_batch // 4
        self.towers.image.eval()
        chosen = torch.cat([self.seen.first[self.below(len(self.labels), quarter, generator)],
                            self.below(len(self.seen), s.image_batch - quarter, generator)])
        who, mirrored = self.seen.owner[chosen], self.below(2, s.image_batch, generator)
        rgba = self.seen.rgba[chosen].float() / 255
        rgba = torch.where(mirrored.bool()[:, None, None, None], rgba.flip(-1), rgba)
        aside, other = recolor(plain(rgba[quarter:-quarter]), generator)
        changed = F.pad(other, (quarter, quarter))
        z = self.towers.image(torch.cat([plain(rgba[:quarter]), aside, photographed(rgba[-quarter:], generator)]))
        apart = (1 - (z * self.wanted[who, mirrored]).sum(-1)) * ~changed
        logits, shape = self.towers.heads(z[quarter:])
        return {"front": FRONT * apart[:quarter].mean(), "elsewhere": ELSEWHERE * apart[quarter:].mean(),
                "image": TRUTH * training.attribute_loss(logits, self.labels[who[quarter:]],
                                                         color_weights(changed[quarter:])),
                "shape": TRUTH * s.shape_weight * F.mse_loss(shape.float(), self.shapes[who[quarter:]])}
