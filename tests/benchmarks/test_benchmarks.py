"""The benchmarks run, refuse numbers to wrong results, show slow-downs, and write files that can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    avatar,
    convolution,
    loan,
    plots,
    predictions,
    readme,
    rendering,
    report,
    run,
    sampling,
    supervise,
)
from benchmarks.case import OURS, Case, Contender, Target, Tensors
from benchmarks.ceilings import Ceilings
from benchmarks.clock import CpuClock, saved_bytes
from benchmarks.measure import measure

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CEILINGS = Ceilings(1e10, 1e9, 1e9, {"float32": 1e11})


def smoke_case() -> Case:
    """The first tiny case of the convolution."""
    return convolution.cases("smoke", CPU)[0]


def with_ours(case: Case, call: object, **changes: object) -> Case:
    """The case with another call of ours."""
    ours = replace(case.contenders[0], call=call)
    return replace(case, contenders=(ours, *case.contenders[1:]), **changes)


def test_a_tiny_run_writes_results_table_and_plots(tmp_path: Path) -> None:
    modules = ("convolution", "sampling", "rendering", "avatar", "block")
    said: list[str] = []
    results = run.run("smoke", CpuClock(), folder=tmp_path, say=said.append, modules=modules)
    assert not results["skipped"] and not report.red(results), (results["skipped"], report.red(results))
    assert all(row["ok"] and row["forward"]["median"] > 0 for row in results["rows"])
    assert {row["operator"] for row in results["rows"]} == set(report.OPERATORS) - {"generate"}
    trained = [row for row in results["rows"] if "both" in row]
    assert trained and all(row["peak"]["both"] > 0 and row["saved"] > 0 for row in trained)
    slug = results["slug"]
    kept = json.loads((tmp_path / f"{slug}.json").read_text(encoding="utf-8"))
    assert len(kept["rows"]) == len(results["rows"]) and kept["versions"]["torch"] == torch.__version__
    table = (tmp_path / f"{slug}.md").read_text(encoding="utf-8")
    assert "## rollout_conv" in table and convolution.PUBLISHED in table and str(tmp_path) not in table
    for name in ("time", "memory", "roofline"):
        picture = ElementTree.parse(tmp_path / f"{slug}-{name}.svg").getroot()
        assert len(picture.findall(".//{http://www.w3.org/2000/svg}circle")) > 3
    section = readme.section(tmp_path, tmp_path)
    assert f"({slug}-time.svg)".replace("(", "") in section.replace("./", "") and "No whole run on a GPU" in section


def test_a_run_goes_on_after_a_case_that_ended_its_process(tmp_path: Path) -> None:
    modules, first = ("convolution",), smoke_case().key
    supervise.note(tmp_path, first)
    resumed = run.run("smoke", CpuClock(), folder=tmp_path, say=print, modules=modules, resume=True)
    assert resumed["skipped"] == [f"{first}: ended its process, or hung"] and len(resumed["done"]) == 2
    assert first not in {f"{row['operator']}: {row['case']}" for row in resumed["rows"]}
    again = run.run("smoke", CpuClock(), folder=tmp_path, say=print, modules=modules, resume=True)
    assert len(again["rows"]) == len(resumed["rows"]) and again["skipped"] == resumed["skipped"]
    assert supervise.in_flight(tmp_path) is None


def test_a_process_of_its_own_runs_the_cases_or_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = supervise.supervised(["--device", "cpu", "--help"], 60.0, tmp_path)
    assert ended == 0
    monkeypatch.setattr(supervise, "LONGEST_START", 0.5)
    assert supervise._watched([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path) == -9


def test_a_wrong_result_of_ours_stops_the_case() -> None:
    case = smoke_case()
    wrong = with_ours(case, lambda x: case.contenders[0].call(x) * 1.0001)
    rows = measure(wrong, CpuClock(), CEILINGS, 0.0)
    assert len(rows) == 1 and not rows[0]["ok"] and "forward" not in rows[0]
    assert "error budget" in rows[0]["reason"]


def test_a_wrong_gradient_of_ours_stops_the_case() -> None:
    case = smoke_case()

    def detached(x: Tensors) -> torch.Tensor:
        return case.contenders[0].call({**x, "bias": x["bias"].detach()}) + 0 * x["bias"].sum()

    rows = measure(with_ours(case, detached), CpuClock(), CEILINGS, 0.0)
    assert "gradient of bias" in rows[0]["reason"]


def test_a_result_that_is_not_a_number_is_red_for_everybody() -> None:
    case = smoke_case()
    spoiled = Contender("rival", lambda x: case.contenders[0].call(x) * float("nan"))
    rows = measure(replace(case, contenders=(case.contenders[0], spoiled)), CpuClock(), CEILINGS, 0.0)
    assert rows[0]["ok"] and not rows[1]["ok"] and "forward" not in rows[1]


def test_a_rival_that_fails_or_computes_something_else_gets_no_number() -> None:
    case = smoke_case()

    def fails(x: Tensors) -> torch.Tensor:
        raise RuntimeError("out of memory")

    rivals = Contender("fails", fails), Contender("else", lambda x: case.contenders[0].call(x) * 1.1)
    rows = measure(replace(case, contenders=(case.contenders[0], *rivals)), CpuClock(), CEILINGS, 0.0)
    assert [row["ok"] for row in rows] == [True, False, False]
    assert "out of memory" in rows[1]["reason"] and "something else" in rows[2]["reason"]
    assert "forward" in rows[0] and "forward" not in rows[1]


def test_a_slow_down_shows_in_the_ratios_and_the_targets() -> None:
    case = smoke_case()
    slow = 0.05

    def slowed(x: Tensors) -> torch.Tensor:
        time.sleep(slow)
        return case.contenders[0].call(x)

    wanted = (Target("forward", 1.0, convolution.PUBLISHED),)
    found = measure(with_ours(case, slowed, targets=wanted), CpuClock(), CEILINGS, 0.0)
    assert found[0]["forward"]["median"] > slow
    assert found[1]["forward"]["times_ours"]["median"] < 1
    target, = found[0]["targets"]
    assert target["met"] is False and "of our forward" in target["cause"]
    results = {"rows": found}
    assert len(report.missed(results)) == 1 and "**missed**" in report.missed(results)[0]


def test_pictures_are_compared_by_decibels() -> None:
    case = replace(sampling.cases("smoke", CPU)[0], leaves=(), least_psnr=45.0, rows=(), checked=None)
    near = Contender("near", lambda x: case.reference(x) + 1e-3)
    far = Contender("far", lambda x: case.reference(x) + 1e-2)
    rows = measure(replace(case, contenders=(case.contenders[0], near, far)), CpuClock(), CEILINGS, 0.0)
    assert [row["ok"] for row in rows] == [True, True, False] and "dB" in rows[2]["reason"]


def test_only_the_checked_rows_are_compared_and_gradients_stay_exact() -> None:
    case = rendering.cases("smoke", CPU)[0]
    few = replace(case, checked=5, contenders=case.contenders[:2])
    rows = measure(few, CpuClock(), CEILINGS, 0.0)
    assert all(row["ok"] for row in rows), rows


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def three_times() -> None:
        for _ in range(3):
            torch.empty(1 << 18)

    peak = CpuClock().peak(three_times)
    assert 1 << 20 <= peak < (1 << 20) + 4096
    peak = CpuClock().peak(lambda: [torch.empty(1 << 18) for _ in range(3)])
    assert 3 << 20 <= peak < (3 << 20) + 4096


def test_saved_bytes_count_each_storage_once() -> None:
    x = torch.ones(1024, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 4096
    assert saved_bytes(lambda: x * 2) < 4096


def test_the_floor_is_the_slowest_part() -> None:
    case = smoke_case()
    work = case.work["forward"]
    assert Ceilings(1.0, 1.0, 1.0, {"float32": 1e30}).floor(work, torch.float32) == work.moved
    assert Ceilings(1e30, 1.0, 1.0, {"float32": 1.0}).floor(work, torch.float32) == work.flops
    assert case.work["both"].flops == 3 * work.flops


def test_the_first_contender_must_be_ours() -> None:
    with pytest.raises(ValueError, match=OURS):
        replace(smoke_case(), contenders=smoke_case().contenders[1:])


def test_a_page_gets_its_section_once_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nText.\n\n## Limits\n\nLast.\n", encoding="utf-8")
    for body in ("first", "second", "second"):
        readme.replace(page, "<!-- a -->", "<!-- b -->", body, "## Head\n\n", "## Limits")
    text = page.read_text(encoding="utf-8")
    assert text == "# Title\n\nText.\n\n## Head\n\n<!-- a -->\nsecond\n<!-- b -->\n\n## Limits\n\nLast.\n"
    page.write_text("<!-- a -->", encoding="utf-8")
    with pytest.raises(ValueError, match="without the other"):
        readme.replace(page, "<!-- a -->", "<!-- b -->", "", "", "")


def test_a_loan_bounds_its_stages_and_keeps_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loan, "MARGIN", 0.0)
    monkeypatch.setattr(loan, "KEPT", 1000)
    commands = {"hangs": [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"],
                "talks": [sys.executable, "-c", "print('x' * 5000, 'end')"]}
    begin = time.monotonic()
    summary = loan.spend(0.5, tmp_path, (("hangs", 0.1), ("talks", 0.9)), commands)
    assert time.monotonic() - begin < 20
    assert "stopped" in summary["stages"]["hangs"]["ended"]
    assert (tmp_path / "hangs.log").read_text(encoding="utf-8").startswith("begun")
    text = (tmp_path / "talks.log").read_text(encoding="utf-8")
    assert len(text) < 1100 and text.rstrip().endswith("end")
    assert json.loads((tmp_path / "loan.json").read_text(encoding="utf-8")) == summary


def test_the_loan_runs_commands_that_exist(tmp_path: Path) -> None:
    wanted = loan.commands(tmp_path, dict.fromkeys(("doctor", "tests", "benchmarks", "tuning"), 100.0))
    assert list(wanted) == [name for name, _ in loan.STAGES] and sum(share for _, share in loan.STAGES) == 1
    arguments = wanted["benchmarks"][3:]
    options = command.parser().parse_args(arguments)
    assert options.quick and options.device == "cuda" and options.seconds == 85


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_loan_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--loan", "10"]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_numbers_are_short_and_axes_readable() -> None:
    assert report.seconds(0.01234) == "12.3 ms" and report.seconds(3.2e-6) == "3.2 us" and report.size(2048) == "2 KiB"
    assert run.rounded({"a": [1.23456, float("inf"), 3]}) == {"a": [1.235, None, 3]}
    panel = plots.Panel("a < b", "x", "y", {"one": [(1, 1), (100, 0.001)]})
    ElementTree.fromstring(plots.drawn("t & u", [panel]))
    ElementTree.fromstring(plots.drawn("nothing", []))


def test_pytest_benchmark_runs_a_file() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/test_sample_triplane.py", "--level", "smoke", "-q", "-x", "-k",
         "random and forward", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout and OURS in done.stdout


@pytest.mark.slow
def test_words_to_a_picture_end_to_end(tmp_path: Path) -> None:
    results = run.run("smoke", CpuClock(), folder=tmp_path, say=print, modules=("generation",))
    assert not results["skipped"] and [row["ok"] for row in results["rows"]] == [True, True]


@pytest.mark.interpret
def test_the_kernels_that_measure_ceilings_do_what_they_say() -> None:
    from benchmarks import kernels

    table = torch.arange(10 * 4, dtype=torch.float32).view(10, 4)
    places = torch.tensor([1, 3, 9, 9, 0, 0, 2, 5], dtype=torch.int32)
    out = torch.empty(2, 4)
    kernels.gather_kernel[(2,)](table, places, out, CHANNELS=4, BLOCK=4)
    assert torch.equal(out, table[places.long()].view(2, 4, 4).sum(1))
    added = torch.zeros(10, 4)
    kernels.reduce_kernel[(2,)](added, places, CHANNELS=4, BLOCK=4)
    assert torch.equal(added, torch.bincount(places, minlength=10).float()[:, None].expand(10, 4))


def test_the_kernels_page_calls_predictions_by_their_name(tmp_path: Path) -> None:
    facts = {"registers": 40, "spills": 0, "shared": 1024, "occupancy": 0.5, "tensor": {"HGMMA": 4},
             "loads": {"128": 8}, "stores": {"128": 2}, "atomics": {}}
    golden = tmp_path / "inspection.json"
    golden.write_text(json.dumps({"triton": {"rollout_conv": "3"},
                                  "kernels": {"rollout_conv": {"own": {"sm_90": facts}}}}))
    page = tmp_path / "docs" / "kernels.md"
    predictions.write(page, golden)
    predictions.write(page, golden)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# The Triton kernels") and text.count(predictions.BEGIN) == 1
    assert "Predictions, not measurements" in text and "| H200, predicted |" in text
    assert "| own | sm_90 | 40 | 0 | 1024 | 50% | 4 x HGMMA | 8 x 128 bit | 2 x 128 bit | - |" in text
    # the worked example: 67.3 GFLOP collapsed, at 791 TFLOP/s 85 us
    assert "| rollout_conv B8 C192 R64 O192 | 67.3 |" in text and "| 85 us + 170 us |" in text


def test_memory_can_be_expected_and_pictures_say_their_decibels() -> None:
    case = replace(avatar.cases("smoke", CPU)[1], targets=(Target("peak", 1e-3), Target("peak", 1e3)))
    rows = measure(case, CpuClock(), CEILINGS, 0.0)
    assert [target["met"] for target in rows[0]["targets"]] == [False, True] and len(rows) == 1
    assert "forward holds at most 0.001 MiB at once: **missed**" in report.missed({"rows": rows})[0]
    assert f"{rows[0]['psnr']:.0f} dB" in run._headline(rows) and "at once" in run._headline(rows)
    assert [t.what for t in avatar.cases("quick", CPU)[1].targets] == ["peak"]
