"""The plan that trains a whole model: what waits for what, what is left out, what goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rodin_model.train import cascade
from rodin_model.train.cascade import ONWARD, SHARES, Plan, Stage, run

PLAN = Plan(Path("out"), Path("start"), "cpu", 6.0, 32, 64, 64, 2, "fp32")
PLANS = pytest.mark.parametrize(("plan", "shares"), [(PLAN, SHARES), (replace(PLAN, onward=True), ONWARD)],
                                ids=["anew", "onward"])


@PLANS
def test_every_stage_comes_after_what_it_needs(plan: Plan, shares: dict[str, float]) -> None:
    seen: set[str] = set()
    for stage in plan.stages():
        assert set(stage.after) <= seen, stage.name
        seen.add(stage.name)
    assert set(shares) < seen and "model" in seen and ("draft" in seen) is not plan.onward


@PLANS
def test_the_longest_way_takes_the_minutes_that_were_asked_for(plan: Plan, shares: dict[str, float]) -> None:
    ends: dict[str, float] = {}
    for stage in plan.stages():
        ends[stage.name] = shares.get(stage.name, 0.0) + max([0.0, *(ends[name] for name in stage.after)])
    assert max(ends.values()) == pytest.approx(1.0, abs=0.1)


def test_onward_begins_with_what_stays() -> None:
    stages = {stage.name: " ".join(stage.arguments) for stage in replace(PLAN, onward=True).stages()}
    assert "--within start/base" in stages["amortize"] and "--towers start/towers" in stages["latents"]
    assert "--init start/upsampler" in stages["upsampler"] and "--base start/base" in stages["upsampler"]
    assert "--init out/face/model" in stages["head"] and "--number 2" in stages["head"]
    assert "--init out/head/model" in stages["together"] and "--number" not in stages["together"]
    assert "--prior start/prior" in stages["spoken-latents"] and "--init out/together/model" in stages["likeness"]
    assert "--base start/base" in stages["model"] and "--upsampler out/likeness/model" in stages["model"]


@PLANS
def test_every_stage_is_a_command_that_knows_its_options(plan: Plan, shares: dict[str, float],
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    for stage in plan.stages():
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
