"""`python -m rodin_model.train.refine`: train the convolutional refiner on pairs from `rodin_model.train.pairs`.

Three losses: on pixels; on features of the frozen picture tower, never of the network that judges the evaluation; and,
late in training, that of a small network that tells refined patches from true ones (hinge loss, spectral norm). What
happens in a step follows from the seed and the step's number alone, so a killed run resumes to the same weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

from rodin_model.conditioning import TowerConditioner
from rodin_model.config import PRESETS, RefinerConfig
from rodin_model.metrics import psnr, ssim
from rodin_model.refiner import SEEN, Refiner, enlarge, over
from rodin_model.train.denoiser import step_randomness
from rodin_model.train.pace import Pace, paced_rate
from rodin_model.train.pairs import Pairs
from rodin_model.train.patches import ResidentPairs
from rodin_model.train.perceptual import FeatureDistance
from rodin_model.train.resume import (
    add_settings,
    load_training,
    log_stats,
    make_optimizer,
    save_training,
    settings_of,
)


@dataclass(frozen=True)
class RefineSettings:
    """How the refiner is trained: `patch` rendered pixels along a side, `batch` patches a step.

    `critic_from`: the share of the steps after which the adversarial loss joins. `mottle`: how strong the smooth noise
    may be that a half of the patches is given, so that blotches are known as what they are.
    """

    steps: int = 3000
    batch: int = 8
    patch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.0
    perceptual: float = 0.03
    adversarial: float = 0.003
    critic_from: float = 0.6
    mottle: float = 0.04
    average: float = 0.995
    seed: int = 0


class Critic(nn.Module):
    """Is a patch true or refined? A number for every place, from the patch and the enlarged rendering beside it.

    Pictures [B, 6, H, W], values in [0, 1] -> [B, 1, H / 8, W / 8]; spectral norm on every layer (Miyato et al. 2018).
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 64)) -> None:
        super().__init__()
        sizes = [6, *widths]
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1))
                                    for a, b in zip(sizes, sizes[1:], strict=False))
        self.last = spectral_norm(nn.Conv2d(sizes[-1], 1, 3, 1, 1))

    def forward(self, pictures: Tensor, rendered: Tensor) -> Tensor:
        """Large where `pictures` [B, 3, H, W] look true for what `rendered` [B, 3, H, W] shows."""
        x = torch.cat([pictures, rendered], 1) * 2 - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.last(x)


def draw(pairs: Pairs | ResidentPairs, settings: RefineSettings, step: int) -> tuple[Tensor, Tensor]:
    """The batch of one step: `seen` [B, C, P, P] and `truth` [B, 4, sP, sP]; half of them mirrored, half mottled."""
    if isinstance(pairs, ResidentPairs):
        return pairs.draw(settings, step)
    rng, generator = step_randomness(settings.seed, step)
    size = min(settings.patch, pairs.height, pairs.width)
    seen, truth = [], []
    for number in rng.integers(0, len(pairs), settings.batch):
        top, left = (int(_near_middle(rng) * (full - size)) for full in (pairs.height, pairs.width))
        a, b = pairs.read(int(number), top, left, size)
        if rng.random() < 0.5:
            a, b = a.flip(-1), b.flip(-1)
        if rng.random() < 0.5:
            a = mottled(a, float(rng.uniform(0, settings.mottle)), int(rng.integers(2, 9)), generator)
        seen.append(a)
        truth.append(b)
    return torch.stack(seen), torch.stack(truth)


def _near_middle(rng: np.random.Generator) -> float:
    """In [0, 1], more often about the middle, where the face is."""
    return float(rng.random() + rng.random()) / 2


def mottled(seen: Tensor, strength: float, grain: int, generator: torch.Generator) -> Tensor:
    """`seen` [C, H, W] with smooth noise of `grain` pixels on its colours, and more on its features, where it is not
    empty; opacity and nearness stay."""
    channels, height, width = seen.shape
    coarse = torch.randn((1, channels, max(2, height // grain), max(2, width // grain)), generator=generator)
    noise = F.interpolate(coarse, (height, width), mode="bicubic")[0] * strength
    noise[3:5] = 0
    noise[5:] *= 2
    out = seen + noise * seen[3:4].clamp(0, 1)
    return torch.cat([out[:3].clamp(0, 1), out[3:]])


class RefineTrainer:
    """One training run in a folder: `state/` to resume from, `stats.jsonl`, and the averaged refiner in `model/`."""

    def __init__(self, output: str | Path, refiner: Refiner, pairs: Pairs | ResidentPairs,
                 settings: RefineSettings, distance: FeatureDistance | None = None, device: str | torch.device = "cpu",
                 pace: Pace | None = None) -> None:
        self.pace = pace or Pace(settings.steps)
        self.output, self.pairs, self.settings, self.device = Path(output), pairs, settings, torch.device(device)
        if pairs.scale != refiner.config.scale:
            raise ValueError(f"the truth of the pairs is {pairs.scale} times as wide as what was rendered; "
                             f"this refiner enlarges {refiner.config.scale} times")
        if pairs.channels != SEEN + refiner.config.features:
            raise ValueError(f"the pairs have {pairs.channels} channels; this refiner reads "
                             f"{SEEN + refiner.config.features}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            critic = Critic()
        self.refiner, self.critic = refiner.to(self.device), critic.to(self.device)
        self.average = copy.deepcopy(self.refiner).eval().requires_grad_(False)
        self.distance = None if distance is None else distance.to(self.device)
        self.optimizer = make_optimizer(nn.ModuleList([self.refiner, self.critic]), settings.weight_decay)
        self.step = load_training(self.output / "state", self._modules(), self.optimizer, asdict(settings))

    def _modules(self) -> dict[str, nn.Module]:
        return {"refiner": self.refiner, "critic": self.critic, "average": self.average}

    def losses(self, refined: Tensor, truth: Tensor, rendered: Tensor) -> dict[str, Tensor]:
        """The refiner's losses on rgba [B, 4, H, W]; `rendered` is the enlarged rendering on white [B, 3, H, W]."""
        settings, found = self.settings, {"pixel": (refined - truth).abs().mean()}
        if self.distance is not None:
            found["perceptual"] = settings.perceptual * self.distance(over(refined, 1.0), over(truth, 1.0))
        if self.judged:
            found["adversarial"] = -settings.adversarial * self.critic(over(refined, 1.0), rendered).mean()
        return found

    @property
    def judged(self) -> bool:
        """Whether the critic has a say at the present step."""
        return self.settings.adversarial > 0 and self.pace.progress(self.step) >= self.settings.critic_from

    def train_step(self) -> dict[str, Tensor]:
        """Refiner and critic each by one step, from the same state; returns the losses, on the device."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = paced_rate(self.pace, self.step, settings.learning_rate, settings.warmup)
        seen, truth = (t.to(self.device) for t in draw(self.pairs, settings, self.step))
        rendered = over(enlarge(seen[:, :4], self.refiner.config.scale), 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        # a CPU gains nothing by it here
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            refined = self.refiner(seen)
        judged, found = self.judged, self.losses(refined, truth, rendered)
        own = list(self.refiner.parameters())
        for parameter, gradient in zip(own, torch.autograd.grad(torch.stack([*found.values()]).sum(), own),
                                       strict=True):
            # in the parameter's own memory order, as backward() would leave it: the fused optimiser asks for that
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        nn.utils.clip_grad_norm_(own, 1.0)
        if judged:
            found["critic"] = critic_loss(self.critic, over(refined.detach(), 1.0), over(truth, 1.0), rendered)
            found["critic"].backward()
            nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.refiner.parameters()), 1 - keep)
        return {name: value.detach() for name, value in found.items()}

    def save(self) -> None:
        """Write the resume state and the averaged refiner, whole or not at all."""
        save_training(self.output / "state", self.step, self._modules(), self.optimizer, asdict(self.settings))
        self.average.save(self.output / "model")

    def run(self, until: int | None = None, *, save_every: int = 200, log_every: int = 50) -> Refiner:
        """Train to step `until` (the end without it, or that of the pace) and save; returns the averaged refiner."""
        until = self.settings.steps if until is None else min(until, self.settings.steps)
        recent: list[dict[str, Tensor]] = []
        for _ in tqdm(range(self.step, until), initial=self.step, total=until, disable=None, desc="refiner"):
            if self.pace.done(self.step):
                break
            recent.append(self.train_step())
            if self.step % log_every == 0:
                log_stats(self.output / "stats.jsonl", self.step, {
                    name: float(torch.stack([r[name] for r in recent]).mean()) for name in recent[0]
                    if all(name in r for r in recent)})
                recent.clear()
            if self.step % save_every == 0 and self.step < until:
                self.save()
        self.save()
        return self.average


def critic_loss(critic: Critic, refined: Tensor, truth: Tensor, rendered: Tensor) -> Tensor:
    """Hinge loss: mean max(0, 1 - D(truth)) + mean max(0, 1 + D(refined)), pictures [B, 3, H, W]."""
    return F.relu(1 - critic(truth, rendered)).mean() + F.relu(1 + critic(refined, rendered)).mean()


@torch.no_grad()
def measure(refiner: Refiner, pairs: Pairs) -> dict[str, float]:
    """Mean PSNR and SSIM against the truth on white, of renderings enlarged and of refined ones, over all pairs."""
    sums = dict.fromkeys(("psnr_enlarged", "psnr_refined", "ssim_enlarged", "ssim_refined"), 0.0)
    for number in range(len(pairs)):
        seen, truth = pairs.read(number)
        device = refiner.head.weight.device
        pictures = {"enlarged": enlarge(seen[None, :4], pairs.scale), "refined": refiner(seen[None].to(device)).cpu()}
        true = over(truth, 1.0).permute(1, 2, 0)
        for name, picture in pictures.items():
            shown = over(picture[0].clamp(0, 1), 1.0).permute(1, 2, 0)
            sums["psnr_" + name] += float(psnr(shown, true)) / len(pairs)
            sums["ssim_" + name] += float(ssim(shown, true)) / len(pairs)
    return sums


def new_refiner(preset: str, seed: int) -> Refiner:
    """The untrained refiner of a preset; ValueError for one that has none."""
    config: RefinerConfig | None = PRESETS[preset].refiner
    if config is None:
        raise ValueError(f"the preset {preset} has no refiner")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Refiner(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.refine", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pairs", required=True, nargs="+", help="folders from rodin_model.train.pairs")
    parser.add_argument("--towers", help="folder of the trained towers; without it there is no perceptual loss")
    parser.add_argument("--held-out", help="folder of pairs to measure the result on")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--output", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--until", type=int, help="stop at this step; the same command goes on from there")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--minutes", type=float, help="end after so much time; the learning rate follows the clock")
    add_settings(parser, RefineSettings)
    args = parser.parse_args(arguments)
    try:
        settings, distance = settings_of(args, RefineSettings), None
        pace = Pace(settings.steps, args.minutes)
        torch.backends.cudnn.benchmark = torch.device(args.device).type == "cuda"
        if args.towers:
            distance = FeatureDistance(TowerConditioner.from_folder(args.towers).towers.image.face)
        pairs = Pairs(args.pairs) if args.device == "cpu" else ResidentPairs(args.pairs, args.device)
        trainer = RefineTrainer(args.output, new_refiner(args.preset, settings.seed), pairs, settings, distance,
                                args.device, pace)
        refiner = trainer.run(args.until, save_every=args.save_every)
        if args.held_out:
            print(", ".join(f"{name} {value:.3f}" for name, value in measure(refiner, Pairs([args.held_out])).items()))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
