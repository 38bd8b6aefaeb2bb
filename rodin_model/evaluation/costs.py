"""What an avatar costs: seconds of every stage on this machine, and the most memory that the process has held.

Measured in a process of its own, so that nothing that the evaluation holds is counted.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rodin_model.evaluation.sampler import Row, Section
from rodin_model.evaluation.words import SENTENCE
from rodin_model.matching import closer
from rodin_model.pipeline import RodinPipeline
from rodin_model.triplane import UNSEEN

#: Pictures of a turntable, and their pixels, as the command makes them.
VIEWS, SIZE = 24, 256
#: The stage that only portraits have: their avatar is brought closer to them.
PORTRAIT = "portrait"


class Clock:
    """Seconds by stage, and the peak of memory when each had ended, in GB."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        began = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began
        self.memory[name] = peak_memory(self.device)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """The most that this process, or a GPU for it, has held so far, in GB; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure(model: str | None, device: str, views: int = VIEWS, size: int = SIZE) -> dict[str, Any]:
    """One avatar of a sentence, by stages: load, words to z, coarse planes, fine planes, the back of the head, a
    picture, a turntable; and `PORTRAIT`, what a portrait takes beside that."""
    clock = Clock(device)
    with clock.stage("load"):
        pipe = RodinPipeline.from_pretrained(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    for name, method in (("prior", "_latents"), ("base", "_coarse"), ("upsampler", "_fine"),
                         ("clearing", "_finished")):
        setattr(pipe, method, _timed(getattr(pipe, method), clock, name))
    avatar = pipe(SENTENCE, generator=torch.Generator().manual_seed(0)).avatars[0]
    with clock.stage("picture"):
        front = avatar.turntable(1, size)[0]
    with clock.stage("turntable"):
        avatar.turntable(views, size, stop_below=UNSEEN)
    with clock.stage(PORTRAIT):
        closer(avatar, front.permute(2, 0, 1), always=True, bar={"disable": True})
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}"
    return {"machine": machine, "seconds": clock.seconds, "memory_gb": clock.memory}


def _timed(own: Callable[..., Any], clock: Clock, name: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        with clock.stage(name):
            return own(*arguments, **named)
    return timed


def evaluate_costs(model: str | None, device: str, views: int = VIEWS) -> Section:
    """`measure` in a new process, as a section of the report. ValueError with the process's words if it fails."""
    code = ("import json, sys; from rodin_model.evaluation.costs import measure; "
            "print(json.dumps(measure(*json.loads(sys.argv[1]))))")
    command = [sys.executable, "-c", code, json.dumps([model, device, views])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the costs could not be measured: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds, memory = found["seconds"], found["memory_gb"]
    total, peak = sum(seconds.values()) - seconds[PORTRAIT], max(memory.values())
    lines = [f"Costs of one avatar ({found['machine']})",
             *(f"  {name:12s} {taken:7.2f} s   {memory[name]:5.2f} GB" for name, taken in seconds.items()),
             f"  {'all but that':12s} {total:7.2f} s   {peak:5.2f} GB"]
    rows = [*(Row(f"seconds: {name}", 1, taken, unit="{:.2f} s") for name, taken in seconds.items()
              if name != PORTRAIT),
            Row("seconds: text to turntable, all of these", 1, total, unit="{:.1f} s"),
            Row("seconds: closer to a portrait", 1, seconds[PORTRAIT], unit="{:.2f} s"),
            *(Row(f"peak memory up to here: {name}", 1, held, unit="{:.2f} GB") for name, held in memory.items())]
    return Section("\n".join(lines), {**found, "total": total}, rows=rows)
