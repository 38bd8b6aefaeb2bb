"""The report's table, the parts that are run, what true pictures hide, and what an evaluation of one sentence asks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from rodin_model import evaluate
from rodin_model.avatars.attributes import CHOICES, sample_attributes
from rodin_model.avatars.pictures import render_avatar
from rodin_model.cameras import Camera
from rodin_model.evaluation import table, words
from rodin_model.evaluation.costs import Clock
from rodin_model.evaluation.sampler import Options, Row
from rodin_model.evaluation.visibility import SAME_SIDES, alike, excuse, wanted_of

ROWS = [Row("words to avatar", 12, 0.5, 0.25, 0.9), Row("distance", 3, 0.1234, None, 0.5, "{:.2f}")]
REPORT = {"model": "tiny", "date": "2026-01-01",
          "parts": {"text": {"rows": [vars(row) for row in ROWS], "metrics": {}, "seconds": 1.0}}}


def test_a_row_of_the_table_says_everything_in_its_unit() -> None:
    assert table.markdown(ROWS).splitlines()[2:] == [
        "| words to avatar | 25.0% | 90.0% | 50.0% | 12 |", "| distance |  | 0.50 | 0.12 | 3 |"]
    assert table.rows_of(REPORT) == ROWS


def test_the_readme_gets_the_table_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Rodin\n\n## Benchmarks\n\nfast\n")
    table.write(REPORT, page)
    table.write({**REPORT, "model": "other"}, page)
    text = page.read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == text.count("| words to avatar |") == 1
    assert "model other" in text and text.index(table.END) < text.index("## Benchmarks") and text.endswith("fast\n")
    with pytest.raises(FileNotFoundError, match="is for a checkout"):
        table.write(REPORT, tmp_path / "absent.md")


def test_parts_are_chosen_by_name_and_in_order() -> None:
    assert evaluate.wanted("costs, text", Options()) == ["text", "costs"]
    some = evaluate.wanted(None, Options(count=1, fits=0, edited=0, alike=0))
    assert not {"fit", "edits", "sentence", "distance"} & set(some) and {"text", "noise", "costs"} <= set(some)
    with pytest.raises(ValueError, match="there is no part 'hats'; there are fit, text"):
        evaluate.wanted("hats", Options())
    assert all(callable(getattr(evaluate.Evaluation, name)) for name in evaluate.PARTS)


def test_what_was_measured_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        pipe = argparse.Namespace(index=argparse.Namespace(name="fake"))

        def __init__(self, *_: object) -> None:
            pass

        def noise(self) -> evaluate.Section:
            return evaluate.Section("", {"new": 1}, rows=ROWS)

    monkeypatch.setattr(evaluate, "Evaluation", Fake)
    given = evaluate.parse(["--output-dir", str(tmp_path), "--only", "noise"])
    report = evaluate.run(given, REPORT, say=lambda text: None)
    assert list(report["parts"]) == ["text", "noise"] and report["model"] == "fake"
    assert evaluate.main(["--output-dir", str(tmp_path), "--only", "none"]) == 0
    kept = evaluate.checkpoints.read_json(tmp_path / evaluate.RESULTS)
    assert kept["parts"]["noise"]["metrics"] == {"new": 1} and table.rows_of(kept) == [*ROWS, *ROWS]


def test_a_clock_adds_up_the_stages() -> None:
    clock = Clock("cpu")
    for _ in range(2):
        with clock.stage("base"):
            torch.zeros(1000).sort()
    with clock.stage("picture"):
        pass
    assert 0 <= clock.seconds["picture"] < clock.seconds["base"] < 5 and clock.memory["base"] > 0.01


def test_a_true_avatar_of_the_sentence_is_what_it_says() -> None:
    drawn = [words._namesake(i) for i in range(16)]
    assert all(getattr(a, name) in values for a in drawn for name, values in words.ASKED.items())
    assert len({a.facial_hair for a in drawn}) == 3 and len({a.shape for a in drawn}) == 16
    assert all(set(values) <= set(CHOICES[name]) for name, values in words.ASKED.items())


def test_a_hat_hides_what_tells_some_styles_apart() -> None:
    bare, hatted = (sample_attributes(3, hair_style="side part", hat=hat, headphones="none") for hat in ("none", "cap"))
    assert alike(bare, "hair_style") == ("side part",) and alike(hatted, "hair_style") == ("side part", "short")
    assert wanted_of(hatted)["hair_style"] == ("side part", "short")
    assert alike(sample_attributes(3, hair_style="afro", hat="cap"), "hair_style") == ("afro",)
    assert excuse(hatted, {"hair_style": ("side part",), "hat": ("cap",)}) == {"hair_style": ("side part", "short"),
                                                                              "hat": ("cap",)}
    shades = sample_attributes(3, glasses="sunglasses")
    assert alike(shades, "eye_color") == () and "eye_color" not in wanted_of(shades)
    assert excuse(shades, {"glasses": ("sunglasses",)}) == {"glasses": ("sunglasses",)}


@pytest.mark.parametrize("same", SAME_SIDES)
def test_true_pictures_under_a_hat_are_alike(same: tuple[str, str]) -> None:
    """What the rule excuses is hidden: a pair differs in under 1.2 % of the pixels with a hat, in far more without."""
    def apart(hat: str) -> float:
        one, other = (render_avatar(sample_attributes(3, hair_style=style, hat=hat, gender="man", facial_hair="none",
                                                      headphones="none", earrings="none"), Camera.orbit(0, 5, 64)).rgb
                      for style in same)
        return float(((one - other).abs().amax(-1) > 0.06).float().mean())
    covered = apart("cap")
    assert covered < 0.012
    assert apart("none") > 2.5 * covered
