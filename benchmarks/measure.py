"""Time and memory of a case: nothing red is timed; contenders take turns, so that a busy moment meets all of them."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .case import OURS, Call, Case, Contender, Tensors
from .ceilings import Ceilings
from .clock import Clock, saved_bytes
from .judge import Judge, compiled

#: Fewest repetitions, unless the time is used up after one.
LEAST = 3
Row = dict[str, Any]


class Job:
    """One contender with tensors of its own, ready to be run."""

    def __init__(self, case: Case, contender: Contender, call: Call, tensors: Tensors) -> None:
        prepared = contender.prepare(tensors)
        self.call, self.leaves = call, case.leaves
        self.plain = {name: t.detach() for name, t in prepared.items()}
        self.tracked = {name: t.detach().requires_grad_(name in case.leaves) for name, t in prepared.items()}
        self.result: Tensor | None = None
        self.cotangent: Tensor | None = None

    def forward(self) -> None:
        """Inference."""
        with torch.no_grad():
            self.call(self.plain)

    def training_forward(self) -> None:
        """The forward with everything kept for the backward."""
        self.result = self.call(self.tracked)

    def backward(self) -> None:
        """The backward of the last `training_forward`."""
        assert self.result is not None
        if self.cotangent is None:
            generator = torch.Generator(self.result.device).manual_seed(98)
            self.cotangent = torch.randn(self.result.shape, generator=generator, dtype=self.result.dtype,
                                         device=self.result.device)
        torch.autograd.grad(self.result, [self.tracked[name] for name in self.leaves], self.cotangent)
        self.result = None

    def both(self) -> None:
        """A training step."""
        self.training_forward()
        self.backward()

    def once(self, clock: Clock) -> dict[str, float]:
        """Seconds of every pass, each run once."""
        times = {"forward": clock.seconds(self.forward)[0]}
        if self.leaves:
            first, second = clock.seconds(self.training_forward, self.backward)
            times |= {"backward": second, "both": first + second}
        return times


def measure(case: Case, clock: Clock, ceilings: Ceilings, seconds: float) -> list[Row]:
    """One row a contender, ours first; timed for about `seconds` after the check. Ours red: no row has a number."""
    tensors = case.make(clock.device)
    judge = Judge(case, tensors)
    rows, jobs = [], {}
    for contender in case.contenders:
        row, job = _admitted(case, contender, judge, tensors)
        rows.append(row)
        if job is not None:
            jobs[contender.name] = job
        elif contender.name == OURS:
            return rows
    del judge
    samples = _timed(jobs, clock, seconds, case.repeats)
    for row in rows:
        if row["contender"] in samples:
            _fill(row, case, samples, ceilings)
            if case.memory:
                row |= _memory(jobs[row["contender"]], clock)
    if case.graph:
        rows += _graphed(case, jobs, clock, ceilings)
    rows[0]["targets"] = _targets(case, rows, tensors, clock)
    return rows


def warm(case: Case, clock: Clock) -> list[str]:
    """Run once what is compiled, ours and rivals under torch.compile; returns in words what failed."""
    tensors, failures = case.make(clock.device), []
    for contender in case.contenders:
        if not (contender.compiled or contender.name.startswith(OURS)):
            continue
        try:
            job = Job(case, contender, compiled(contender), tensors)
            job.forward()
            if case.leaves:
                job.both()
        except Exception as error:  # as in `_admitted`
            failures.append(f"{contender.name} {_one_line(error)}")
            _forget()
    return failures


def _admitted(case: Case, contender: Contender, judge: Judge, tensors: Tensors) -> tuple[Row, Job | None]:
    """The contender's row and, if it passed the judge, its job."""
    row: Row = {"operator": case.operator, "case": case.name, "size": case.size, "size_name": case.size_name,
                "contender": contender.name}
    try:
        call = compiled(contender)
        verdict = judge.verdict(contender, call)
    except Exception as error:  # a rival may fail in any way, out of memory above all; ours then counts as red
        row |= {"ok": False, "reason": _one_line(error)}
        _forget()
        return row, None
    row |= {"ok": verdict.reason is None, "error": verdict.error}
    if verdict.psnr is not None:
        row["psnr"] = round(verdict.psnr, 1)
    if verdict.reason is not None:
        row["reason"] = verdict.reason
        return row, None
    return row, Job(case, contender, call, tensors)


def _one_line(error: Exception) -> str:
    last = traceback.format_exception_only(error)[-1].strip().splitlines() or [type(error).__name__]
    return f"failed: {last[0][:200]}"


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _timed(jobs: dict[str, Job], clock: Clock, seconds: float, most: int) -> dict[str, list[dict[str, float]]]:
    """Repeat: every contender once, in an order that moves on by one each time, for `seconds`.

    A first turn only warms up: a GPU's rivals are compiled and tuned in it, for many seconds. On a CPU, where nothing
    is, it counts if it alone took so long that hardly another would fit.
    """
    names = list(jobs)

    def turn(number: int) -> dict[str, dict[str, float]]:
        order = [names[(number + i) % len(names)] for i in range(len(names))]
        return {name: jobs[name].once(clock) for name in order}

    gc.disable()
    try:
        begin = time.monotonic()
        turns = [turn(0)]
        if clock.kind == "cuda" or time.monotonic() < begin + 2 * seconds / LEAST:
            turns, end = [], time.monotonic() + seconds
            while len(turns) < most and (time.monotonic() < end
                                         or len(turns) < LEAST and time.monotonic() < end + seconds):
                turns.append(turn(len(turns) + 1))
            turns = turns or [turn(1)]
    finally:
        gc.enable()
    return {name: [times[name] for times in turns] for name in names}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, by nearest rank."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"median": statistics.median(ordered), "low": ordered[round(last / 4)], "high": ordered[round(3 * last / 4)]}


def _fill(row: Row, case: Case, samples: dict[str, list[dict[str, float]]], ceilings: Ceilings) -> None:
    """Times, how many times ours they are (pairwise), and which fraction of the floor is reached."""
    mine, ours = samples[row["contender"]], samples[OURS]
    row["runs"] = len(mine)
    for name in case.passes:
        row[name] = spread([times[name] for times in mine])
        ratios = [a[name] / b[name] for a, b in zip(mine, ours, strict=True)]
        row[name] |= {"times_ours": spread(ratios)}
        floor = ceilings.floor(case.work[name], case.arithmetic or case.dtype)
        if floor:
            row[name] |= {"floor": floor, "of_floor": floor / row[name]["median"]}
        row[name] |= {"flops": case.work[name].flops, "bytes": case.work[name].moved}


def _memory(job: Job, clock: Clock) -> Row:
    """Peak bytes of inference and of a training step, and bytes kept in between."""
    found: Row = {"peak": {"forward": clock.peak(job.forward)}}
    if job.leaves:
        found["peak"]["both"] = clock.peak(job.both)
        found["saved"] = saved_bytes(lambda: job.call(job.tracked))
    return found


def _graphed(case: Case, jobs: dict[str, Job], clock: Clock, ceilings: Ceilings) -> list[Row]:
    """The same contenders replayed as CUDA graphs, which cost no launches."""
    samples: dict[str, list[dict[str, float]]] = {}
    for name, job in jobs.items():
        replays = {what: clock.graphed(getattr(job, what)) for what in case.passes if what != "backward"}
        ready = {what: replay for what, replay in replays.items() if replay is not None}
        if len(ready) == len(replays) and replays:
            samples[name] = [{what: clock.seconds(r)[0] for what, r in ready.items()} for _ in range(20)]
    if OURS not in samples:
        return []
    rows = []
    for name, times in samples.items():
        row: Row = {"operator": case.operator, "case": f"{case.name}, CUDA graph", "size": case.size,
                    "size_name": case.size_name, "contender": name, "ok": True, "runs": len(times)}
        for what in times[0]:
            row[what] = spread([t[what] for t in times])
            row[what]["times_ours"] = spread([a[what] / b[what] for a, b in zip(times, samples[OURS], strict=True)])
            floor = ceilings.floor(case.work[what], case.arithmetic or case.dtype)
            row[what] |= {"floor": floor, "of_floor": floor / row[what]["median"] if floor else 0.0}
        rows.append(row)
    return rows


def _targets(case: Case, rows: list[Row], tensors: Tensors, clock: Clock) -> list[Row]:
    """What was expected on this kind of device, what was found, and for a shortfall its cause."""
    named = {row["contender"]: row for row in rows if row["case"] == case.name}
    graph = {row["contender"]: row for row in rows if row["case"] != case.name}
    found = []
    for target in case.targets:
        if target.device != clock.kind:
            continue
        mine, rival = named[OURS], named.get(target.rival)
        if target.rival and (rival is None or "forward" not in rival):
            found.append({"what": target.what, "limit": target.limit, "rival": target.rival, "met": None,
                          "cause": "the rival has no number"})
            continue
        if target.what in ("memory", "saved"):
            assert rival is not None
            pick = (lambda r: r["peak"]["both"]) if target.what == "memory" else (lambda r: r["saved"])
            value = pick(mine) / max(pick(rival), 1)
            met = value <= target.limit
        elif target.what == "peak":
            value = mine["peak"]["forward"] / 2**20
            met = value <= target.limit
        elif target.what == "floor":
            best = graph.get(OURS, mine)
            value = 1 / best["forward"]["of_floor"] if best["forward"].get("of_floor") else float("inf")
            met = value <= target.limit
        elif target.rival:
            assert rival is not None
            value = rival[target.what]["times_ours"]["median"]
            met = value >= target.limit
        else:
            value = mine[target.what]["median"] * 1e3
            met = value <= target.limit
        entry = {"what": target.what, "limit": target.limit, "rival": target.rival, "found": value, "met": met}
        if not met:
            entry["cause"] = target.cause or _cause(case, mine, tensors, clock)
        found.append(entry)
    return found


def _cause(case: Case, mine: Row, tensors: Tensors, clock: Clock) -> str:
    """How much of our time is spent on what no implementation of this kind can leave out, measured now."""
    if case.bound is None:
        return "no part of it was measured alone"
    job = Job(case, case.bound, case.bound.call, tensors)
    job.leaves = ()
    job.forward()
    alone = statistics.median(job.once(clock)["forward"] for _ in range(LEAST))
    share = alone / mine["forward"]["median"]
    return f"{case.bound.name} takes {alone * 1e3:.1f} ms, {share:.0%} of our forward"
