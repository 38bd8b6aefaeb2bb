"""What is compiled ahead of time: the fused renderer's kernels under every tile that a launch may choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..aot import ARCHS, Case
from ..layouts import RODIN, plane_axes
from .coverage import fits_gradient
from .occupancy_cases import occupancy_cases
from .tiles import Launch, Tile, Widths, forward_tile, launches, normals_tile

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_FLOATS = ("stop", "shift")
#: The decoder 32 -> 64 -> 64 -> 4, the widest with hidden layers of 64 and of 128 whose backward pass is fused, and the
#: widest that is fused at all.
_USUAL, _MIDDLE, _WIDE, _WIDEST = Widths(32, 64, 16), Widths(64, 64, 64), Widths(64, 128, 64), Widths(128, 128, 64)
#: Everything that costs registers at once.
_DEMANDING = {"ACTIVATION": 2, "DENSITY": 0, "COLOR": 1, "JITTER": True, "ALIGN": True, "BORDER": True, "SCALE": 1 / 3}


def cases() -> list[Case]:
    """Both passes of the usual and of the widest decoder, in each precision, for each architecture; needs Triton."""
    return [*occupancy_cases(), *(case for arch in ARCHS for case in _of(arch))]


def _of(arch: str) -> Iterator[Case]:
    for dtype, forward, backward in (("fp16", _USUAL, _USUAL), ("fp16", _MIDDLE, _MIDDLE), ("fp16", _WIDEST, _WIDE),
                                     ("fp32", _USUAL, _USUAL)):
        size = _BYTES[dtype]
        yield _forward(arch, dtype, forward)
        for launch in _launches(arch, size, backward) if fits_gradient(arch, backward) else ():
            yield _backward(arch, dtype, backward, launch)
    yield _forward(arch, "fp32", _MIDDLE)
    yield _forward(arch, "fp16", _WIDEST, WEIGHTS=True)
    for widths in (_USUAL, _MIDDLE):
        yield _forward(arch, "fp16", widths, NORMALS=True, WEIGHTS=True)
    yield _forward(arch, "bf16", _USUAL, **_DEMANDING)
    for launch in launches(arch, 2, _USUAL, True, True, False):
        yield _backward(arch, "bf16", _USUAL, launch, **_DEMANDING)


def _launches(arch: str, itemsize: int, widths: Widths) -> list[Launch]:
    """Those that any choice of gradients takes."""
    chosen = ((True, True, True), (True, False, True))
    return list(dict.fromkeys(launch for wanted in chosen for launch in launches(arch, itemsize, widths, *wanted)))


def _forward(arch: str, dtype: str, widths: Widths, **changed: Any) -> Case:
    from .kernels import forward_kernel

    more = {name: changed.pop(name, False) for name in ("NORMALS", "WEIGHTS")}
    said = " ".join(["forward", *(name.lower() for name, own in more.items() if own)])
    tile = normals_tile(arch, widths) if more["NORMALS"] else forward_tile(arch, _BYTES[dtype], widths)
    return _case(forward_kernel, said, arch, dtype, widths, tile, changed, more)


def _backward(arch: str, dtype: str, widths: Widths, launch: Launch, **changed: Any) -> Case:
    from .backward_kernels import backward_kernel

    wanted = {"planes": launch.planes, "decoder": launch.decoder, "rays": launch.rays}
    said = " ".join(name for name, own in wanted.items() if own)
    constants: dict[str, Any] = {f"GRAD_{name.upper()}": own for name, own in wanted.items()}
    constants |= {"KEEP": launch.tile.keep, "FRESH": launch.tile.fresh, "WINDOWS": launch.tile.windows}
    return _case(backward_kernel, f"backward {said}", arch, dtype, widths, launch.tile, changed, constants)


def _case(kernel: Any, name: str, arch: str, dtype: str, widths: Widths, tile: Tile, changed: dict[str, Any],
          more: dict[str, Any] | None = None) -> Case:
    """A case of a picture of planes that are summed, two hidden layers, occupancy skipped."""
    from .kernels import RUN_TIME

    constants = {
        "C": widths.features, "CP": widths.features, "HIDDEN": widths.hidden,
        "OUT": 3 if widths.outputs == 16 else widths.outputs - 1, "OUTP": widths.outputs, "DEPTH": 2, "UNIT": 16,
        "AXES": sum(axis << (2 * i) for i, axis in enumerate(a for pair in plane_axes(RODIN) for a in pair)),
        "ALIGN": False, "BORDER": False, "SCALE": 1, "ACTIVATION": 0, "DENSITY": 2, "COLOR": 0, "CELLS": True,
        "JITTER": False, "EXPLICIT": False, "WORLD": True, "PRECISION": "ieee", "BLOCK": tile.rays,
        "TILE_W": tile.across, **(more or {}), **changed,
    }  # fmt: skip
    types = {"planes": f"*{dtype}", "weights": f"*{dtype}", "bits": "*i32", "seeds": "*i64"}
    numbers = {arg: "fp32" if arg in _FLOATS else "i32" for arg in RUN_TIME}
    signature = {arg: {**numbers, **types}.get(arg, "*fp32") for arg in kernel.arg_names if arg not in constants}
    pointers = tuple(arg for arg, type_ in signature.items() if type_.startswith("*"))
    sizes = f"{widths.features}-{widths.hidden}-{widths.hidden}-{widths.outputs}"
    said = f"{name} {dtype} {sizes} r{tile.rays} w{tile.warps}{' demanding' if changed else ''} {arch}"
    return Case(said, kernel, signature, constants, tile.warps, 2, pointers, (arch,))
