"""The plan that trains a whole model: what waits for what, what is left out, what goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from rodin_model.train import cascade
from rodin_model.train.cascade import SHARES, Plan, Stage, run

PLAN = Plan(Path("out"), Path("start"), "cpu", 6.0, 32, 64, 64, 2, "fp32")


def test_every_stage_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for stage in PLAN.stages():
        assert set(stage.after) <= seen, stage.name
        seen.add(stage.name)
    assert set(SHARES) < seen and {"draft", "model"} < seen


def test_the_longest_way_takes_the_minutes_that_were_asked_for() -> None:
    ends: dict[str, float] = {}
    for stage in PLAN.stages():
        ends[stage.name] = SHARES.get(stage.name, 0.0) + max([0.0, *(ends[name] for name in stage.after)])
    assert max(ends.values()) == pytest.approx(1.0, abs=0.1)


def test_every_stage_is_a_command_that_knows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    for stage in PLAN.stages():
        module = importlib.import_module(stage.module)
        with pytest.raises(SystemExit) as stopped:
            module.main([*stage.arguments, "--help"])
        assert stopped.value.code == 0, stage.name
        text = capsys.readouterr().out
        for option in (a for a in stage.arguments if a.startswith("--")):
            assert option in text, (stage.name, option)


def test_stages_wait_fail_and_are_kept(tmp_path: Path) -> None:
    stages = [Stage("good", "this", ()), Stage("bad", "no_such_module", (), ("good",)),
              Stage("after", "this", (), ("bad",)), Stage("beside", "this", (), ("good", "not in this run"))]
    ended = run(stages, tmp_path)
    assert ended == {"good": "done", "bad": "exit status 1", "after": "left out", "beside": "done"}
    assert "No module named no_such_module" in (tmp_path / "logs" / "bad.log").read_text()
    assert run(stages[:1], tmp_path) == {"good": "done before"}


def test_unknown_stages_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cascade.main(["--output", str(tmp_path), "--only", "data,nothing"]) == 2
    error = capsys.readouterr().err
    assert "no stage nothing" in error and error.count("\n") == 1
