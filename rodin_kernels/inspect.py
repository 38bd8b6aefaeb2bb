"""What became of every Triton kernel: `python -m rodin_kernels.inspect [--arch sm_90] [--operator NAME] [--write]`.

Compiles all kernels under all shipped parameters for four architectures, without a GPU, prints registers, spills,
shared memory, tensor-core instructions, widths of memory accesses and the occupancy that follows, and compares them
with `inspection.json`. The exit status is 1 if anything got worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .aot import ARCHS, Case, Report, compile_case

#: The folders of the operators that may bring cases.
OPERATORS = ("rollout_conv", "triplane_sample", "volume_render")
#: What was seen when the kernels were last changed.
GOLDEN = Path(__file__).with_name("inspection.json")

#: Registers by which a kernel may grow before it counts as worse.
_SLACK = 8


def cases_of(operator: str) -> list[Case]:
    """The cases of one operator; none where its folder has no `cases.py`."""
    name = f"{__package__}.{operator}.cases"
    return list(import_module(name).cases()) if find_spec(name) is not None else []


def summary(report: Report) -> dict[str, Any]:
    """A report as JSON keeps it: everything but the assembly."""
    kinds = ("loads", "stores", "atomics")
    return {
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "occupancy": round(report.occupancy, 3),
        "tensor": dict(sorted(report.tensor.items())),
        **{kind: {str(width): n for width, n in sorted(getattr(report, kind).items())} for kind in kinds},
    }


def worse(before: Mapping[str, Any], now: Mapping[str, Any], *, same_compiler: bool = True) -> list[str]:
    """In words, what got worse from one summary to the next; nothing if all is as good.

    More spills, a tensor-core instruction that is gone and a narrower widest access always count; more than 8 further
    registers, more shared memory, a lower occupancy and more narrow accesses count under the same compiler.
    """
    found = []
    if now["spills"] > before["spills"]:
        found.append(f"spills {before['spills']} -> {now['spills']}")
    found += [f"no {name} any more" for name in before["tensor"] if name not in now["tensor"]]
    for kind in ("loads", "stores", "atomics"):
        widest, widest_now = (max(map(int, s[kind]), default=0) for s in (before, now))
        if widest_now < widest:
            found.append(f"{kind} of {widest} -> {widest_now} bits")
        elif same_compiler:
            narrow, narrow_now = (sum(n for k, n in s[kind].items() if int(k) < widest) for s in (before, now))
            if narrow_now > narrow:
                found.append(f"{kind} narrower than {widest} bits {narrow} -> {narrow_now}")
    if same_compiler:
        if now["registers"] > before["registers"] + _SLACK:
            found.append(f"registers {before['registers']} -> {now['registers']}")
        if now["shared"] > before["shared"]:
            found.append(f"shared memory {before['shared']} -> {now['shared']} bytes")
        if now["occupancy"] < before["occupancy"]:
            found.append(f"occupancy {before['occupancy']} -> {now['occupancy']}")
    return found


def golden() -> dict[str, Any]:
    """The golden file: by operator the version of Triton, then by operator, case and architecture what was seen."""
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8"))) if GOLDEN.is_file() else {"triton": {}, "kernels": {}}


def inspect(operators: Sequence[str], archs: Sequence[str]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Compile and read: (operator, case, architecture, summary) one after the other."""
    for operator in operators:
        for case in cases_of(operator):
            for arch in archs:
                if arch in case.archs:
                    yield operator, case.name, arch, summary(compile_case(case, arch))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the comparison; 0 if nothing got worse, else 1."""
    import triton

    parser = argparse.ArgumentParser(prog="python -m rodin_kernels.inspect", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=ARCHS, action="append", help="only this architecture (repeatable)")
    parser.add_argument("--operator", choices=OPERATORS, action="append", help="only this operator (repeatable)")
    parser.add_argument("--write", action="store_true", help="keep what is seen as the new golden file")
    options = parser.parse_args(arguments)
    before = golden()
    seen: dict[str, Any] = {}
    complaints = []
    print(f"{'case':52} {'arch':7} regs spill shared  occ  tensor / loads / stores / atomics (count x bits)")
    for operator, case, arch, now in inspect(options.operator or OPERATORS, options.arch or ARCHS):
        seen.setdefault(operator, {}).setdefault(case, {})[arch] = now
        print(_line(case, arch, now), flush=True)
        old = before["kernels"].get(operator, {}).get(case, {}).get(arch)
        if old:
            same = before["triton"].get(operator) == triton.__version__
            complaints += [f"{operator} {case} {arch}: {what}" for what in worse(old, now, same_compiler=same)]
    if options.write:
        # read again: compiling takes minutes, and another operator may have been written meanwhile
        _write(golden(), seen, triton.__version__, whole=not options.arch)
        print(f"wrote {GOLDEN.name}")
    for text in complaints:
        print("worse:", text)
    return 1 if complaints and not options.write else 0


def _line(case: str, arch: str, now: Mapping[str, Any]) -> str:
    def counts(found: Mapping[str, int]) -> str:
        return " ".join(f"{n}x{name}" for name, n in found.items()) or "-"

    parts = " / ".join(counts(now[kind]) for kind in ("tensor", "loads", "stores", "atomics"))
    numbers = f"{now['registers']:4} {now['spills']:5} {now['shared']:6} {now['occupancy']:4.2f}"
    return f"{case:52} {arch:7} {numbers}  {parts}"


def _write(before: Mapping[str, Any], seen: Mapping[str, Any], version: str, *, whole: bool) -> None:
    """Merge what was seen into the golden file; an operator that was seen on every architecture is replaced."""
    kernels, versions = dict(before["kernels"]), {**before["triton"], **dict.fromkeys(seen, version)}
    for operator, found in seen.items():
        merged = {} if whole else dict(kernels.get(operator, {}))
        for case, by_arch in found.items():
            merged[case] = {**merged.get(case, {}), **by_arch}
        kernels[operator] = merged
    lines = [f'{{"triton": {json.dumps(versions)},', '"kernels": {']
    for index, (operator, found) in enumerate(sorted(kernels.items())):
        lines.append(f"{json.dumps(operator)}: {{")
        rows = [f"{json.dumps(case)}: {{\n" + ",\n".join(
            f"  {json.dumps(arch)}: {json.dumps(now)}" for arch, now in by_arch.items()) + "}"
            for case, by_arch in found.items()]  # fmt: skip
        lines.append(",\n".join(rows) + ("}," if index < len(kernels) - 1 else "}"))
    GOLDEN.write_text("\n".join([*lines, "}}"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
