"""How the kernels of the 3D-aware convolution are launched: by shape, from shipped data, never timed at run time.

`configs/<architecture>.json` holds lists of rules; the first that fits decides. A rule fits when every one of its
bounds holds: `bits` of the dtype, `channels_from`, `outputs_from` and `side_from` (least numbers of channels and least
longer side of a plane), `channels_multiple_of` and `outputs_multiple_of`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checks import check_choice

#: How the own plane may be convolved: by our kernel, by the library's convolution, or by what the shipped rules say.
METHODS = ("auto", "gemm", "library")

_forced = "auto"


class Shape(NamedTuple):
    """What the rules look at."""

    bits: int
    channels: int
    outputs: int
    side: int


@contextmanager
def own_plane_method(method: str) -> Iterator[None]:
    """Inside this context the Triton backend convolves the own plane by `method`, one of `METHODS`.

    "gemm" is this library's kernel, which adds bias and lines in its epilogue; "library" is torch's convolution (cuDNN,
    MIOpen) with one pass more over its result; "auto", the default, follows the shipped rules. A backward takes the
    method of its forward.

    Raises:
        ValueError: `method` is not one of `METHODS`.
    """
    global _forced
    check_choice("method", method, METHODS)
    before, _forced = _forced, method
    try:
        yield
    finally:
        _forced = before


def forced_method() -> str:
    """The method that `own_plane_method` asks for, "auto" outside of it."""
    return _forced


def architecture(device: torch.device) -> str:
    """Whose shipped rules hold on a device; cards with little shared memory take those of sm_80."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


@lru_cache(maxsize=4096)
def rule(arch: str, purpose: str, shape: Shape) -> dict[str, Any]:
    """The first shipped rule of an architecture for `purpose` that fits the shape."""
    for candidate in rules(arch)[purpose]:
        fits = shape.bits in candidate.get("bits", (shape.bits,))
        for name in ("channels", "outputs", "side"):
            size = getattr(shape, name)
            least, divisor = candidate.get(f"{name}_from", 0), candidate.get(f"{name}_multiple_of", 1)
            fits = fits and size >= least and size % divisor == 0
        if fits:
            return dict(candidate)
    raise RuntimeError(f"no shipped rule for {purpose} on {arch} fits {shape}")


@lru_cache(maxsize=8)
def rules(arch: str) -> dict[str, list[dict[str, Any]]]:
    """All shipped rules of an architecture, by purpose."""
    path = Path(__file__).parent / "configs" / f"{arch}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["rules"])


def method_for(method: str, arch: str, purpose: str, shape: Shape) -> str:
    """ "gemm" or "library" for one of "forward", "planes_gradient" and "weight_gradient"."""
    return method if method != "auto" else str(rule(arch, f"{purpose}_method", shape)["method"])
