"""`python -m rodin_model.train.towers`: train the word tower and the picture tower into one latent space.

The first `text_steps` steps need no pictures: fresh captions of fresh avatars, and the attribute heads that must read
the avatar from them. The other steps add pictures: the same heads on the picture's z, a contrastive loss between
picture and caption (CLIP, Radford et al. 2021), and a pull that closes the gap between the two kinds of z.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model import checkpoints
from rodin_model.avatars.attributes import CHOICES, Attributes, sample_attributes
from rodin_model.avatars.captions import Labels, caption_with_labels
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.towers import Towers
from rodin_model.train.changes import augment, color_weights, recolor
from rodin_model.train.pace import Pace, paced_rate
from rodin_model.train.resume import (
    add_settings,
    load_training,
    log_stats,
    make_optimizer,
    mixed_precision,
    save_training,
    settings_of,
    status_of,
)

#: Avatars that only lend their words have seeds from here on: far from every data set's.
WORD_SEEDS = 7_000_000_000


@dataclass(frozen=True)
class Settings:
    """How the towers are trained; the weights of the losses are relative to the attribute losses.

    Words are learned long before pictures, so after `text_steps` only every `text_every`-th step has captions. With
    `freeze_words` the word tower and the heads stay as they are: a better picture tower for the same latent space.
    """

    steps: int = 3000
    text_steps: int = 1000
    text_every: int = 6
    text_batch: int = 128
    image_batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    word_avatars: int = 8000
    views: int = 8
    front_share: float = 0.7
    shape_weight: float = 0.5
    contrast_weight: float = 0.3
    pull_weight: float = 1.0
    freeze_words: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Pictures:
    """Data sets in memory: premultiplied RGBA bytes [P, 4, S, S] of all views, and for each avatar where its own begin
    (with the frontal one), how many they are, and what it is."""

    images: Tensor
    first: np.ndarray
    views: np.ndarray
    attributes: list[Attributes]

    @classmethod
    def load(cls, folders: Sequence[str | Path], views: int, size: int) -> Pictures:
        """Read the first `views` views of every avatar, resized to `size` pixels; ValueError if there is no avatar."""
        from rodin_model.avatars.dataset import AvatarDataset
        images, attributes = [], []
        for folder in folders:
            data = AvatarDataset(folder)
            for i in range(len(data)):
                rgba = data.read(i, "images")[:views].permute(0, 3, 1, 2).float()
                small = F.interpolate(rgba, (size, size), mode="bilinear", antialias=True, align_corners=False)
                images.append(small.round().clamp(0, 255).byte())
                attributes.append(data.attributes(i))
        if not images:
            raise ValueError(f"no avatars in {', '.join(map(str, folders)) or 'no folder'}; make some with "
                             f"python -m rodin_model.avatars.dataset")
        counts = np.array([len(views_of_one) for views_of_one in images])
        return cls(torch.cat(images), np.cumsum(counts) - counts, counts, attributes)

    def to(self, device: str | torch.device) -> Pictures:
        """The same with its pictures on another device."""
        return dataclasses.replace(self, images=self.images.to(device))

    def draw(self, who: np.ndarray, view: np.ndarray) -> Tensor:
        """Float RGBA [B, 4, S, S] in [0, 1] of avatars `who` from `view` (taken modulo the views that they have)."""
        place = torch.from_numpy(self.first[who] + view % self.views[who]).to(self.images.device)
        return self.images[place].float() / 255


def add_stray_words(text: str, rng: np.random.Generator) -> str:
    """Now and then one to three words that mean nothing here: people write more than the lexicon knows."""
    if rng.random() > 0.2:
        return text
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        letters = rng.integers(0, 26, int(rng.integers(2, 10)))
        words.insert(int(rng.integers(0, len(words) + 1)), "".join(chr(97 + int(i)) for i in letters))
    return " ".join(words)


def encode_sorted(towers: Towers | Conditioner, texts: Sequence[str], chunks: int = 4) -> Tensor:
    """z of texts in their order, computed in chunks of like length: less padding, half the time."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].split()))
    size = -(-len(texts) // chunks)
    z = torch.cat([towers.encode_text([texts[i] for i in order[k:k + size]]) for k in range(0, len(texts), size)])
    back = torch.empty(len(texts), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(texts))
    return z[back.to(z.device)]


def attribute_targets(attributes: Sequence[Attributes]) -> Tensor:
    """int64 [B, attributes]: the number of every attribute's value."""
    return torch.tensor([[a.label(name) for name in CHOICES] for a in attributes])


def attribute_loss(logits: dict[str, Tensor], targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, averaged for each attribute with `weights` [B, attributes] over the batch, then over attributes.

    So an attribute that is rarely named counts as much as one that always is.
    """
    losses = torch.stack([F.cross_entropy(value.float(), target, reduction="none")
                          for value, target in zip(logits.values(), targets.T, strict=True)], 1)
    weights = torch.ones_like(losses) if weights is None else weights
    return ((losses * weights).sum(0) / weights.sum(0).clamp_min(1e-6)).mean()


def named_weights(labels: Sequence[Labels], unnamed: float = 0.05) -> Tensor:
    """[B, attributes]: 1 for attributes that the caption names, a little for those that it leaves to probability."""
    return torch.tensor([[1.0 if name in named else unnamed for name in CHOICES] for named in labels])


class TowersTrainer:
    """One training run in a folder: `state/` to resume from, `stats.jsonl`, and the result."""

    def __init__(self, output: str | Path, settings: Settings, data: Sequence[str | Path] = (),
                 towers: Towers | None = None, device: str | torch.device = "cpu") -> None:
        self.output, self.settings, self.data, self.device = Path(output), settings, data, torch.device(device)
        torch.manual_seed(settings.seed)
        self.towers = (towers or Towers()).requires_grad_().to(self.device)
        self.towers.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.freeze_words:
            self.towers.text.requires_grad_(False)
            self.towers.heads.requires_grad_(False)
        self.optimizer = make_optimizer(self.towers, settings.weight_decay)
        self.pictures: Pictures | None = None
        self.words = [sample_attributes(WORD_SEEDS + i) for i in range(settings.word_avatars)]
        self.step = load_training(self.output / "state", self.modules(), self.optimizer, dataclasses.asdict(settings))

    def modules(self) -> dict[str, torch.nn.Module]:
        """What a state holds."""
        return {"towers": self.towers}

    def finish(self) -> Towers:
        """The towers that the training comes to."""
        return self.towers

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step, everything drawn from (seed, step)."""
        s = self.settings
        rng = np.random.default_rng([s.seed, step])
        if step >= s.text_steps and step % s.text_every:
            pictured, images = self._draw_pictures(rng, step)
            images, changed = recolor(images, self.generator(step + 1))
            return self._image_losses(self.towers.image(images), pictured, color_weights(changed))
        avatars = [self.words[int(i)] for i in rng.integers(0, len(self.words), s.text_batch)]
        shares = [float(rng.uniform(0.3, 1.0)) if rng.random() < 0.3 else None for _ in avatars]
        if step < s.text_steps:
            z, labels = self._encode_captions(avatars, shares, rng)
            return {"text": self._text_loss(z, avatars, labels)}
        pictured, images = self._draw_pictures(rng, step)
        shares += [1.0 if rng.random() < 0.5 else float(rng.uniform(0.15, 0.9)) for _ in pictured]
        z_text, labels = self._encode_captions(avatars + pictured, shares, rng)
        z = self.towers.image(images)
        words = {} if s.freeze_words else {"text": self._text_loss(z_text, avatars + pictured, labels)}
        return {**words, **self._image_losses(z, pictured), **self._pair_losses(z, z_text[len(avatars):])}

    def generator(self, step: int) -> torch.Generator:
        """What the pictures of a step are changed by, on the device."""
        return torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + step)

    def _encode_captions(self, avatars: Sequence[Attributes], shares: Sequence[float | None],
                         rng: np.random.Generator) -> tuple[Tensor, list[Labels]]:
        captions = [caption_with_labels(a, rng, full=share) for a, share in zip(avatars, shares, strict=True)]
        texts = [add_stray_words(text, rng) for text, _ in captions]
        return encode_sorted(self.towers, texts), [labels for _, labels in captions]

    def _draw_pictures(self, rng: np.random.Generator, step: int) -> tuple[list[Attributes], Tensor]:
        s = self.settings
        if self.pictures is None:
            self.pictures = Pictures.load(self.data, s.views, self.towers.config.image_size).to(self.device)
        who = rng.permutation(len(self.pictures.attributes))[:s.image_batch]
        view = np.where(rng.random(len(who)) < s.front_share, 0, rng.integers(0, s.views, len(who)))
        rgba = self.pictures.draw(who, view)
        return [self.pictures.attributes[int(i)] for i in who], augment(rgba, self.generator(step))

    def _text_loss(self, z: Tensor, avatars: Sequence[Attributes], labels: Sequence[Labels]) -> Tensor:
        logits, _ = self.towers.heads(z)
        return attribute_loss(logits, attribute_targets(avatars).to(z.device), named_weights(labels).to(z.device))

    def _image_losses(self, z: Tensor, avatars: Sequence[Attributes],
                      weights: Tensor | None = None) -> dict[str, Tensor]:
        logits, shape = self.towers.heads(z)
        wanted = torch.tensor([a.shape for a in avatars]).to(shape)
        return {"image": attribute_loss(logits, attribute_targets(avatars).to(z.device), weights),
                "shape": self.settings.shape_weight * F.mse_loss(shape.float(), wanted.float())}

    def _pair_losses(self, z: Tensor, z_text: Tensor) -> dict[str, Tensor]:
        scores = self.towers.log_scale.clamp(max=4.6).exp() * z @ z_text.T
        same = torch.arange(len(z), device=z.device)
        contrast = 0.5 * (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same))
        return {"contrast": self.settings.contrast_weight * contrast,
                "pull": self.settings.pull_weight * (1.0 - (z * z_text).sum(-1)).mean()}

    def run(self, until: int | None = None, save_every: int = 250, pace: Pace | None = None) -> Towers:
        """Train to step `until` (the end without it, or that of `pace`), save, and export the towers at the end."""
        steps = self.settings.steps
        until, pace = steps if until is None else min(until, steps), pace or Pace(steps)
        self.towers.train()
        while self.step < until and not pace.done(self.step):
            for group in self.optimizer.param_groups:
                group["lr"] = paced_rate(pace, self.step, self.settings.learning_rate)
            losses = self.train_step()
            if self.step % 25 == 0 or self.step == until:
                log_stats(self.output / "stats.jsonl", self.step, {k: float(v.detach()) for k, v in losses.items()})
            if self.step % save_every == 0 or self.step == until:
                save_training(self.output / "state", self.step, self.modules(), self.optimizer,
                              dataclasses.asdict(self.settings))
        if self.step == steps or pace.done(self.step):
            TowerConditioner(self.finish()).save(self.output)
        return self.towers.eval()

    def train_step(self) -> dict[str, Tensor]:
        """One step; returns its losses, on the device."""
        with mixed_precision(self.device):
            losses = self.losses(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.towers.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return losses


def start_from(towers: Towers, folder: str | Path) -> None:
    """Take the word tower and the heads of stored towers, or ValueError; the picture tower too if it fits."""
    wanted = towers.state_dict()
    stored, _ = checkpoints.load_tensors(Path(folder) / "model.safetensors")

    def shapes(tensors: dict[str, Tensor], pictures: bool) -> dict[str, tuple[int, ...]]:
        return {k: tuple(v.shape) for k, v in tensors.items() if k.startswith("image.") == pictures}

    checkpoints.check_shapes(shapes(stored, False), shapes(wanted, False), str(folder))
    pictures = shapes(stored, True) == shapes(wanted, True)
    with torch.no_grad():
        for name, tensor in wanted.items():
            if pictures or not name.startswith("image."):
                tensor.copy_(stored[name])


def trainer_of(options: argparse.Namespace, settings: Settings) -> TowersTrainer:
    """The trainer that the command line asks for."""
    if options.around or options.aside:
        from rodin_model.train.around import AroundTrainer
        from rodin_model.train.aside import AsideTrainer

        name, kind = ("aside", AsideTrainer) if options.aside else ("around", AroundTrainer)
        if not options.start:
            raise ValueError(f"--{name} needs --start, the towers whose words are to stay")
        start = TowerConditioner.from_folder(options.start).towers
        return kind(options.output, settings, options.data, start, options.device, workers=options.workers)
    trainer = TowersTrainer(options.output, settings, options.data, device=options.device)
    if options.start and trainer.step == 0:
        start_from(trainer.towers, options.start)
    return trainer


def run(options: argparse.Namespace) -> None:
    """Train as the options say."""
    settings = settings_of(options, Settings)
    torch.backends.cudnn.benchmark = torch.device(options.device).type == "cuda"
    pace = Pace(settings.steps, options.minutes)
    towers = trainer_of(options, settings).run(save_every=options.save_every, pace=pace)
    if options.held_out and (options.around or options.aside):
        from rodin_model.train.around import probe_around

        for name, some in (("before", TowerConditioner.from_folder(options.start).towers), ("after", towers)):
            print(name, probe_around(some.to(options.device), options.held_out))
    print(f"wrote {Path(options.output) / 'model.safetensors'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.towers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", nargs="*", default=[], help="folders of data sets")
    parser.add_argument("--output", required=True, help="folder for the state, stats.jsonl and the result")
    parser.add_argument("--start", help="folder of towers to begin with")
    parser.add_argument("--around", action="store_true",
                        help="teach the picture tower to read portraits from the side, plain and as photographs")
    parser.add_argument("--aside", action="store_true",
                        help="the same for a tower that stays as it is in front, as what was trained with it needs")
    parser.add_argument("--held-out", nargs="*",
                        help="with --around or --aside: data sets to compare the tower with that of --start on")
    parser.add_argument("--workers", type=int, default=1, help="with --around: processes that write captions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="end after so much time; the learning rate follows the clock")
    parser.add_argument("--save-every", type=int, default=250, help="steps between states to resume from")
    add_settings(parser, Settings)
    return status_of(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
