"""What the small trainings share: a state that resumes to the same weights, a learning rate, a log of statistics.

What happens in a step follows from the seed and the step's number alone, so no random state has to be kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rodin_model import checkpoints

T = TypeVar("T")


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    """Make every field of the dataclass `settings` an option of the same name, with the field's default."""
    for field in dataclasses.fields(settings):
        kind: dict[str, Any] = {"type": type(field.default)}
        if isinstance(field.default, bool):
            kind = {"action": "store_true"}
        parser.add_argument("--" + field.name.replace("_", "-"), default=field.default, **kind)


def add_bounds(parser: argparse.ArgumentParser, save_every: int) -> None:
    """Options for where a training runs, when it stops, and how often it is saved."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--until", type=int, help="stop at this step; the same command goes on from there")
    parser.add_argument("--minutes", type=float, help="end after so long, whatever --steps says")
    parser.add_argument("--save-every", type=int, default=save_every)


def status_of(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """The exit status of a command: 2, and one line of explanation, if something it needs is missing or wrong."""
    try:
        run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def add_imagined(parser: argparse.ArgumentParser) -> None:
    """Options for avatars that are known by their attributes alone, beyond those of the data set."""
    parser.add_argument("--imagined", type=int, default=0, help="as many more avatars, without pictures or points")
    parser.add_argument("--imagined-seed", type=int, default=20, help="seed of these")


def settings_of(options: argparse.Namespace, settings: type[T]) -> T:
    """The `settings` among parsed options, as `add_settings` declared them."""
    names = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(options, name) for name in names})


def make_optimizer(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW whose decay leaves biases, norms and single numbers alone."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    # one kernel for all parameters where launches are what costs; on a CPU it does not resume to the same bits
    fused = bool(parameters) and parameters[0].device.type == "cuda"
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """average <- keep average + (1 - keep) model, weights and running statistics alike; whole numbers stay."""
    pairs = [(old, new) for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True)
             if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - keep)


def mixed_precision(device: torch.device | str) -> torch.autocast:
    """bfloat16 for what gains by it, where the processor multiplies it; elsewhere everything stays float32.

    A CPU without such instructions computes it in software, some hundred times as slowly.
    """
    kind = torch.device(device).type
    able = kind != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=able)


def save_training(folder: Path, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer,
                  settings: Mapping[str, Any]) -> None:
    """Write modules, optimizer moments and the settings that must not change on resuming, atomically."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    checkpoints.save_state(folder, step, tensors, {"settings": dict(settings)})


def load_training(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer,
                  settings: Mapping[str, Any]) -> int:
    """Restore the newest state in place and return its step, 0 where there is none.

    ValueError if the state was made with other settings or sizes: its weights would not be those of either run.
    """
    found = checkpoints.load_state(folder)
    if found is None:
        return 0
    step, tensors, extra = found
    if extra["settings"] != json.loads(json.dumps(dict(settings))):
        raise ValueError(f"{folder} holds a training with other settings ({extra['settings']}); "
                         f"continue with those or choose another folder")
    for name, module in modules.items():
        prefix = name + "."
        stored = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        checkpoints.check_shapes({k: tuple(v.shape) for k, v in stored.items()},
                                 {k: tuple(v.shape) for k, v in module.state_dict().items()}, f"{folder}, {name}")
        module.load_state_dict(stored)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def log_stats(path: Path, step: int, stats: Mapping[str, float]) -> None:
    """Append one line of JSON: the step and its statistics, rounded to five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"step": step, **{name: float(f"{value:.5g}") for name, value in stats.items()}})
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
