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

from . import ceilings, machine, plots, report
from .case import Case
from .clock import Clock
from .measure import measure

#: Where cases are defined, in the order in which they run: what has targets first.
MODULES = ("convolution", "sampling", "avatar", "rendering", "block", "generation")
#: Seconds that one case is timed for after its check, and that all may take, by level and kind of device.
CASE_SECONDS = {("smoke", "cpu"): 0.02, ("quick", "cpu"): 2.5, ("full", "cpu"): 20.0,
                ("smoke", "cuda"): 0.05, ("quick", "cuda"): 1.5, ("full", "cuda"): 5.0}
TOTAL_SECONDS = {"smoke": 120.0, "quick": 150.0, "full": 3600.0}
RESULTS = Path(__file__).parent / "results"


def run(level: str, clock: Clock, *, operators: Sequence[str] = (), seconds: float | None = None,
        folder: Path = RESULTS, arguments: Sequence[str] = (), say: Callable[[str], None] = print,
        modules: Sequence[str] = MODULES) -> report.Results:
    """All cases of a level, as `write` leaves them in `folder` after each of them.

    Args:
        operators: only these; empty for all. A run of some is written beside the whole ones, never over them.
        seconds: when to stop starting cases; None for the level's own.
        arguments: of the command, for the record.
    """
    begin = time.monotonic()
    limit = TOTAL_SECONDS[level] if seconds is None else seconds
    results: report.Results = {"schema": 1, "level": level, **machine.described(clock.device, list(arguments)),
                               "method": clock.method, "rows": [], "skipped": []}
    if operators:
        results["slug"] += "-some"
    say(f"{results['device']}: measuring ceilings")
    measured = ceilings.measured(clock, level)
    results["ceilings"] = measured.as_json()
    for case in _cases(level, clock, operators, modules, results["skipped"]):
        if isinstance(case, str):
            continue
        if time.monotonic() - begin > limit:
            results["skipped"].append(f"{case.key}: out of time")
            continue
        start = time.monotonic()
        try:
            rows = measure(case, clock, measured, CASE_SECONDS[level, clock.kind])
        except (RuntimeError, MemoryError) as error:  # the specification itself did not fit into memory, for one
            results["skipped"].append(f"{case.key}: {str(error).splitlines()[0][:200]}")
            continue
        finally:
            gc.collect()
        results["rows"] += rows
        results["seconds"] = round(time.monotonic() - begin, 1)
        say(f"{case.key} ({time.monotonic() - start:.0f} s): {_headline(rows)}")
        write(results, folder)
    write(results, folder)
    return results


def _cases(level: str, clock: Clock, operators: Sequence[str], modules: Sequence[str],
           skipped: list[str]) -> Iterator[Case | str]:
    """The cases of all modules; one whose imports or files are missing is told in `skipped`."""
    for name in modules:
        try:
            found = importlib.import_module(f"benchmarks.{name}").cases(level, clock.device)
        except (ImportError, FileNotFoundError) as error:
            skipped.append(f"{name}: {error}")
            yield name
            continue
        while found:
            case = found.pop(0)
            if not operators or case.operator in operators:
                yield case
            del case
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()


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
