"""The decoder that all avatars share: its shape as plain data, and its folder on disk.

One small network turns a summed plane feature into density and colour for every avatar and for every plane
resolution, so that all planes live in one domain. Together with it lives the mean plane set, the point from which every
avatar's planes start.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rodin_kernels import TinyDecoder
from rodin_model import checkpoints

#: Names inside a decoder folder.
CONFIG_FILE, TENSOR_FILE = "config.json", "decoder.safetensors"


@dataclass(frozen=True)
class DecoderConfig:
    """The arguments of a `TinyDecoder`: features in, hidden widths, colours out, and the three activations."""

    in_features: int = 16
    hidden: tuple[int, ...] = (64, 64)
    out_features: int = 3
    activation: str = "relu"
    density: str = "trunc_exp"
    color: str = "sigmoid"

    def build(self, *, seed: int | None = None) -> TinyDecoder:
        """A fresh decoder of this shape; with `seed` its weights do not depend on the global random state."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return TinyDecoder(self.in_features, self.hidden, self.out_features, activation=self.activation,
                               density=self.density, color=self.color)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """The inverse of `to_dict`; unknown or missing names are a ValueError."""
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(data) != expected:
            raise ValueError(f"a decoder config needs exactly {sorted(expected)}; got {sorted(data)}")
        return cls(**{**data, "hidden": tuple(int(width) for width in data["hidden"])})

    @classmethod
    def of(cls, decoder: TinyDecoder) -> DecoderConfig:
        """Read the shape of a decoder that exists."""
        values = {field.name: getattr(decoder, field.name) for field in dataclasses.fields(cls)}
        return cls(**{**values, "hidden": tuple(values["hidden"])})


def save_decoder(folder: str | Path, decoder: TinyDecoder, mean: Tensor, conventions: Mapping[str, Any]) -> None:
    """Write `decoder` and the mean planes `mean` [3, C, H, W] into `folder`, atomically, the config last.

    `conventions` holds what sampling needs besides (layout, reduce, align_corners, padding_mode) and any other facts.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"decoder.{name}": value.detach().contiguous() for name, value in decoder.state_dict().items()}
    checkpoints.save_tensors(folder / TENSOR_FILE, {**tensors, "mean": mean.detach().contiguous()})
    checkpoints.write_json(folder / CONFIG_FILE, {"decoder": DecoderConfig.of(decoder).to_dict(), **conventions})


def load_decoder(folder: str | Path, device: torch.device | str = "cpu") -> tuple[TinyDecoder, Tensor, dict[str, Any]]:
    """Read a folder that `save_decoder` wrote: decoder, mean planes [3, C, H, W], conventions."""
    folder = Path(folder)
    facts = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    decoder = DecoderConfig.from_dict(facts.pop("decoder")).build(seed=0)
    tensors, _ = checkpoints.load_tensors(folder / TENSOR_FILE)
    mean = tensors.pop("mean")
    decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in tensors.items()})
    return decoder.to(device), mean.to(device), facts
