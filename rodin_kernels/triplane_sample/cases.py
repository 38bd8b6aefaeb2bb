"""What is compiled ahead of time: every kernel of tri-plane sampling with the tiles that it is launched with."""

from __future__ import annotations

from typing import Any

from ..aot import ARCHS, Case
from ..layouts import EG3D, RODIN, plane_axes

_TYPES = {"fp32": 4, "bf16": 2}
_COORDINATES = ("points", "tangent")
_NVIDIA = tuple(arch for arch in ARCHS if arch.startswith("sm_"))
_AMD = tuple(arch for arch in ARCHS if arch not in _NVIDIA)


def cases() -> list[Case]:
    """The kernels for 32 channels in two types, the other ways to read as single cases; needs Triton, no GPU."""
    found = []
    for archs in (_NVIDIA, _AMD):
        for dtype in _TYPES:
            found += [_sample(dtype, archs), _points(dtype, archs), _planes(dtype, archs)]
    return [
        *found,
        _sample("fp32", HOW=1),
        _sample("bf16", HOW=1),
        _sample("bf16", HOW=2),
        _sample("bf16", TANGENT=True),
        _sample("bf16", channels=80),
        _sample("bf16", channels=3),
        _sample("bf16", WIDE=True, SQUARE=False),
        _sample("bf16", PADDING=2, ALIGN=True, AXES=_axes(EG3D)),
        _sample("bf16", PADDING=1, NEAREST=True),
        _points("bf16", TANGENT=True),
        _points("bf16", channels=80, SEPARATE=True),
        _planes("bf16", TANGENT=True),
        _planes("bf16", channels=80, SEPARATE=True),
        _planes("bf16", PADDING=1, NEAREST=True),
        _planes("bf16", WIDE=True, PADDING=2),
        _keys(),
        _segments("bf16"),
    ]


def _axes(layout: tuple[str, str, str]) -> int:
    return sum(axis << (2 * i) for i, axis in enumerate(axis for pair in plane_axes(layout) for axis in pair))


def _case(kernel: Any, name: str, dtype: str, channels: int, types: dict[str, str], aligned: tuple[str, ...],
          constants: dict[str, Any], changed: dict[str, Any], archs: tuple[str, ...] = ARCHS) -> Case:
    """A case with every number that is known at run time alone as a 32-bit integer."""
    import triton.language as tl

    common = {
        "C": channels, "P": 3, "AXES": _axes(RODIN), "ALIGN": False, "PADDING": 0, "NEAREST": False, "TANGENT": False,
        "SQUARE": True, "UNIT": 16 if channels % 16 == 0 else 1, "WIDE": False, "ACC": tl.float32, "HOW": 0,
        "SEPARATE": False, "SCALE": 1.0,
    }  # fmt: skip
    known = {k: v for k, v in {**common, **constants, **changed}.items() if k in kernel.arg_names}
    types = {**dict.fromkeys(_COORDINATES, "*fp32"), **types}
    signature = {arg: types.get(arg, "i32") for arg in kernel.arg_names if arg not in known}
    said = "".join(f" {key.lower()}={int(value)}" for key, value in changed.items() if key != "AXES")
    pointers = tuple(arg for arg in (*aligned, *_COORDINATES) if arg in signature)
    wave = " wave64" if archs == _AMD else ""
    return Case(f"{name} {dtype} C{channels}{said}{wave}", kernel, signature, known, 4, 2, pointers, archs)


def _wave(archs: tuple[str, ...]) -> int:
    return 64 if archs == _AMD else 32


def _sample(dtype: str, archs: tuple[str, ...] = _NVIDIA, channels: int = 32, **changed: Any) -> Case:
    from .kernels import sample_kernel
    from .triton_path import sample_tile

    tile = sample_tile(channels, _TYPES[dtype], _wave(archs))
    # the planes apart are computed with, so they stay as they were added up
    types = {"planes": f"*{dtype}", "out": "*fp32" if changed.get("HOW") == 1 else f"*{dtype}"}
    return _case(sample_kernel, "sample", dtype, channels, types, ("planes", "out"),
                 {"BLOCK_N": tile.points, "BLOCK_C": tile.channels}, changed, archs)


def _points(dtype: str, archs: tuple[str, ...] = _NVIDIA, channels: int = 32, **changed: Any) -> Case:
    from .kernels import point_gradient_kernel
    from .triton_path import sample_tile

    tile = sample_tile(channels, _TYPES[dtype], _wave(archs))
    types = {"planes": f"*{dtype}", "grad": f"*{dtype}", "out": "*fp32"}
    return _case(point_gradient_kernel, "point gradient", dtype, channels, types, ("planes", "grad", "out"),
                 {"BLOCK_N": tile.points, "BLOCK_C": tile.channels}, changed, archs)


def _planes(dtype: str, archs: tuple[str, ...] = _NVIDIA, channels: int = 32, **changed: Any) -> Case:
    from .scatter.kernels import plane_gradient_kernel
    from .triton_path import plane_gradient_tile

    tile = plane_gradient_tile(channels, _wave(archs))
    types = {"grad": f"*{dtype}", "out": "*fp32"}
    return _case(plane_gradient_kernel, "plane gradient", dtype, channels, types, ("grad", "out"),
                 {"STEPS": tile.steps, "BLOCK_N": tile.points, "BLOCK_C": tile.channels}, changed, archs)


def _keys() -> Case:
    from .scatter.kernels import key_kernel

    return _case(key_kernel, "sort keys", "fp32", 32, {"keys": "*i64"}, ("keys",), {"BLOCK_N": 128}, {})


def _segments(dtype: str, channels: int = 32) -> Case:
    from .scatter.kernels import segment_kernel
    from .triton_path import channel_block

    types = {"grad": f"*{dtype}", "keys": "*i64", "ends": "*i64", "out": "*fp32"}
    return _case(segment_kernel, "sorted plane gradient", dtype, channels, types, ("grad", "keys", "ends", "out"),
                 {"BLOCK_K": 32, "BLOCK_C": channel_block(channels)}, {})
