"""How far a training is, by steps and by the clock."""

import math

import pytest

from rodin_model.train import pace
from rodin_model.train.pace import Pace


def test_without_a_limit_only_the_steps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    run = Pace(4)
    clock[0] = 1e9
    assert [run.progress(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [run.done(step) for step in range(6)] == [False] * 4 + [True] * 2


def test_with_a_limit_progress_is_whichever_is_further(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    run = Pace(100, minutes=2.0)
    assert run.progress(0) == 0.0 and run.progress(50) == 0.5
    clock[0] = 130.0
    assert run.progress(10) == 0.25 and run.progress(50) == 0.5 and not run.done(10)
    clock[0] = 220.0
    assert run.progress(10) == 1.0 and run.done(10)


@pytest.mark.parametrize(("steps", "minutes"), [(0, None), (3, 0.0), (3, -1.0), (3, math.nan), (3, math.inf)])
def test_senseless_bounds_are_refused(steps: int, minutes: float | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        Pace(steps, minutes)


def test_the_rate_rises_and_ends_at_zero_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    for step in range(10):
        expected = 2.0 * min(1.0, (step + 1) / 4) * 0.5 * (1.0 + math.cos(math.pi * (step / 10)))
        assert pace.paced_rate(Pace(10), step, 2.0, 4) == expected
    run = Pace(1000, minutes=1.0)
    assert pace.paced_rate(run, 0, 2.0, 4) == 0.5
    clock[0] = 30.0
    assert pace.paced_rate(run, 9, 2.0, 4) == pytest.approx(1.0)
    clock[0] = 61.0
    assert pace.paced_rate(run, 10, 2.0, 4) == 0.0
