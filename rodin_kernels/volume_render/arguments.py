"""What `render_triplane` refuses before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number, check_same_device, check_shape, check_tensor
from .decoder import TinyDecoder

OUTPUTS = ("rgb", "depth", "opacity", "normals", "weights")
REDUCTIONS = ("sum", "mean", "concat", "product")
PADDINGS = ("zeros", "border", "reflection")
QUADRATURES = ("left", "midpoint", "raw_midpoint")
DELTAS = ("world", "t")


def is_tiny(decoder: Any) -> TypeGuard[TinyDecoder]:
    """Whether a decoder is a `TinyDecoder` that decodes as one, not a subclass with a forward of its own."""
    return isinstance(decoder, TinyDecoder) and type(decoder).forward is TinyDecoder.forward


def check_arguments(planes: Tensor, origins: Tensor, directions: Tensor, decoder: Any, near: float | Tensor,
                    far: float | Tensor, num_samples: int, num_importance: int, t: Tensor | None, cells: Tensor | None,
                    quadrature: str, deltas: str, reduce: str, padding_mode: str,
                    outputs: Sequence[str]) -> tuple[str, ...]:
    """Refuse what cannot be rendered; the outputs come back as a tuple. See `render_triplane` for each argument.

    Raises:
        TypeError, ValueError: an argument is not of the kind, shape or range there; the message names it.
    """
    check_tensor("planes", planes, ndim=5)
    check_shape("planes", planes, (None, 3, None, None, None), "[B, 3, C, H, W]")
    check_shape("origins", check_tensor("origins", origins), (planes.shape[0], None, 3), "[B, R, 3], B as planes")
    check_shape("directions", check_tensor("directions", directions), origins.shape, "[B, R, 3] as origins")
    check_same_device(planes=planes, origins=origins, directions=directions, t=t, occupancy=cells)
    if not callable(decoder):
        raise TypeError(f"decoder must be a TinyDecoder or a callable; got {type(decoder).__name__}")
    channels = planes.shape[2] * (3 if reduce == "concat" else 1)
    if isinstance(decoder, TinyDecoder) and decoder.choices.in_features != channels:
        raise ValueError(f"decoder must take the {channels} features of planes with {planes.shape[2]} channels and "
                         f"reduce={reduce!r}; got in_features={decoder.choices.in_features}")
    for name, value in (("near", near), ("far", far)):
        if not isinstance(value, Tensor):
            check_number(name, value)
        elif value.ndim > 2 or any(have not in (1, want) for have, want in zip(
                reversed(value.shape), reversed(origins.shape[:2]), strict=False)):
            raise ValueError(f"{name} must be a number or [B, R] = {list(origins.shape[:2])}; got {list(value.shape)}")
    check_integer("num_samples", num_samples, least=0)
    check_integer("num_importance", num_importance, least=0)
    check_choice("quadrature", quadrature, QUADRATURES)
    check_choice("deltas", deltas, DELTAS)
    check_choice("reduce", reduce, REDUCTIONS)
    check_choice("padding_mode", padding_mode, PADDINGS)
    if quadrature == "raw_midpoint" and not is_tiny(decoder):
        raise ValueError("decoder must be a TinyDecoder for quadrature='raw_midpoint', which asks for its density "
                         f"before activation; got {type(decoder).__name__}")
    least = 1 if quadrature == "left" else 2
    if (num_importance or quadrature != "left") and num_samples < least:
        raise ValueError(f"num_samples must be at least {least} with quadrature={quadrature!r} and "
                         f"num_importance={num_importance}; got {num_samples}")
    if t is not None:
        check_shape("t", check_tensor("t", t), (*origins.shape[:2], num_samples), "[B, R, num_samples]")
    if cells is not None:
        check_shape("occupancy", check_tensor("occupancy", cells, ndim=4, floating=False), (None,) * 4)
        if cells.dtype != torch.bool or cells.shape[0] not in (1, planes.shape[0]):
            raise ValueError(f"occupancy must be bool [1 or {planes.shape[0]}, G, G, G]; "
                             f"got {cells.dtype} {list(cells.shape)}")
    outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    for name in outputs:
        check_choice("outputs", name, OUTPUTS)
    return outputs
