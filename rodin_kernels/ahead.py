"""Candidates of the tuner, compiled and tried by many processes before one times them on a quiet machine.

What they compile lies in Triton's cache on disk afterwards. A candidate that breaks its process is out, and costs those
that wait beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from . import configs
from .configs import Config, Question

_job: tuple[int, Any] = (-1, None)


class Candidate(NamedTuple):
    """Parameters of one kernel of the job with a number."""

    job: int
    operator: str
    kernel: str
    config: tuple[tuple[str, int | str], ...]


def neighbours(question: Question) -> list[Config]:
    """The default with one parameter moved by one, up and down."""
    default, found = dict(question.default), []
    for name, values in question.space:
        ordered = list(values) if isinstance(default[name], str) else sorted(values, key=int)
        place = ordered.index(default[name]) if default[name] in ordered else -1
        near = [ordered[i] for i in (place - 1, place + 1) if place >= 0 and 0 <= i < len(ordered)]
        found += [{**default, name: value} for value in near]
    return found


def candidate(job: int, question: Question, config: Config) -> Candidate:
    """The candidate of a config, which can be sent to other processes."""
    return Candidate(job, question.operator, question.kernel, tuple(sorted(config.items())))


class Pool:
    """`count` processes that try candidates of the jobs that `make(number)` returns, a function of a module."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self.count, self.make = count, make
        self._pool: ProcessPoolExecutor | None = None

    def usable(self, candidates: Sequence[Candidate], end: float) -> set[Candidate]:
        """Those that ran until the time `end`; whoever waits then is given up."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, get_context("spawn"))
        futures: dict[Future[bool], Candidate] = {}
        found: set[Candidate] = set()
        try:
            futures = {self._pool.submit(_tried, self.make, each): each for each in dict.fromkeys(candidates)}
            wait(futures, timeout=max(end - time.monotonic(), 0.0))
        except BrokenProcessPool:
            self._pool = None
        for future, each in futures.items():
            if not future.done():
                future.cancel()
            elif not future.cancelled() and future.exception() is None and future.result():
                found.add(each)
            elif not future.cancelled() and isinstance(future.exception(), BrokenProcessPool):
                self._pool = None
        return found

    def close(self) -> None:
        """End the processes, whatever they do."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            self._pool = None


def _tried(make: Callable[[int], Any], one: Candidate) -> bool:
    """Run a job's step under a candidate; whether it works. A broken GPU context ends the process."""
    global _job
    if _job[0] != one.job:
        _job = (-1, None)
        _job = (one.job, make(one.job))
    try:
        with configs.forced(one.operator, one.kernel, dict(one.config)):
            _job[1].step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return True
    except Exception:  # Triton tells what does not fit by many kinds of errors
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(1)
        return False
