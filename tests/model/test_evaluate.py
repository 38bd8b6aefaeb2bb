"""The evaluation counts rightly: a perfect model gets full marks, a wrong one does not, neighbours are found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rodin_model import evaluate
from rodin_model.avatars.attributes import CHOICES, Attributes, sample_attributes
from rodin_model.config import RefinerConfig
from rodin_model.evaluation import consistency, edits, faces, fits, freedom, scores, visibility, words
from rodin_model.evaluation.edits import EDITS, count_edits
from rodin_model.evaluation.frechet import frechet_distance
from rodin_model.evaluation.neighbours import Neighbours, features, nearest_other
from rodin_model.evaluation.sampler import Options, Sampler, Section
from rodin_model.fit import StageConfig
from rodin_model.pipeline import RodinPipeline
from rodin_model.reader import AttributeReader, ReaderConfig
from rodin_model.refiner import Refiner

SIZE = 16


pytestmark = pytest.mark.usefixtures("hasty")


def picture_of(attributes: Attributes) -> Tensor:
    """A stand-in for a picture [3, S, S]: pixel i says the value of attribute i."""
    flat = torch.zeros(3 * SIZE * SIZE)
    flat[:len(CHOICES)] = torch.tensor([attributes.label(name) / 20 for name in CHOICES])
    flat[len(CHOICES):len(CHOICES) + 36] = torch.tensor(attributes.shape) / 10 + 0.5
    return flat.view(3, SIZE, SIZE)


class PerfectReader:
    """Reads what `picture_of` wrote."""

    config = ReaderConfig(size=SIZE)

    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """The value of every attribute."""
        numbers = (pictures.flatten(1)[:, :len(CHOICES)] * 20).round().long().tolist()
        return [{name: values[row[i]] for i, (name, values) in enumerate(CHOICES.items())} for row in numbers]

    def features(self, pictures: Tensor) -> Tensor:
        """The pixels themselves."""
        return pictures.flatten(1)


class Pipe:
    """Makes avatars that are true, from a list that the test gives, whatever it is asked for."""

    def __init__(self, avatars: Sequence[Attributes]) -> None:
        self.waiting, self.index, self.calls = list(avatars), SimpleNamespace(name="fake"), []

    def set_progress_bar_config(self, **_: Any) -> None:
        """Nothing to set."""

    def __call__(self, prompt: Sequence[str] = (), image: Sequence[Tensor] = (), num_avatars_per_prompt: int = 1,
                 **settings: Any) -> SimpleNamespace:
        rows = len(prompt) or len(image) or num_avatars_per_prompt
        self.calls.append((list(prompt), len(image), settings["generator"]))
        made, self.waiting = self.waiting[:rows], self.waiting[rows:]
        drawn = [picture_of(a).permute(1, 2, 0)[None] for a in made]
        return SimpleNamespace(avatars=[SimpleNamespace(turntable=lambda n, size, d=d: d) for d in drawn])


@pytest.fixture(autouse=True)
def drawn_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """True pictures cost a second each; the stand-ins cost nothing."""
    def fronts(avatars: Sequence[Attributes], size: int, what: str = "", yaw: float = 0.0) -> Tensor:
        return torch.stack([picture_of(a) for a in avatars])

    for module in (evaluate, edits, faces, freedom, words):
        monkeypatch.setattr(module, "true_fronts", fronts)
    monkeypatch.setattr("rodin_model.evaluation.neighbours.true_fronts", fronts)


def run(made: Sequence[Attributes], section: str, avatars: Sequence[Attributes]) -> Section:
    """One section of the report for a model that makes `made` when asked for `avatars`."""
    sampler = Sampler(Pipe(made), Options(size=SIZE))
    truth = torch.stack([picture_of(a) for a in avatars])
    if section == "text":
        return words.evaluate_text(sampler, PerfectReader(), avatars, truth)[0]
    return faces.evaluate_portraits(sampler, PerfectReader(), avatars, truth)


@pytest.mark.parametrize("section", ["text", "portraits"])
def test_a_perfect_model_gets_full_marks_and_a_wrong_one_does_not(section: str) -> None:
    avatars = evaluate.held_out(20)
    right = run(avatars, section, avatars)
    wrong = run([*avatars[1:], avatars[0]], section, avatars)
    for perfect in (right.metrics["result"], right.metrics["reader"], wrong.metrics["reader"]):
        assert all(row["shown"] == 1.0 for row in perfect.values())
    assert wrong.metrics["result"]["all"]["shown"] < 0.7
    assert 0.2 < right.metrics["result"]["all"]["chance"] < 0.6
    assert "these 7" in right.text and len(right.pictures) == 1


def test_every_avatar_has_a_seed_of_its_own() -> None:
    pipe = Pipe(evaluate.held_out(20))
    Sampler(pipe, Options(size=SIZE, seed=3)).fronts("", prompts=[str(i) for i in range(20)])
    seeds = [g.initial_seed() for _, _, generators in pipe.calls for g in generators]
    assert [len(prompts) for prompts, _, _ in pipe.calls] == [16, 4]
    assert len(set(seeds)) == 20


def test_counts_by_hand() -> None:
    shares = {name: dict.fromkeys(values, 0.0) for name, values in CHOICES.items()}
    shares["hat"] = {"none": 0.7, "cap": 0.1, "beanie": 0.1, "fedora": 0.1}
    shown = [{"hat": "cap"}, {"hat": "none"}, {"hat": "fedora"}]
    wanted = [{"hat": ("cap", "beanie")}, {"hat": ("cap",)}, {}]
    counts = scores.count(shown, wanted, shares)
    assert (counts["hat"].named, counts["hat"].shown) == (2, 1)
    assert counts["hat"].chance == pytest.approx(0.15)
    assert scores.plain(counts) == {"hat": pytest.approx({"asked": 2, "shown": 0.5, "chance": 0.15}),
                                    "these 7": pytest.approx({"asked": 2, "shown": 0.5, "chance": 0.15}),
                                    "all": pytest.approx({"asked": 2, "shown": 0.5, "chance": 0.15})}
    with pytest.raises(ValueError, match="3 pictures for 2 requests"):
        scores.count(shown, wanted[:2], shares)


def test_chance_is_what_random_avatars_would_fulfil() -> None:
    shares = scores.frequencies(2000)
    assert all(sum(s.values()) == pytest.approx(1) for s in shares.values())
    drawn = [sample_attributes(5_000_000 + i) for i in range(2000)]
    seen = [{name: getattr(a, name) for name in CHOICES} for a in drawn]
    counts = scores.count(seen, [{"hat": ("none",), "facial_hair": ("goatee", "full beard")}] * 2000, shares)
    assert counts["hat"].rate == pytest.approx(counts["hat"].chance, abs=0.04)
    assert counts["facial_hair"].rate == pytest.approx(counts["facial_hair"].chance, abs=0.04)


def test_what_cannot_be_seen_is_not_asked_of_a_portrait() -> None:
    hidden = sample_attributes(1, glasses="sunglasses", hair_style="bald", facial_hair="none")
    assert not {"eye_color", "eye_shape", "hair_color"} & set(visibility.wanted_of(hidden))
    assert visibility.wanted_of(hidden)["glasses"] == ("sunglasses",)


def test_a_copy_of_a_training_avatar_is_found_out(tmp_path: Path) -> None:
    reader, training = PerfectReader(), [sample_attributes(i) for i in range(12)]
    Neighbours.of(reader, range(12)).save(tmp_path)
    known = Neighbours.load(tmp_path)
    sampler = Sampler(Pipe([training[7], *evaluate.held_out(3)]), Options(size=SIZE, noise=4))
    truth = torch.stack([picture_of(a) for a in evaluate.held_out(4)])
    section = freedom.evaluate_noise(sampler, reader, truth, known)
    assert section.metrics["smallest_to_training"] < 0.01 < section.metrics["held_out_smallest_to_training"]
    distance, who = known.nearest(features(reader, picture_of(training[7])[None]))
    assert who == [training[7]] and distance < 0.01


def test_the_nearest_other_is_never_the_point_itself() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    torch.testing.assert_close(nearest_other(points), torch.tensor([1.0, 18.0 ** 0.5, 1.0]))


def test_the_frechet_distance_of_normal_clouds_is_the_formula() -> None:
    a, b = torch.randn(400, 6, dtype=torch.float64), 2 * torch.randn(300, 6, dtype=torch.float64) + 1
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ values.sqrt().diag() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).sqrt().sum()
    formula = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * mixed
    assert frechet_distance(a, b) == pytest.approx(float(formula), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a[:4], a[:4] + 1) == pytest.approx(6)
    for wrong in (a[:1], a[0]):
        with pytest.raises(ValueError, match="a must be features"):
            frechet_distance(wrong, b)
    with pytest.raises(ValueError, match="same number of features"):
        frechet_distance(a, b[:, :3])


def test_edits_are_counted_by_hand() -> None:
    old = {"hair_color": "black", "facial_hair": "none", "hat": "none", "age": "young"}
    before = [old, old, {**old, "hair_color": "blonde"}]
    after = [{**old, "hair_color": "blonde"}, {**old, "age": "elderly", "facial_hair": "goatee"}, old]
    target, kept = count_edits(before, after, {"hair_color": ("blonde",)})
    assert (target.named, target.shown) == (2, 1)  # the third was blonde before
    assert (kept.named, kept.shown) == (6, 5)      # beards go with the colour of hair
    for asked in EDITS.values():
        assert all(set(values) <= set(CHOICES[name]) for name, values in asked.items())


def test_features_keep_distances() -> None:
    pictures = torch.rand(12, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    small, whole = features(PerfectReader(), pictures), pictures.flatten(1) / (3 * SIZE * SIZE) ** 0.5
    ratio = torch.pdist(small) / torch.pdist(whole)
    assert small.shape == (12, 256) and ratio.min() > 0.8 and ratio.max() < 1.2


def test_the_phrasings_are_well_formed() -> None:
    entries = json.loads(words.PHRASINGS.read_text(encoding="utf-8"))
    assert len(entries) >= 30 and len({entry["text"] for entry in entries}) == len(entries)
    for entry in entries:
        assert entry["accepts"]
        for name, accepted in entry["accepts"].items():
            assert set(accepted) <= set(CHOICES[name]), entry["text"]


def test_a_whole_evaluation_of_an_untrained_model(tiny_model_dir: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    for compared in ("avatar_consistency", "true_consistency"):
        monkeypatch.setattr(consistency, compared, partial(getattr(consistency, compared), yaws=(0.0,), size=64))
    AttributeReader(ReaderConfig(size=SIZE, widths=(4,))).save(tmp_path / "reader")
    out = tmp_path / "out"
    arguments = ["--model", str(tiny_model_dir), "--reader", str(tmp_path / "reader"), "--output-dir", str(out)]
    assert evaluate.main([*arguments, "--quick", "--count", "2", "--noise", "2", "--fits", "0", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("Words to avatar", "Portrait to", "Hand-written", "Noise to avatar",
                                                  "from the side", "Edits of 2 avatars", "Frechet distance",
                                                  "avatars of \"A bearded man", "Costs of one avatar"))
    report = json.loads((out / evaluate.RESULTS).read_text())
    parts = {name: part["metrics"] for name, part in report["parts"].items()}
    assert report["model"] == "tiny" and parts["text"]["result"]["all"]["asked"] > 0
    sheets = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert set(sheets) == {"text.png", "portraits.png", "phrasings.png", "noise.png", "edits.png", "sentence.png"}
    assert set(parts["sides"]) == {"30", "60"} and parts["sides"]["60"]["all"]["asked"] > 0
    assert parts["edits"]["all"]["asked"] > 0 and parts["distance"]["truth"] > 0
    assert parts["views"]["truth"]["difference"] > 0
    costs = parts["costs"]
    assert set(costs["seconds"]) == {"load", "prior", "base", "upsampler", "clearing", "picture", "turntable",
                                     "portrait"}
    assert costs["total"] == pytest.approx(sum(costs["seconds"].values()) - costs["seconds"]["portrait"])
    assert 0.01 < parts["costs"]["memory_gb"]["load"] <= parts["costs"]["memory_gb"]["turntable"] < 100
    assert all(b"trainedAlgorithmicMedia" in data for data in sheets.values())
    assert [row for part in report["parts"].values() for row in part["rows"] if row["n"] < 1] == []


def test_views_are_compared_refined_too_if_the_model_can(tiny_model_dir: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def known(difference: float, refined: bool = False) -> consistency.Consistency:
        seen.append(refined)
        return consistency.Consistency(difference, 40.0, 0.5)

    monkeypatch.setattr(consistency, "avatar_consistency",
                        lambda avatar, refiner=None: known(0.25 if refiner else 0.125, refiner is not None))
    monkeypatch.setattr(consistency, "true_consistency", lambda attributes: known(0.0625))
    AttributeReader(ReaderConfig(size=SIZE, widths=(4,))).save(tmp_path / "reader")
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    pipe.refiner = Refiner(RefinerConfig(features=0, width=4, growth=2, dense=1, detail=4))
    pipe.index = dataclasses.replace(pipe.index, refiner=True)
    pipe.save_pretrained(tmp_path / "refined")
    both = {"result": 0.125, "refined": 0.25}
    for model, wanted in ((tiny_model_dir, {"result": 0.125}), (tmp_path / "refined", both)):
        out = tmp_path / f"out-{len(wanted)}"
        assert evaluate.main(["--model", str(model), "--reader", str(tmp_path / "reader"), "--output-dir", str(out),
                              "--only", "views", "--quick", "--count", "1"]) == 0
        part = json.loads((out / evaluate.RESULTS).read_text())["parts"]["views"]
        assert {name: found["difference"] for name, found in part["metrics"].items()} == {**wanted, "truth": 0.0625}
        assert [row["result"] for row in part["rows"]] == list(wanted.values())
    assert sum(seen) == 1


def test_fits_are_measured_on_views_that_they_did_not_see(tiny_model_dir: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    stage = StageConfig(steps=3, points=64, rate=0.01, rays=32, first_ray=1, samples=8)
    config = dataclasses.replace(fits.config_of(pipe), coarse=stage, fine=stage)
    assert (config.planes.channels, config.planes.resolution, config.planes.coarse_resolution) == (4, 16, 8)
    monkeypatch.setattr(fits, "config_of", lambda pipe: config)
    monkeypatch.setattr(fits, "SIZE", 24)
    monkeypatch.setattr(fits, "VIEWS", 4)
    seen: list[int] = []
    fit_planes = fits.fit_planes

    def watched(*arguments: Any, views: Any = None, **named: Any) -> Tensor:
        seen.append(0 if views is None else views.rgb.shape[1])
        return fit_planes(*arguments, views=views, **named)

    monkeypatch.setattr(fits, "fit_planes", watched)
    text, metrics, pictures = fits.measure_fits(pipe, 1, seed=1)
    assert seen == [0, 2]
    assert metrics["avatars"] == 1 and 0 < metrics["psnr"] < 99 and "PSNR" in text
    assert pictures["fit.png"].size == (3 * 24, 2 * 24)


def test_missing_parts_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AttributeReader(ReaderConfig(size=SIZE, widths=(4,))).save(tmp_path / "reader")
    out = str(tmp_path / "out")
    for arguments in (["--reader", str(tmp_path / "nothing")], ["--reader", str(tmp_path / "reader"), "--noise", "1"],
                      ["--reader", str(tmp_path / "reader"), "--only", "text,hats"],
                      ["--reader", str(tmp_path / "reader"), "--quick", "--model", str(tmp_path / "nothing")]):
        assert evaluate.main(["--output-dir", out, *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: "), error
