"""What training the diffusions has in common: data in memory, the optimiser step with its moving average, resuming.

One process or many: under `torchrun` every rank draws its own samples and gradients are averaged by DDP.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rodin_model import checkpoints
from rodin_model.amortized import AmortizedPlanes
from rodin_model.diffusion import TriplaneDiffusion
from rodin_model.principal import PrincipalDenoiser
from rodin_model.train.pace import Pace
from rodin_model.train.resume import load_training, log_stats, make_optimizer, save_training

#: What can be trained: it saves itself into a folder.
Denoiser = TriplaneDiffusion | PrincipalDenoiser | AmortizedPlanes


@dataclass(frozen=True)
class DenoiserSettings:
    """How a diffusion is trained. `text_share` of the latents come from captions, the others from pictures.

    Where most avatars have no pictures, a share `pictured` of each batch is drawn among those that have some.
    """

    steps: int = 6000
    batch: int = 16
    learning_rate: float = 4e-4
    warmup: int = 200
    cooldown: float = 0.4
    weight_decay: float = 0.01
    ema: float = 0.999
    text_share: float = 0.5
    pictured: float = 0.0
    image_weight: float = 0.0
    precision: str = "bf16"
    seed: int = 0


def rate(step: int, settings: DenoiserSettings, progress: float | None = None) -> float:
    """Learning rate: linear warm-up, constant, and a linear fall to 0 over the last `cooldown` of the way.

    `progress` in [0, 1] is how much of the way is gone; without it, the share of the steps.
    """
    gone = step / settings.steps if progress is None else progress
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    fall = min(1.0, (1 - gone) / settings.cooldown) if settings.cooldown else 1.0
    return settings.learning_rate * rise * fall


def step_randomness(seed: int, step: int,
                    device: torch.device | str = "cpu") -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step on this rank: from (seed, rank, step) alone, so a resumed run repeats them.

    The second generator draws on `device`; that of a GPU draws other numbers than that of a CPU.
    """
    words = [seed, int(os.environ.get("RANK", "0")), step]
    rng = np.random.default_rng(words)
    return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))


def draw_keys(generator: torch.Generator, seed: int, rows: Iterable[Any], step: int,
              *more: int) -> list[tuple[int, ...]] | torch.Generator:
    """What `fit_data` draws with: a GPU's generator for all avatars at once, else a key for each of `rows`."""
    return generator if generator.device.type == "cuda" else [(seed, int(row), step, *more) for row in rows]


def all_planes(folder: str | Path) -> tuple[Tensor, list[int]]:
    """All that `rodin_model.train.fit` wrote into `folder`: planes float16 [N, 3, C, R, R] and avatars' numbers."""
    files = sorted(Path(folder).glob("planes-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no planes-*.safetensors: python -m rodin_model.train.fit makes them")
    shards = [checkpoints.load_tensors(file)[0] for file in files]
    return torch.cat([s["planes"] for s in shards]), torch.cat([s["avatars"] for s in shards]).tolist()


def statistics(planes: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Mean planes [3, C, R, R] and the deviation [3, C, 1, 1] from them, of planes [N, 3, C, R, R] in any dtype."""
    mean = torch.stack([part.double().sum(0) for part in planes.split(chunk)]).sum(0) / len(planes)
    squares = torch.stack([((part.double() - mean) ** 2).sum(0) for part in planes.split(chunk)]).sum(0)
    return mean.float(), (squares / len(planes)).mean((-2, -1), keepdim=True).sqrt().float()


class Objective(nn.Module):
    """The training loss as a module's forward, so that DDP can wrap it."""

    def __init__(self, model: Denoiser, loss: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, step: int) -> dict[str, Tensor]:
        """The named losses of one step; their sum is minimised."""
        return self.loss(self.model, step)


class DenoiserTrainer:
    """One training run in a folder: `state/` to resume from, `stats.jsonl`, and the averaged model in `model/`."""

    def __init__(self, output: str | Path, model: Denoiser, settings: DenoiserSettings,
                 losses: Callable[..., dict[str, Tensor]],
                 device: str | torch.device = "cpu", minutes: float | None = None) -> None:
        self.minutes, self.pace = minutes, Pace(settings.steps)
        self.output, self.settings, self.device = Path(output), settings, torch.device(device)
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.model = model.to(self.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(self.model, settings.weight_decay)
        self.step = load_training(self.output / "state", self._modules(), self.optimizer, dataclasses.asdict(settings))
        self.objective: nn.Module = Objective(self.model, losses)
        if self.world > 1:
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self.objective = DistributedDataParallel(self.objective)

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average}

    def progress(self) -> float:
        """How much of the way is gone, in [0, 1]: the same on all ranks, by the clock of the first."""
        gone = self.pace.progress(self.step)
        if self.world > 1 and self.minutes is not None:
            shared = torch.tensor(gone, dtype=torch.float64, device=self.device)
            torch.distributed.broadcast(shared, 0)
            gone = float(shared)
        return gone

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step and one step of the moving average (EMA with a warm-up).

        Returns the losses, each [], where they were computed: who reads them waits for the device.
        """
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, settings, self.progress())
        torch.manual_seed(int(step_randomness(settings.seed, self.step)[0].integers(2**62)))  # dropout draws from it
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            losses = self.objective(self.step)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        return {**{name: value.detach() for name, value in losses.items()}, "gradient": norm.detach()}

    def save(self) -> None:
        """Write the resume state and the averaged model, whole or not at all."""
        if self.rank == 0:
            save_training(self.output / "state", self.step, self._modules(), self.optimizer,
                          dataclasses.asdict(self.settings))
            self.average.save(self.output / "model")

    def run(self, until: int | None = None, *, save_every: int = 500, log_every: int = 50) -> Denoiser:
        """Train to step `until` (the end without it) and save; returns the averaged model.

        With `minutes` the run ends when they are over, and its learning rate follows the clock.
        """
        until = self.settings.steps if until is None else min(until, self.settings.steps)
        self.pace = Pace(self.settings.steps, self.minutes)
        sums: dict[str, Tensor] = {}
        began = time.perf_counter()
        bar = tqdm(total=until, initial=self.step, disable=None if self.rank == 0 else True, desc="train")
        while self.step < until and self.progress() < 1.0:
            for name, value in self.train_step().items():
                sums[name] = sums[name] + value if name in sums else value
            bar.update()
            if self.step % log_every == 0 and self.rank == 0:
                means = {name: float(value) / log_every for name, value in sums.items()}
                log_stats(self.output / "stats.jsonl", self.step, {**means, "seconds": time.perf_counter() - began})
                sums.clear()
            if self.step % save_every == 0 and self.step < until:
                self.save()
        bar.close()
        self.save()
        return self.average
