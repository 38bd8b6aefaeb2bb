"""Argument checks: small functions whose TypeError or ValueError names the argument, what came and what is needed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

#: The floating-point types that every operator takes.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(name: str, value: Any, *, ndim: int | None = None, floating: bool = True) -> Tensor:
    """`value` itself, if it is a tensor with `ndim` dimensions and, unless `floating` is False, a floating type."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
    if floating and value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64; got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions; got {value.ndim}: {list(value.shape)}")
    return value


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | None], described: str = "") -> None:
    """The tensor has this shape, None standing for any size; `described` may spell it in letters, as `[B, N, 3]`."""
    fits = tensor.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = described or "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
        raise ValueError(f"{name} must be {wanted}; got {list(tensor.shape)}")


def check_same_device(**tensors: Tensor | None) -> None:
    """All tensors (None is skipped) lie on one device."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in given.values()}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in given.items())
        raise ValueError(f"all tensors must be on one device; got {places}")


def check_same_dtype(**tensors: Tensor | None) -> None:
    """All tensors (None is skipped) have one dtype."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if len({tensor.dtype for tensor in given.values()}) > 1:
        types = ", ".join(f"{name} {tensor.dtype}" for name, tensor in given.items())
        raise TypeError(f"all tensors must have one dtype; got {types}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_integer(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int, if it is a whole number (no bool) between `least` and `most`, both included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"{name} must be {_interval(least, most)}; got {value}")
    return value


def check_number(name: str, value: Any, *, least: float | None = None, most: float | None = None) -> float:
    """`value` as a float, if it is a finite number (no bool) between `least` and `most`, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not math.isfinite(value) or (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"{name} must be {_interval(least, most)}; got {value}")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """`value` itself, if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def _interval(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f"between {least} and {most}"
    if least is not None:
        return f"at least {least}"
    return f"at most {most}" if most is not None else "finite"
