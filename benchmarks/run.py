"""Runs cases one after another, writes what is known after each, and never longer than it may."""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import ceilings, machine, plots, report, supervise
from .case import Case
from .clock import Clock
from .measure import measure, warm

#: Where cases are defined, in the order in which they run: what has targets first.
MODULES = ("convolution", "sampling", "avatar", "rendering", "block", "generation")
#: Seconds that one case is timed for after its check, and that all may take, by level and kind of device.
CASE_SECONDS = {("smoke", "cpu"): 0.02, ("quick", "cpu"): 2.5, ("full", "cpu"): 20.0,
                ("smoke", "cuda"): 0.05, ("quick", "cuda"): 1.5, ("full", "cuda"): 5.0}
TOTAL_SECONDS = {"smoke": 120.0, "quick": 150.0, "full": 3600.0}
RESULTS = Path(__file__).parent / "results"


def run(level: str, clock: Clock, *, operators: Sequence[str] = (), seconds: float | None = None,
        folder: Path = RESULTS, arguments: Sequence[str] = (), say: Callable[[str], None] = print,
        modules: Sequence[str] = MODULES, resume: bool = False) -> report.Results:
    """All cases of a level, as `write` leaves them in `folder` after each of them.

    Args:
        operators: only these; empty for all. A run of some is written beside the whole ones, never over them.
        seconds: when to stop starting cases; None for the level's own.
        arguments: of the command, for the record.
        resume: go on where a process stopped that wrote to `folder`; the case that stopped it is not run again.

    Raises:
        SystemExit: `supervise.BROKEN`, after writing: the GPU answers no more, and what is left needs another process.
    """
    begin = time.monotonic()
    limit = TOTAL_SECONDS[level] if seconds is None else seconds
    results: report.Results = {"schema": 1, "level": level, **machine.described(clock.device, list(arguments)),
                               "method": clock.method, "rows": [], "skipped": [],
                               "done": []}
    if operators:
        results["slug"] += "-some"
    if resume:
        _resume(results, folder)
    if "ceilings" not in results:
        say(f"{results['device']}: measuring ceilings")
        results["ceilings"] = ceilings.measured(clock, level).as_json()
    measured, before = ceilings.Ceilings(**results["ceilings"]), results.get("seconds", 0.0)
    for case in _cases(level, clock, operators, modules, results["skipped"]):
        if isinstance(case, str) or case.key in results["done"]:
            continue
        if time.monotonic() - begin > limit:
            results["skipped"].append(f"{case.key}: out of time")
            continue
        start, rows = time.monotonic(), []
        supervise.note(folder, case.key)
        try:
            rows = measure(case, clock, measured, CASE_SECONDS[level, clock.kind])
        except (RuntimeError, MemoryError) as error:  # the specification itself did not fit into memory, for one
            results["skipped"].append(f"{case.key}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}")
            say(results["skipped"][-1])
        finally:
            gc.collect()
        supervise.note(folder, None)
        results["done"].append(case.key)
        results["rows"] += rows
        results["seconds"] = round(before + time.monotonic() - begin, 1)
        if rows:
            say(f"{case.key} ({time.monotonic() - start:.0f} s): {_headline(rows)}")
        write(results, folder)
        if not supervise.answers(clock.device):
            raise SystemExit(supervise.BROKEN)
    write(results, folder)
    return results


def _resume(results: report.Results, folder: Path) -> None:
    """Take over what another process of the same command left in `folder`."""
    path = folder / f"{results['slug']}.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        results |= {name: old[name] for name in ("rows", "skipped", "done", "ceilings", "seconds") if name in old}
    if (running := supervise.in_flight(folder)) is not None:
        results["skipped"].append(f"{running[0]}: ended its process, or hung")
        results["done"].append(running[0])
        supervise.note(folder, None)


def warmed(level: str, clock: Clock, *, operators: Sequence[str] = (), seconds: float | None = None,
           shard: tuple[int, int] = (0, 1), say: Callable[[str], None] = print,
           modules: Sequence[str] = MODULES) -> None:
    """Run what a level compiles, once, so that kernels lie in the caches on disk; nothing is compared or timed.

    shard: (i, n) takes every n-th case from the i-th on, for n processes beside each other.
    """
    begin, limit = time.monotonic(), TOTAL_SECONDS[level] if seconds is None else seconds
    if shard[0] == 0:
        ceilings.measured(clock, "smoke")
    for number, case in enumerate(_cases(level, clock, operators, modules, [])):
        if isinstance(case, str) or number % shard[1] != shard[0]:
            continue
        if time.monotonic() - begin > limit:
            say("out of time")
            break
        start = time.monotonic()
        for failure in warm(case, clock):
            say(f"{case.key}: {failure}")
        say(f"{case.key}: warm after {time.monotonic() - start:.0f} s")
        gc.collect()
        if not supervise.answers(clock.device):
            raise SystemExit(supervise.BROKEN)


def _cases(level: str, clock: Clock, operators: Sequence[str], modules: Sequence[str],
           skipped: list[str]) -> Iterator[Case | str]:
    """The cases of all modules; one whose imports or files are missing is told in `skipped`."""
    waiting: list[list[Case]] = []
    for name in modules:
        try:
            found = importlib.import_module(f"benchmarks.{name}").cases(level, clock.device)
        except Exception as error:  # packages or files may be missing, and much else may fail on a new device
            skipped.append(f"{name}: {type(error).__name__}: {error}")
            yield name
            continue
        waiting.append([case for case in found if not operators or case.operator in operators])
        if clock.kind == "cuda":
            continue
        yield from _emptied(waiting.pop())
    # time on a GPU is short: the first of every module, then the second of every one
    while any(waiting):
        for cases in filter(None, waiting):
            yield from _emptied([cases.pop(0)])


def _emptied(cases: list[Case]) -> Iterator[Case]:
    """The cases one after another, none of them held any longer."""
    while cases:
        case = cases.pop(0)
        yield case
        del case
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _headline(rows: list[dict[str, Any]]) -> str:
    """What the progress shows: our time, the ratios of the rivals; of pictures and inference decibels and memory."""
    ours = rows[0]
    if "forward" not in ours:
        return f"NO NUMBER: {ours['reason']}"
    words = []
    for row in rows[1:]:
        if "forward" in row and row["case"] == ours["case"]:
            name = "both" if "both" in row else "forward"
            words.append(f"{row['contender']} {row[name]['times_ours']['median']:.2f}x")
    name = "both" if "both" in ours else "forward"
    if "psnr" in ours:
        words.append(f"{ours['psnr']:.0f} dB")
    if "both" not in ours and "peak" in ours:
        words.append(f"{report.size(ours['peak']['forward'])} at once")
    return f"{report.seconds(ours[name]['median'])}; {', '.join(words)}"


def write(results: report.Results, folder: Path = RESULTS) -> list[Path]:
    """`<device>.json`, the table `<device>.md` and three plots; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    slug, device = results["slug"], results["device"]
    timed = [row for row in results["rows"] if "forward" in row]
    roofs = [panel for panel in (plots.roofline(results),) if panel.series]
    texts = {
        f"{slug}.json": json.dumps(rounded(results), indent=1, ensure_ascii=False) + "\n",
        f"{slug}.md": report.markdown(results),
        f"{slug}-time.svg": plots.drawn(f"{device}: time", plots.time_panels(timed)),
        f"{slug}-memory.svg": plots.drawn(f"{device}: memory", plots.memory_panels(timed)),
        f"{slug}-roofline.svg": plots.drawn(f"{device}: roofline", roofs),
    }
    paths = []
    for name, text in texts.items():
        paths.append(folder / name)
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def rounded(value: Any) -> Any:
    """Numbers with four digits, so that files stay small and honest."""
    if isinstance(value, float):
        # JSON has no word for what is not a number
        return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
