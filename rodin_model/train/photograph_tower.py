"""The picture tower learns to read photographs without moving what it says of plain pictures.

The diffusions were trained on the latents of one tower, so another tower must mean the same by them. Its teacher is the
tower that it starts from: of a plain picture the pupil must say what the teacher says, and of a photograph of the same
view (`photographed`) what the teacher says of the plain one. The heads of the words, frozen too, add what was true.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rodin_model.avatars.captions import visible_attributes
from rodin_model.conditioning import TowerConditioner
from rodin_model.towers import Towers
from rodin_model.train import towers as training
from rodin_model.train.changes import plain
from rodin_model.train.photographs import photographed

#: Portraits are taken from at most so many degrees aside.
MAX_YAW = 65.0
#: Weights of the distance to the teacher on plain pictures and on photographs, and of the attributes and the shape.
PLAIN, PHOTOGRAPH, TRUTH = 4.0, 2.0, 0.5


class PhotographTrainer(training.TowersTrainer):
    """`TowersTrainer` with words frozen, whose every step shows plain pictures and photographs by halves.

    Batch normalisation keeps the teacher's statistics, which are those of plain pictures: nothing moves unless the
    weights do.
    """

    def __init__(self, output: str | Path, settings: training.Settings, data: Sequence[str | Path], towers: Towers,
                 device: str | torch.device = "cpu") -> None:
        self.teacher = copy.deepcopy(towers.image).to(device).eval().requires_grad_(False)
        super().__init__(output, dataclasses.replace(settings, freeze_words=True), data, towers, device)
        self.wanted: Tensor | None = None

    def prepare(self) -> None:
        """Pictures into memory, and what the teacher says of each on white: [P, 512]."""
        pictures = training.Pictures.load(self.data, self.settings.views, self.towers.config.image_size, MAX_YAW)
        pictures = pictures.to(self.device)
        with torch.no_grad():
            said = [self.teacher(plain(part.float() / 255)) for part in pictures.images.split(64)]
        self.pictures, self.wanted = pictures, torch.cat(said)

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step, everything drawn from (seed, step)."""
        if self.pictures is None or self.wanted is None:
            self.prepare()
        assert self.pictures is not None and self.wanted is not None
        s, pictures = self.settings, self.pictures
        self.towers.image.eval()
        rng = np.random.default_rng([s.seed, step])
        who = rng.integers(0, len(pictures.attributes), s.image_batch)
        view = np.where(rng.random(len(who)) < s.front_share, 0, rng.integers(0, s.views, len(who)))
        rgba, half = pictures.draw(who, view), s.image_batch // 2
        changed = photographed(rgba[half:], self.generator(step))
        z = self.towers.image(torch.cat([plain(rgba[:half]), changed]))
        apart = 1 - (z * self.wanted[pictures.place(who, view)]).sum(-1)
        truth = self._image_losses(z[half:], [pictures.attributes[int(i)] for i in who[half:]])
        return {"plain": PLAIN * apart[:half].mean(), "photograph": PHOTOGRAPH * apart[half:].mean(),
                **{name: TRUTH * value for name, value in truth.items()}}


@torch.no_grad()
def probe(towers: Towers, data: Sequence[str | Path], teacher: Towers | None = None, views: int = 8,
          seed: int = 0) -> dict[str, float]:
    """What z says rightly of held-out pictures at most `MAX_YAW` degrees aside: the share over all attributes that can
    be seen, of plain pictures and of photographs; with `teacher` also the mean cosine of its z and theirs, of both."""
    pictures = training.Pictures.load(data, views, towers.config.image_size, MAX_YAW).to(towers.log_scale.device)
    reader, found = TowerConditioner(towers), {"plain": 0.0, "photograph": 0.0}
    owner = np.repeat(np.arange(len(pictures.attributes)), pictures.views)
    generator, asked = torch.Generator(towers.log_scale.device).manual_seed(seed), 0
    alike = dict.fromkeys(found, 0.0)
    for start in range(0, len(owner), 64):
        rgba = pictures.images[start:start + 64].float() / 255
        looks = {"plain": plain(rgba), "photograph": photographed(rgba, generator)}
        who = [pictures.attributes[i] for i in owner[start:start + 64]]
        asked += sum(len(visible_attributes(a)) for a in who)
        for name, images in looks.items():
            z = reader.encode_image(images)
            said = reader.read_attributes(z)
            found[name] += sum(words[n] == getattr(a, n) for a, words in zip(who, said, strict=True)
                               for n in visible_attributes(a))
            if teacher is not None:
                alike[name] += float((z * teacher.to(z.device).image(looks["plain"])).sum())
    result = {name: count / asked for name, count in found.items()}
    return result if teacher is None else {**result, **{f"{name}_alike": v / len(owner) for name, v in alike.items()}}
