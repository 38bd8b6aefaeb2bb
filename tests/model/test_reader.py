"""The attribute reader: shapes, files, that it learns from pictures, and that it resumes to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rodin_model.avatars.attributes import CHOICES, SHAPE
from rodin_model.reader import AttributeReader, ReaderConfig
from rodin_model.train import reader as training
from rodin_model.train.pace import Pace

TINY = ReaderConfig(size=16, widths=(8,))


@pytest.fixture
def tiny() -> AttributeReader:
    """An untrained reader of a few thousand weights."""
    torch.manual_seed(0)
    return AttributeReader(TINY).eval()


def striped(count: int = 32, size: int = 16) -> training.Pictures:
    """Pictures whose brightness tells the hair colour, and nothing else tells anything."""
    values = len(CHOICES["hair_color"])
    labels = torch.zeros(count, len(CHOICES), dtype=torch.int64)
    colors = torch.arange(count) % values
    labels[:, list(CHOICES).index("hair_color")] = colors
    images = (colors * 255 // (values - 1)).to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, size, size)
    return training.Pictures(images.contiguous(), labels)


def test_every_attribute_gets_its_logits(tiny: AttributeReader) -> None:
    logits = tiny(torch.rand(2, 3, 40, 24))
    assert {name: tuple(v.shape) for name, v in logits.items()} == {n: (2, len(c)) for n, c in CHOICES.items()}
    words = tiny.read(torch.rand(3, 3, 16, 16), batch=2)
    assert len(words) == 3 and all(words[i][name] in CHOICES[name] for i in range(3) for name in CHOICES)


def test_the_default_size_has_at_most_a_million_and_a_half_weights() -> None:
    assert sum(p.numel() for p in AttributeReader().parameters()) < 1_500_000


def test_a_picture_is_read_alike_in_any_batch(tiny: AttributeReader) -> None:
    images = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(tiny.features(images)[3:4], tiny.features(images[3:4]), rtol=1e-4, atol=1e-5)


def test_a_saved_reader_reads_alike(tiny: AttributeReader, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    images = torch.rand(4, 3, 16, 16)
    again = AttributeReader.load(tmp_path)
    assert not again.training and again.config == TINY
    torch.testing.assert_close(again.features(images), tiny.features(images), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("change", "message"), [
    ({"size": 100_000}, "must lie between"), ({"size": 8}, "16 to 512"), ({"widths": []}, "one to six"),
    ({"depth": 3}, "has no depth"), ({"choices": {"hair": ["long"]}}, "other attributes")])
def test_strange_configurations_are_refused(tiny: AttributeReader, tmp_path: Path, change: dict[str, object],
                                            message: str) -> None:
    tiny.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        AttributeReader.load(tmp_path)


def test_what_is_no_batch_of_pictures_is_refused(tiny: AttributeReader) -> None:
    with pytest.raises(TypeError, match="floating-point"):
        tiny(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]; got \[3, 16, 16\]"):
        tiny(torch.zeros(3, 16, 16))


def test_augmentation_follows_its_seed_and_stays_in_range() -> None:
    images = torch.rand(4, 3, 32, 32)
    first, second, other = (training.augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1 and first.shape == images.shape
    assert not torch.equal(images, first)


def test_the_ground_stays_white_when_a_picture_is_moved() -> None:
    white = training.augment(torch.ones(8, 3, 32, 32), torch.Generator().manual_seed(3))
    assert white.mean() > 0.93


def test_it_learns_what_can_be_seen(tmp_path: Path) -> None:
    pictures = striped()
    settings = training.Settings(steps=150, batch=16, learning_rate=1e-2, average=0.9)
    found = training.accuracy(training.train(pictures, tmp_path, settings, TINY), pictures)
    assert found["hair_color"] > 0.5
    assert found["hat"] == 1.0


def test_a_resumed_run_reaches_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = striped()
    settings = training.Settings(steps=6, batch=4, save_every=2)
    whole = training.train(pictures, tmp_path / "whole", settings, TINY)
    true_step, seen = training._step, []

    def dying(*arguments: object) -> torch.Tensor:
        seen.append(arguments[4])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return true_step(*arguments)

    monkeypatch.setattr(training, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        training.train(pictures, tmp_path / "cut", settings, TINY)
    resumed = training.train(pictures, tmp_path / "cut", settings, TINY)
    assert seen == [0, 1, 2, 3, 2, 3, 4, 5]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    names = ("model.safetensors", "config.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "cut" / n).read_bytes() for n in names)


def test_a_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    training.train(striped(), tmp_path, training.Settings(steps=2, batch=4, save_every=1), TINY)
    with pytest.raises(ValueError, match="other settings"):  # its weights would be those of neither run
        training.train(striped(), tmp_path, training.Settings(steps=3, batch=4, save_every=1), TINY)


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="there are no pictures"):
        training.Pictures.join([])


def test_the_clock_ends_a_run_that_has_more_steps(tmp_path: Path) -> None:
    settings = training.Settings(steps=1_000_000, batch=4, save_every=1_000_000)
    training.train(striped(), tmp_path, settings, TINY, pace=Pace(settings.steps, 0.02))
    assert AttributeReader.load(tmp_path).config == TINY


def test_numbers_that_words_leave_open_are_learned_beside_them(tmp_path: Path) -> None:
    pictures = striped()
    settings = training.Settings(steps=1, batch=4)
    known = training.Pictures(pictures.images, pictures.labels, torch.ones(len(pictures), len(SHAPE)))
    with_numbers, without = (training.train(p, tmp_path / name, settings, TINY).state_dict()
                             for p, name in ((known, "with"), (pictures, "without")))
    assert not torch.equal(with_numbers["norm.weight"], without["norm.weight"])


def test_a_face_at_full_size_is_read_alike_after_storing(tmp_path: Path) -> None:
    reader = AttributeReader(ReaderConfig(size=16, widths=(8,), face_stride=1)).eval()
    reader.save(tmp_path)
    assert AttributeReader.load(tmp_path).config.face_stride == 1
    with pytest.raises(ValueError, match="face_stride must be 1 or 2"):
        ReaderConfig(face_stride=3)
