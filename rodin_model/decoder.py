"""The decoder that all avatars share: made from a seed, copied, and kept in a folder with the mean planes.

One small network turns a summed plane feature into density and colour for every avatar and for every plane
resolution, so that all planes live in one domain. The mean plane set is the point from which every avatar's planes
start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rodin_kernels import TinyDecoder

from . import checkpoints

#: Names inside a decoder folder.
CONFIG_FILE, TENSOR_FILE = "config.json", "decoder.safetensors"


def new_decoder(config: Mapping[str, Any], seed: int = 0) -> TinyDecoder:
    """A decoder with the arguments of `TinyDecoder` in `config`; its weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyDecoder.from_config(dict(config))


def copy_decoder(decoder: TinyDecoder, device: torch.device | str | None = None) -> TinyDecoder:
    """The same decoder with weights of its own, on `device` or where `decoder` is."""
    copy = new_decoder(decoder.config()).to(next(decoder.parameters()).device if device is None else device)
    copy.load_state_dict(decoder.state_dict())
    return copy


def save_decoder(folder: str | Path, decoder: TinyDecoder, mean: Tensor, facts: Mapping[str, Any]) -> None:
    """Write `decoder` and the mean planes `mean` [3, C, H, W] into `folder`, atomically, the config last.

    `facts` holds what sampling needs besides (layout, reduce, align_corners, padding_mode) and anything else in JSON.
    """
    folder = Path(folder)
    tensors = {f"decoder.{name}": value.detach() for name, value in decoder.state_dict().items()}
    checkpoints.save_tensors(folder / TENSOR_FILE, {**tensors, "mean": mean.detach()})
    checkpoints.write_json(folder / CONFIG_FILE, {"decoder": decoder.config(), **facts})


def load_decoder(folder: str | Path, device: torch.device | str = "cpu") -> tuple[TinyDecoder, Tensor, dict[str, Any]]:
    """Read a folder that `save_decoder` wrote: decoder, mean planes [3, C, H, W], facts.

    Raises FileNotFoundError, or ValueError that names the file if something in it does not fit.
    """
    folder = Path(folder)
    facts = checkpoints.read_json(folder / CONFIG_FILE)
    if not isinstance(facts, dict) or "decoder" not in facts:
        raise ValueError(f"{folder / CONFIG_FILE} must hold an object with the key 'decoder'")
    decoder = new_decoder(facts.pop("decoder"))
    tensors, _ = checkpoints.load_tensors(folder / TENSOR_FILE)
    if "mean" not in tensors:
        raise ValueError(f"{folder / TENSOR_FILE} lacks the tensor 'mean'")
    mean = tensors.pop("mean")
    fill_decoder(decoder, tensors, str(folder / TENSOR_FILE))
    return decoder.to(device), mean.float().to(device), facts  # shipped means are in half precision


def fill_decoder(decoder: TinyDecoder, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load the tensors named `decoder.*` into `decoder`; a ValueError names `what` and the first that does not fit."""
    weights = {name.removeprefix("decoder."): value for name, value in tensors.items() if name.startswith("decoder.")}
    wanted = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    checkpoints.check_shapes({name: tuple(value.shape) for name, value in weights.items()}, wanted, what)
    decoder.load_state_dict(weights)
