"""What a reader without a GPU may expect: the kernels' machine code, and times predicted from counted work.

Nothing here was measured on a GPU. The inspection reads compiled code; a prediction divides counted operations and
bytes by assumed rates, and is the time of a kernel that leaves nothing to be desired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import convolution, readme, rendering, report, sampling
from .case import Work
from .ceilings import Ceilings
from .machine import ROOT

GOLDEN = ROOT / "rodin_kernels" / "inspection.json"
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- inspection:begin -->", "<!-- inspection:end -->"
#: Shares of the data sheets' peaks that good kernels reach: what large matrix products and copies are known to get.
COMPUTE_SHARE, MEMORY_SHARE = 0.8, 0.9


class Gpu(NamedTuple):
    """A GPU by its data sheet: dense bfloat16 operations and bytes of memory per second."""

    name: str
    arch: str
    flops: float
    bandwidth: float

    def ceilings(self) -> Ceilings:
        """The rates that predictions assume; none for random access, which no data sheet gives."""
        return Ceilings(self.bandwidth * MEMORY_SHARE, 0.0, 0.0, {"bfloat16": self.flops * COMPUTE_SHARE})


GPUS = (Gpu("A100 80 GB", "sm_80", 312e12, 2.04e12), Gpu("H200", "sm_90", 989e12, 4.8e12),
        Gpu("B200", "sm_100", 2250e12, 8.0e12), Gpu("MI300X", "gfx942", 1307e12, 5.3e12))


def works() -> Iterator[tuple[str, dict[str, Work]]]:
    """The least work of real shapes, in bfloat16."""
    low = torch.bfloat16
    for shape in convolution.GPU_SHAPES:
        batch, channels, size, outputs = shape
        yield f"rollout_conv B{batch} C{channels} R{size} O{outputs}", convolution.works(shape, low)
    for count in (1 << 20, 1 << 24):
        yield f"sample_triplane {count} ray-ordered points C32 R256", sampling.works(count, 32, 256, "ray-ordered", low)
    for side, samples in ((128, 96), (512, 96)):
        yield f"render_triplane {side}x{side} rays x {samples} C32 R256", rendering.works(side, samples, 32, 256, low)


def predicted() -> str:
    """Forward and backward times of `works` on the GPUs, as a table."""
    lines = ["| least work, bfloat16 | GFLOP | MB | " + " | ".join(f"{gpu.name}, predicted" for gpu in GPUS) + " |",
             "|---|---|---|" + "---|" * len(GPUS)]
    for name, work in works():
        cells = []
        for gpu in GPUS:
            times = [gpu.ceilings().floor(work[what], torch.bfloat16) for what in ("forward", "backward")]
            cells.append(" + ".join(report.seconds(t) for t in times))
        forward = work["forward"]
        lines.append(f"| {name} | {forward.flops / 1e9:.3g} | {forward.moved / 1e6:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def inspected(golden: dict[str, Any]) -> str:
    """The golden file of `python -m rodin_kernels.inspect` as tables, one an operator."""
    parts = []
    for operator, cases in golden["kernels"].items():
        parts += [f"### {operator}", "",
                  "| kernel | architecture | registers | spills | shared, bytes | occupancy | tensor cores | loads | "
                  "stores | atomics |", "|---|---|---|---|---|---|---|---|---|---|"]
        for case, archs in cases.items():
            parts += [_line(case, arch, facts) for arch, facts in archs.items()]
        parts.append("")
    return "\n".join(parts).rstrip()


def _line(case: str, arch: str, facts: dict[str, Any]) -> str:
    def counts(name: str, unit: str = "") -> str:
        return ", ".join(f"{n} x {kind}{unit}" for kind, n in facts[name].items()) or "-"

    cells = [case, arch, str(facts["registers"]), str(facts["spills"]), str(facts["shared"]),
             f"{facts['occupancy']:.0%}", counts("tensor"),
             *(counts(kind, " bit") for kind in ("loads", "stores", "atomics"))]
    return "| " + " | ".join(cells) + " |"


def section(golden: dict[str, Any]) -> str:
    """Both parts with the words that they need."""
    assumed = "; ".join(f"{gpu.name} {gpu.flops * COMPUTE_SHARE / 1e12:.0f} TFLOP/s, "
                        f"{gpu.bandwidth * MEMORY_SHARE / 1e12:.2f} TB/s" for gpu in GPUS)
    versions = ", ".join(f"{version} ({operator})" for operator, version in sorted(golden["triton"].items()))
    return "\n".join([
        "## Predicted times", "",
        "**Predictions, not measurements; what an H200 took stands in [h200.md](h200.md).** Each is the "
        "forward's time + the backward's that follow from counted operations and bytes alone, the slower of the two "
        f"deciding, at {COMPUTE_SHARE:.0%} of the data sheet's matrix rate and {MEMORY_SHARE:.0%} of its memory rate "
        f"({assumed}). "
        "Launches, random access and everything else that a kernel does besides are left out, so a real kernel takes "
        "longer; benchmarks give the fraction of a GPU's measured ceilings.", "",
        predicted(), "", "## What the kernels became", "",
        f"Compiled by Triton {versions} without a GPU and read from the machine code by "
        "`python -m rodin_kernels.inspect`. Spills are bytes a thread (registers on AMD); loads, stores and atomics "
        "are instructions on global memory with their width; occupancy is the share of a multiprocessor's warps that "
        "fit at once.",
        "", inspected(golden)])


def write(page: Path = PAGE, golden: Path = GOLDEN) -> None:
    """Refresh the page's section.

    Raises:
        FileNotFoundError: nobody has inspected the kernels yet.
    """
    facts = json.loads(golden.read_text(encoding="utf-8"))
    page.parent.mkdir(parents=True, exist_ok=True)
    readme.replace(page, BEGIN, END, section(facts), "# The Triton kernels, seen without a GPU\n\n"
                   "Refreshed by `python -m benchmarks --write-docs`.\n\n", "")
