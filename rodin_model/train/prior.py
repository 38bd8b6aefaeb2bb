"""`python -m rodin_model.train.prior`: train the diffusion over z.

With `--words N` it completes descriptions: the condition is the z of a caption that names a part of an avatar's
attributes, the target that of one that names them all. Captions cost nothing, so N avatars are drawn anew. What the
words leave open is then decided here, and the diffusion over planes need not mix what it might be.

With `--data` the targets are pictures: the frozen towers turn every avatar's frontal picture, seen a little differently
each time, into targets and captions of it into conditions. Either is computed once and kept beside the training state.
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
from torch import Tensor

from rodin_model import checkpoints
from rodin_model.avatars.captions import caption
from rodin_model.avatars.dataset import SEED_STEP
from rodin_model.conditioning import TowerConditioner
from rodin_model.latent_prior import LatentPrior
from rodin_model.noise import beside
from rodin_model.train.changes import augment, on_background
from rodin_model.train.pace import Pace, paced_rate
from rodin_model.train.resume import (
    add_settings,
    load_training,
    log_stats,
    make_optimizer,
    save_training,
    settings_of,
)
from rodin_model.train.towers import Pictures, encode_sorted
from rodin_model.train.words import encode_words

#: Avatar i that only words are learnt from is drawn from this million plus i, far from training and held-out avatars.
WORDS_SEED = 20


@dataclass(frozen=True)
class Settings:
    """How the prior is trained; `words`: of so many avatars, drawn anew, `looks` full and `captions` part captions."""

    steps: int = 3000
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    average: float = 0.999
    drop: float = 0.25
    captions: int = 8
    looks: int = 4
    words: int = 0
    seed: int = 0


@torch.no_grad()
def collect_latents(conditioner: TowerConditioner, data: Sequence[str | Path], settings: Settings) -> dict[str, Tensor]:
    """{"image": [A, looks, 512], "text": [A, captions, 512]} of all avatars; look 0 is the untouched frontal picture.

    Half of the captions name all that is visible, the others a part.
    """
    pictures = Pictures.load(data, 1, conditioner.towers.config.image_size)
    rng, generator = np.random.default_rng([settings.seed, 0x9A10]), torch.Generator().manual_seed(settings.seed)
    image, text = [], []
    for first in range(0, len(pictures.attributes), 64):
        avatars = range(first, min(first + 64, len(pictures.attributes)))
        rgba = pictures.draw(np.array(avatars), np.zeros(len(avatars), dtype=np.int64))
        looks = [on_background(rgba, torch.ones(len(avatars), 3))]
        looks += [augment(rgba, generator, white=1.0) for _ in range(settings.looks - 1)]
        image.append(torch.stack([conditioner.encode_image(look) for look in looks], 1))
        texts = [caption(pictures.attributes[i], rng, full=1.0 if k % 2 else None)
                 for i in avatars for k in range(settings.captions)]
        text.append(encode_sorted(conditioner.towers, texts).unflatten(0, (len(avatars), settings.captions)))
    return {"image": torch.cat(image).cpu(), "text": torch.cat(text).cpu()}


def collect_words(towers: str | Path, settings: Settings, device: str = "cpu", workers: int = 1) -> dict[str, Tensor]:
    """{"image": [N, looks, 512], "text": [N, captions, 512]} of `settings.words` avatars, both of words, float16.

    In place of pictures stand captions that name everything; the others name a part.
    """
    kinds = (1.0,) * settings.looks + (None,) * settings.captions
    z = encode_words(towers, [WORDS_SEED * SEED_STEP + i for i in range(settings.words)], kinds,
                     seed=(settings.seed, 0x30D5), device=device, workers=workers)
    return {"image": z[:, :settings.looks].contiguous(), "text": z[:, settings.looks:].contiguous()}


class PriorTrainer:
    """One training run in a folder: `state/` to resume from, `stats.jsonl`, and the result (an average of the weights).

    `image` and `text` are latents [A, looks, 512] and [A, captions, 512] of unit length.
    """

    def __init__(self, output: str | Path, settings: Settings, image: Tensor, text: Tensor,
                 prior: LatentPrior | None = None, device: str | torch.device = "cpu",
                 minutes: float | None = None) -> None:
        if image.ndim != 3 or text.ndim != 3 or len(image) != len(text):
            raise ValueError(f"image and text must be [A, n, 512] of the same avatars; got {tuple(image.shape)} "
                             f"and {tuple(text.shape)}")
        self.output, self.settings, self.device = Path(output), settings, torch.device(device)
        self.minutes = minutes
        torch.manual_seed(settings.seed)
        self.prior = (prior or LatentPrior()).to(self.device)
        self.prior.mean.copy_(image.flatten(0, 1).float().mean(0))
        self.prior.std.copy_(image.flatten(0, 1).float().std(0).clamp_min(1e-3))
        self.average = LatentPrior(self.prior.width, len(self.prior.blocks)).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.prior.state_dict())
        self.optimizer = make_optimizer(self.prior, settings.weight_decay)
        self.image, self.text = image.to(self.device), text.to(self.device)
        self.modules = {"prior": self.prior, "average": self.average}
        self.step = load_training(self.output / "state", self.modules, self.optimizer, dataclasses.asdict(settings))

    def _loss(self, step: int) -> Tensor:
        s = self.settings
        generator = torch.Generator(self.device).manual_seed(s.seed * 1_000_003 + step)

        def draw(count: int) -> Tensor:
            return torch.randint(count, (s.batch,), **beside(generator))

        who = draw(len(self.image))
        look, words = draw(self.image.shape[1]), draw(self.text.shape[1])
        return self.prior.training_loss(self.image[who, look].float(), self.text[who, words].float(), generator, s.drop)

    def run(self, until: int | None = None, save_every: int = 1000) -> LatentPrior:
        """Train to step `until` (the end without it), save, and export the averaged prior when all steps are done.

        With `minutes` the run is done when they are over, and its learning rate follows the clock.
        """
        s, pace = self.settings, Pace(self.settings.steps, self.minutes)
        until = s.steps if until is None else min(until, s.steps)
        mean: list[Tensor] = list(self.average.parameters())
        own: list[Tensor] = list(self.prior.parameters())
        while self.step < until and not pace.done(self.step):
            for group in self.optimizer.param_groups:
                group["lr"] = paced_rate(pace, self.step, s.learning_rate)
            loss = self._loss(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(s.average, self.step / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(mean, own, 1 - keep)
            if self.step % 100 == 0 or self.step == until:
                log_stats(self.output / "stats.jsonl", self.step, {"loss": float(loss.detach())})
            if self.step % save_every == 0 or self.step == until:
                save_training(self.output / "state", self.step, self.modules, self.optimizer, dataclasses.asdict(s))
        if pace.done(self.step):
            self.average.save(self.output)
        return self.average.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.prior", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", nargs="+", default=[], help="folders of data sets, if not --words")
    parser.add_argument("--towers", required=True, help="folder of the frozen towers")
    parser.add_argument("--output", required=True, help="folder for the state, stats.jsonl and the result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that write and read captions, with --words")
    parser.add_argument("--width", type=int, default=256, help="of the network's hidden layers")
    parser.add_argument("--blocks", type=int, default=3, help="of the network")
    parser.add_argument("--minutes", type=float, help="end after so long, whatever --steps says")
    add_settings(parser, Settings)
    options = parser.parse_args(arguments)
    settings = settings_of(options, Settings)
    try:
        if bool(options.data) == bool(settings.words):
            raise ValueError("one of --data and --words says what z are learnt from; got "
                             + ("both" if options.data else "neither"))
        path = Path(options.output) / "state" / "latents.safetensors"
        if not path.is_file():
            checkpoints.save_tensors(
                path, collect_words(options.towers, settings, options.device, options.workers) if settings.words
                else collect_latents(TowerConditioner.from_folder(options.towers), options.data, settings))
        latents, _ = checkpoints.load_tensors(path)
        PriorTrainer(options.output, settings, latents["image"], latents["text"],
                     LatentPrior(options.width, options.blocks), options.device, options.minutes).run(save_every=5000)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {Path(options.output) / 'model.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
