"""What is compiled ahead of time: the kernel of the occupancy grid, for both rules, as it is launched."""

from __future__ import annotations

from typing import Any

from ..aot import ARCHS, Case
from ..layouts import RODIN, plane_axes
from .occupancy_path import CELLS, precision, warps

#: What a kernel costs most with: SiLU and softplus, border padding, aligned corners, the mean.
_DEMANDING = {"ACTIVATION": 1, "DENSITY": 0, "ALIGN": True, "BORDER": True, "SCALE": 1 / 3}


def occupancy_cases() -> list[Case]:
    """Both rules for the usual decoder and the widest, side by side and summed; needs Triton."""
    found = []
    for arch in ARCHS:
        for bound in (False, True):
            found += [_case(arch, "bf16", 32, 64, 2, bound), _case(arch, "fp32", 64, 64, 2, bound, HOW=1),
                      _case(arch, "fp16", 16, 64, 1, bound, **_DEMANDING)]
    return found


def _case(arch: str, dtype: str, channels: int, hidden: int, depth: int, bound: bool, **changed: Any) -> Case:
    from .occupancy_kernels import RUN_TIME, occupancy_kernel

    constants = {
        "C": channels, "CP": channels, "HIDDEN": hidden, "DEPTH": depth, "UNIT": 16,
        "AXES": sum(axis << (2 * i) for i, axis in enumerate(a for pair in plane_axes(RODIN) for a in pair)),
        "ALIGN": False, "BORDER": False, "HOW": 0, "SCALE": 1, "ACTIVATION": 0, "DENSITY": 1, "BOUND": bound,
        "PRECISION": precision(arch), "BLOCK": CELLS, **changed,
    }  # fmt: skip
    types = {"planes": f"*{dtype}", "weights": "*fp32", "biases": "*fp32", "bits": "*i32"}
    numbers = {name: "fp32" if name in ("threshold", "shift") else "i32" for name in RUN_TIME}
    how = ("sum", "concat", "product")[constants["HOW"]]
    said = f"occupancy {'bound' if bound else 'probe'} {dtype} C{channels} H{hidden}x{depth} {how}"
    said += f" w{warps(arch)}{' demanding' if 'ACTIVATION' in changed else ''} {arch}"
    return Case(said, occupancy_kernel, {**types, **numbers}, constants, warps(arch), 2, tuple(types), (arch,))
