"""Benchmarks in a process of their own, started again after one that crashed or hung: a crash costs its case.

An illegal access leaves a CUDA context in which nothing works any more, so whoever meets one ends with `BROKEN`.
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

import torch

from .machine import ROOT

#: Exit status of a process whose GPU answers no more.
BROKEN = 3
#: Seconds after which a case counts as hung, and what a process does before one.
LONGEST_CASE, LONGEST_START = 75.0, 120.0
#: Set for the process that runs the cases.
CHILD = "RODIN_BENCHMARKS_CHILD"


def answers(device: torch.device) -> bool:
    """Whether the device still computes."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return bool(torch.ones(4, device=device).sum().item() == 4)
    except RuntimeError:
        return False


def supervised(arguments: Sequence[str], seconds: float, folder: Path) -> int:
    """`python -m benchmarks` with these arguments, again and again until all cases had their turn or time is up.

    Returns:
        The exit status of the last process; 1 if time was up.
    """
    # whoever ends this process ends the one that it watches
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return _all(arguments, time.monotonic() + seconds, folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def _all(arguments: Sequence[str], end: float, folder: Path) -> int:
    resume = False
    if "--resume" not in arguments:
        note(folder, None)
    if "--seconds" in arguments:
        place = list(arguments).index("--seconds")
        arguments = [*arguments[:place], *arguments[place + 2:]]
    while (left := end - time.monotonic()) > (15.0 if resume else 0.0):
        command = [sys.executable, "-m", "benchmarks", *arguments, "--seconds", f"{left:.0f}"]
        status = _watched([*command, "--resume"] if resume else command, folder)
        if status in (0, 1, 2):
            return status
        print(f"the process ended with {status}; the rest goes on in another", flush=True)
        resume = True
    return 1


def _watched(command: Sequence[str], folder: Path) -> int:
    """One process, ended when a case takes too long."""
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, CHILD: "1"}, start_new_session=True)
    seen = time.monotonic()
    try:
        while (status := process.poll()) is None:
            time.sleep(0.2)
            running, now = in_flight(folder), time.monotonic()
            seen = seen if running is None else now
            if now - seen > LONGEST_START or (running is not None and now - running[1] > LONGEST_CASE):
                os.killpg(process.pid, signal.SIGKILL)
        return status
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def in_flight(folder: Path) -> tuple[str, float] | None:
    """The case that a process has begun and not ended, and when by this machine's monotonic clock."""
    try:
        found = json.loads((folder / "running.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found["case"], found["since"]


def note(folder: Path, case: str | None) -> None:
    """Write down which case begins; None: none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "running.json"
    if case is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps({"case": case, "since": time.monotonic()}), encoding="utf-8")
