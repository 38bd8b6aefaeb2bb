"""The picture tower learns to say of portraits from the side what it says of the front, and stays where it is in front.

The diffusions were trained on the latents of one tower, so another tower must mean the same by them. Its teacher is the
tower that it starts from, looking at the front, plain. The pupil says the same of the front, of the views aside and of
photographs (`photographed`) of both; the heads of the words, frozen, add what is true. A mirrored avatar counts as
another one: its teacher looks at the mirrored front.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.train import towers as training
from rodin_model.train.around import AroundTrainer
from rodin_model.train.changes import color_weights, plain, recolor
from rodin_model.train.photographs import photographed

#: Weights of the distance to the teacher, in front and elsewhere, and of attributes and shape.
FRONT, ELSEWHERE, TRUTH = 8.0, 2.0, 1.0


class AsideTrainer(AroundTrainer):
    """`AroundTrainer` whose batches are a quarter plain fronts, half views aside, plain, and a quarter photographs.

    Half of the plain views aside are recoloured: these have no teacher, only their shapes are asked. Batch
    normalisation keeps the teacher's statistics, so that nothing moves unless the weights do.
    """

    def wanted_latents(self, captions: int, workers: int) -> Tensor:
        """What the teacher says of the front and of the mirrored front of every avatar: [avatars, 2, 512]."""
        teacher = copy.deepcopy(self.towers.image).eval()
        with torch.no_grad():
            said = [torch.stack([teacher(front), teacher(front.flip(-1))], 1)
                    for front in (plain(self.seen.rgba[some].float() / 255) for some in self.seen.first.split(64))]
        return torch.cat(said)

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step, everything drawn from (seed, step)."""
        s, generator, quarter = self.settings, self.generator(step), self.settings.image_batch // 4
        self.towers.image.eval()

        def below(most: int, count: int) -> Tensor:
            return torch.randint(most, (count,), generator=generator, device=self.device)

        chosen = torch.cat([self.seen.first[below(len(self.labels), quarter)],
                            below(len(self.seen), s.image_batch - quarter)])
        who, mirrored = self.seen.owner[chosen], below(2, s.image_batch)
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
