"""What is compiled ahead of time: every kernel of the 3D-aware convolution under every shipped rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..aot import ARCHS, Case
from .choice import rules

_TYPES = {16: ("bf16",), 32: ("fp32",)}
_HALF = ("fp16",)
_INT = "i32"
# sizes and strides that a plane of 64 channels has: multiples of 16, so that the compiler may use whole vectors
_ALIGNED = (
    "x", "weight", "bias", "columns", "rows", "out", "y", "partial", "lines", "grad", "channels", "outputs",
    "x_batch", "x_plane", "x_row", "x_column", "w_plane", "w_output", "w_channel", "w_row", "w_column", "w_columns",
    "w_rows", "b_plane", "grad_batch", "grad_plane", "grad_row", "grad_column", "grad_vector", "rows_at", "in_columns",
    "in_rows", "out_columns", "out_rows", "columns_at", "totals",
)  # fmt: skip


def cases() -> list[Case]:
    """Every kernel under every shipped rule, for channels-last planes and 3 x 3 kernels. Needs Triton.

    Parameters that two architectures share are one case with both in `archs`. Where bfloat16 and float16 only differ in
    one conversion, bfloat16 stands for both.
    """
    found: dict[str, tuple[Case, list[str]]] = {}
    for arch in ARCHS:
        for purpose, candidates in rules(arch).items():
            for candidate in candidates:
                for case in _PURPOSES.get(purpose, lambda _: [])(candidate):
                    found.setdefault(case.name, (case, []))[1].append(arch)
    return [replace(case, archs=tuple(archs)) for case, archs in found.values()]


def _types(candidate: dict[str, Any]) -> list[str]:
    return [name for bits in candidate.get("bits", (16, 32)) for name in _TYPES[bits]]


def _case(kernel: Any, what: str, dtype: str, rule: dict[str, Any], types: dict[str, str], **constants: Any) -> Case:
    """A case with every argument that nobody names as a 32-bit integer."""
    tile = "x".join(str(size) for size in rule["tile"])
    name = f"{what} {dtype} {tile} w{rule['warps']} s{rule['stages']}"
    signature = {arg: types.get(arg, _INT) for arg in kernel.arg_names if arg not in constants}
    aligned = tuple(arg for arg in _ALIGNED if arg in signature)
    return Case(name, kernel, signature, constants, rule["warps"], rule["stages"], aligned)


def _pointers(dtype: str, low: str, wide: str) -> dict[str, str]:
    return dict.fromkeys(low.split(), f"*{dtype}") | dict.fromkeys(wide.split(), "*fp32")


def _own_plane(rule: dict[str, Any]) -> list[Case]:
    from .kernels import own_plane

    tile_h, tile_w, tile_o, tile_c = rule["tile"]
    uses: list[tuple[str, dict[str, Any]]] = [
        ("own_plane", {"TRANSPOSED": False, "STRIDE": 1, "LINES": 3, "BIAS": True, "w_channel": 1}),
        ("own_plane backward", {"TRANSPOSED": True, "STRIDE": 1, "LINES": -1, "BIAS": False, "w_output": 1}),
        ("own_plane transposed", {"TRANSPOSED": True, "STRIDE": 2, "LINES": 3, "BIAS": True, "w_channel": 1}),
    ]
    return [
        _case(own_plane, what, dtype, rule, _pointers(dtype, "x weight bias out", "columns rows"), x_channel=1,
              KERNEL=3, TILE_H=tile_h, TILE_W=tile_w, TILE_O=tile_o, TILE_C=tile_c, PRECISION="ieee", WIDE=False, **use)
        for dtype in (*_types(rule), *_HALF) for what, use in uses
        if dtype not in _HALF or (16 in rule.get("bits", ()) and what == "own_plane")
    ]  # fmt: skip


def _weight_gradient(rule: dict[str, Any]) -> list[Case]:
    from .weights.kernels import weight_gradient

    tile_o, tile_c, tile_p = rule["tile"]
    return [
        _case(weight_gradient, "weight_gradient", dtype, rule, _pointers(dtype, "grad x", "partial"), x_channel=1,
              grad_channel=1, WEIGHTS=1, KERNEL=3, STRIDE=1, TRANSPOSED=False, LINE=0, TILE_O=tile_o, TILE_C=tile_c,
              TILE_P=tile_p, PRECISION="ieee", WIDE=False)
        for dtype in _types(rule)
    ]  # fmt: skip


def _line_conv(rule: dict[str, Any]) -> list[Case]:
    from .lines.kernels import line_conv

    tile_l, tile_o, tile_c = rule["tile"]
    floats = {"scale_columns": "fp32", "scale_rows": "fp32"}
    shared: dict[str, Any] = {
        "KERNEL": 3, "STRIDE": 1, "TILE_L": tile_l, "TILE_O": tile_o, "TILE_C": tile_c, "PRECISION": "ieee",
    }  # fmt: skip
    uses: list[tuple[str, dict[str, Any]]] = [
        ("line_conv", {"TRANSPOSED": False, "BACKWARD": False, "w_channel": 1}),
        ("line_conv backward", {"TRANSPOSED": True, "BACKWARD": True, "w_output": 1}),
    ]
    return [
        _case(line_conv, what, dtype, rule, _pointers(dtype, "lines weight", "out") | floats, **shared, **use)
        for dtype in _types(rule)
        for what, use in uses
    ]


def _pool(rule: dict[str, Any]) -> list[Case]:
    from .lines.kernels import pool

    tile_h, span, tile_w, tile_c = rule["tile"]
    return [
        _case(pool, "pool", dtype, rule, _pointers(dtype, "x", "partial"), x_channel=1, CLASSES=1, TILE_H=tile_h,
              SPAN_W=span, TILE_W=tile_w, TILE_C=tile_c, WIDE=False)
        for dtype in _types(rule)
    ]  # fmt: skip


def _finish(rule: dict[str, Any]) -> list[Case]:
    from .lines.kernels import finish

    floats = {"scale_columns": "fp32", "scale_rows": "fp32"}
    return [
        _case(finish, what, dtype, rule, _pointers(dtype, "x out", "partial totals") | floats, x_channel=1, STRIDE=1,
              TRANSPOSED=False, TAPS=taps, TOTALS=taps > 0, TILE_L=rule["tile"][0], TILE_C=rule["tile"][1], WIDE=False)
        for dtype in _types(rule) for what, taps in (("finish", 0), ("finish taps", 3))
    ]  # fmt: skip


def _add_lines(rule: dict[str, Any]) -> list[Case]:
    from .lines.kernels import add_lines

    tile_h, tile_w, tile_c = rule["tile"]
    return [
        _case(add_lines, "add_lines", dtype, rule, _pointers(dtype, "y", "columns rows"), LINES=3, STRIDE=1,
              TRANSPOSED=False, TILE_H=tile_h, TILE_W=tile_w, TILE_C=tile_c, WIDE=False)
        for dtype in _types(rule)
    ]  # fmt: skip


def _weight_finish(rule: dict[str, Any]) -> list[Case]:
    from .weights.kernels import weight_finish

    floats = {"scale_columns": "fp32", "scale_rows": "fp32"}
    return [
        _case(weight_finish, "weight_finish", dtype, rule, _pointers(dtype, "out", "partial") | floats, WEIGHTS=1,
              TAPS=9, TAPS_PADDED=16, TILE_C=rule["tile"][0])
        for dtype in _types(rule)
    ]  # fmt: skip


def _pack(rule: dict[str, Any]) -> list[Case]:
    from .weights.kernels import pack

    return [
        _case(pack, "pack", dtype, rule, _pointers(dtype, "weight out", ""), w_column=1, KERNEL=3, TAPS_PADDED=16,
              TILE_O=rule["tile"][0], TILE_C=rule["tile"][1])
        for dtype in _types(rule)
    ]  # fmt: skip


def _bias_gradient(rule: dict[str, Any]) -> list[Case]:
    from .weights.kernels import bias_gradient

    return [
        _case(bias_gradient, "bias_gradient", dtype, rule, _pointers(dtype, "out", "totals"), TILE_R=rule["tile"][0],
              TILE_O=rule["tile"][1])
        for dtype in _types(rule)
    ]  # fmt: skip


_PURPOSES = {
    "own_plane": _own_plane, "weight_gradient": _weight_gradient, "weight_finish": _weight_finish,
    "line_conv": _line_conv, "pool": _pool, "finish": _finish, "add_lines": _add_lines, "pack": _pack,
    "bias_gradient": _bias_gradient,
}  # fmt: skip
