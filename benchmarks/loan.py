"""A short loan of a GPU, spent well: tests, then benchmarks, then tuning, each bounded, whatever is known kept.

Tests come first because a number of a wrong kernel is worth nothing, tuning last because it can wait. Every stage is a
process of its own, so that one that hangs or crashes costs its share of the time and no more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .machine import ROOT

#: Stages with their share of the loan; a stage that ends early leaves its rest to the next.
STAGES = (("doctor", 0.05), ("tests", 0.35), ("benchmarks", 0.4), ("tuning", 0.2))
#: Characters of a stage's output that are kept, from its end.
KEPT = 200_000
#: Seconds that are kept back to stop processes and write the summary.
MARGIN = 10.0


def commands(folder: Path, seconds: dict[str, float]) -> dict[str, list[str]]:
    """What each stage runs; stages bound themselves a little before they would be stopped."""
    python = sys.executable
    inside = {name: max(value - 15, 0.6 * value) for name, value in seconds.items()}
    return {
        "doctor": [python, "-m", "rodin_kernels.doctor"],
        "tests": [python, "-m", "pytest", "-m", "gpu", "-q", "--maxfail=20", "-p", "no:cacheprovider", "tests"],
        "benchmarks": [python, "-m", "benchmarks", "--device", "cuda", "--quick", "--seconds",
                       f"{inside['benchmarks']:.0f}", "--output", str(folder)],
        "tuning": [python, "-m", "rodin_kernels.tune", "--seconds", f"{inside['tuning']:.0f}", "--output",
                   str(folder / "tuned.json")],
    }


def spend(minutes: float, folder: Path, stages: Sequence[tuple[str, float]] = STAGES,
          run: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """Run the stages in order within `minutes`; returns, and writes to `loan.json` after each, how they ended.

    Args:
        minutes: all that may be spent.
        folder: takes one log a stage (its end, at most 200 kB), results, plots, tuned launches and the summary.
        run: other commands for the stages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    end = time.monotonic() + 60 * minutes - MARGIN
    summary: dict[str, Any] = {"minutes": minutes, "stages": {}}
    for index, (name, share) in enumerate(stages):
        left = end - time.monotonic()
        seconds = left * share / sum(s for _, s in stages[index:])
        if seconds < 1:
            summary["stages"][name] = {"ended": "out of time"}
        else:
            wanted = (run or commands(folder, dict.fromkeys((n for n, _ in stages), seconds)))[name]
            summary["stages"][name] = _stage(wanted, seconds, folder / f"{name}.log")
        print(f"{name}: {summary['stages'][name]}", flush=True)
        (folder / "loan.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _stage(command: Sequence[str], seconds: float, log: Path) -> dict[str, Any]:
    """One process and all that it starts, ended after `seconds`; the end of its output is kept."""
    begin = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, "PYTHONUNBUFFERED": "1"})
        try:
            ended = f"exit status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            ended = "stopped: its share of the time was used up"
            _stop(process)
    text = log.read_bytes()
    if len(text) > KEPT:
        log.write_bytes(b"(beginning left out)\n" + text[-KEPT:])
    return {"ended": ended, "seconds": round(time.monotonic() - begin, 1)}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process and its children to end, so that they keep what they have, then insist."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
