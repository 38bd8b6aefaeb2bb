"""How pytest runs the benchmarks: `pytest benchmarks` (quick sizes), `--level full`, `--level smoke`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.case import LEVELS, Case, Contender
from benchmarks.clock import Clock, clocks
from benchmarks.judge import Judge, compiled
from benchmarks.measure import Job

_current: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--level` chooses the sizes."""
    parser.addoption("--level", choices=LEVELS, default="quick", help="sizes of the benchmarks; default: quick")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, contender and pass of the module that the file names."""
    if "contest" not in metafunc.fixturenames:
        return
    clock = clocks()[0]
    found = metafunc.module.CASES.cases(metafunc.config.getoption("--level"), clock.device)
    values = [(case, contender, what) for case in found for contender in case.contenders for what in case.passes]
    names = [f"{case.name} | {contender.name} | {what}" for case, contender, what in values]
    metafunc.parametrize("contest", values, ids=names, indirect=True)


def _judged(case: Case, clock: Clock) -> tuple[Judge, dict[str, torch.Tensor]]:
    """The judge and the tensors of a case; those of the last one are kept, since tests come case by case."""
    if _current.get("key") != case.key:
        _current.clear()
        tensors = case.make(clock.device)
        _current.update(key=case.key, judge=Judge(case, tensors), tensors=tensors)
    return _current["judge"], _current["tensors"]


@pytest.fixture
def contest(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Checks the contender, then hands it to pytest-benchmark; red means no number."""
    case, contender, what = request.param
    clock = clocks()[0]
    return lambda benchmark: _contest(case, contender, what, clock, benchmark)


def _contest(case: Case, contender: Contender, what: str, clock: Clock, benchmark: Any) -> None:
    judge, tensors = _judged(case, clock)
    call = compiled(contender)
    verdict = judge.verdict(contender, call)
    if verdict.reason is not None:
        pytest.fail(verdict.reason)
    job = Job(case, contender, call, tensors)
    run = getattr(job, what)

    def synchronised() -> None:
        run()
        if clock.kind == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.key} ({what})"
    benchmark.extra_info.update(error=verdict.error, size=case.size, size_name=case.size_name)
    setup = job.training_forward if what == "backward" else None
    if case.memory and what != "backward":
        benchmark.extra_info["peak_bytes"] = clock.peak(run)
    benchmark.pedantic(synchronised, setup=setup, rounds=min(5, case.repeats), warmup_rounds=0 if setup else 1)
