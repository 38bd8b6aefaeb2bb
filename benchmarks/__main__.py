"""The command: `python -m benchmarks`, `--quick` for under three minutes, `--help` for the rest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import report
from .clock import CpuClock, GpuClock
from .run import RESULTS, TOTAL_SECONDS, run, warmed
from .supervise import CHILD, supervised


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    p.add_argument("--quick", action="store_true", help="fewer sizes, under three minutes on two cores")
    p.add_argument("--smoke", action="store_true", help="tiny sizes: whether everything works, no figures to keep")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    p.add_argument("--operator", action="append", default=[], choices=report.OPERATORS, help="only this; repeatable")
    p.add_argument("--seconds", type=float, help="start no case after so many seconds")
    p.add_argument("--resume", action="store_true", help="go on where a process stopped that wrote to the same folder")
    p.add_argument("--warm", metavar="I/N", nargs="?", const="0/1",
                   help="on a GPU: only compile, compare and time nothing; every N-th case from the I-th on, so that N "
                        "processes can share the work")
    p.add_argument("--threads", type=int, help="of the CPU; default: PyTorch's choice")
    p.add_argument("--output", metavar="DIR", type=Path, default=RESULTS, help="default: benchmarks/results")
    p.add_argument("--write-readme", action="store_true", help="refresh the README's section from kept results; no run")
    p.add_argument("--write-docs", action="store_true", help="refresh docs/kernels.md from the inspection; no run")
    p.add_argument("--loan", metavar="MINUTES", type=float,
                   help="tests, benchmarks and tuning on a GPU in so many minutes, partial results kept")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is well, 1 if something of ours was wrong or failed, 2 if the command cannot run here."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    if options.write_readme or options.write_docs:
        return _write(options)
    wants_gpu = options.device == "cuda" or options.loan is not None
    if wants_gpu and not torch.cuda.is_available():
        print("benchmarks: PyTorch sees no GPU on this machine", file=sys.stderr)
        return 2
    if options.loan is not None:
        from .loan import spend

        summary = spend(options.loan, options.output)
        return 0 if all(s["ended"] == "exit status 0" for s in summary["stages"].values()) else 1
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = torch.cuda.is_available() and options.device != "cpu"
    level = "smoke" if options.smoke else "quick" if options.quick else "full"
    if on_gpu and not options.warm and CHILD not in os.environ:
        return supervised(given, options.seconds or TOTAL_SECONDS[level], options.output)
    clock = GpuClock() if on_gpu else CpuClock()
    if options.warm:
        first, count = map(int, options.warm.split("/"))
        warmed(level, clock, operators=options.operator, seconds=options.seconds, shard=(first, count),
               say=lambda line: print(line, flush=True))
        return 0
    results = run(level, clock, operators=options.operator, seconds=options.seconds, folder=options.output,
                  arguments=given, say=lambda line: print(line, flush=True), resume=options.resume)
    print(f"\n{report.markdown(results)}")
    print(f"written: {options.output / results['slug']}.json, .md, -time.svg, -memory.svg, -roofline.svg")
    for line in report.red(results):
        print(f"RED: {line}", file=sys.stderr)
    return 1 if report.red(results) else 0


def _write(options: argparse.Namespace) -> int:
    from . import predictions, readme

    try:
        if options.write_readme:
            readme.write(folder=options.output)
        if options.write_docs:
            predictions.write()
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
