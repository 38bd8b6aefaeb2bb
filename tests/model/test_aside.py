"""The picture tower that learns views from the side: the front stays, the teacher looks at the same avatar."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rodin_model.towers import Towers
from rodin_model.train import aside, towers
from rodin_model.train.aside import AsideTrainer
from rodin_model.train.changes import plain
from tests.model.test_around import noise_views
from tests.model.test_conditioning import seeded


def pupil(folder: Path, steps: int = 3, rate: float = 1e-2) -> tuple[AsideTrainer, Towers]:
    """A trainer on pictures of noise, and the towers that it starts from."""
    settings = towers.Settings(steps=steps, image_batch=8, learning_rate=rate)
    return AsideTrainer(folder / "run", settings, [noise_views(folder / "data")], seeded()), seeded().eval()


def test_the_teacher_looks_at_the_front_and_at_its_mirror_image(tmp_path: Path) -> None:
    trainer, before = pupil(tmp_path)
    front = plain(trainer.seen.rgba[trainer.seen.first].float() / 255)
    with torch.no_grad():
        torch.testing.assert_close(trainer.wanted[:, 0], before.image(front), rtol=0, atol=1e-5)
        torch.testing.assert_close(trainer.wanted[:, 1], before.image(front.flip(-1)), rtol=0, atol=1e-5)


def test_the_picture_tower_learns_and_words_and_statistics_stay(tmp_path: Path) -> None:
    trainer, before = pupil(tmp_path)
    after = trainer.run()
    assert torch.equal(after.text.groups, before.text.groups)
    assert torch.equal(after.heads.linear.weight, before.heads.linear.weight)
    assert torch.equal(after.image.face[1].running_mean, before.image.face[1].running_mean)
    assert not torch.equal(after.image.head.weight, before.image.head.weight)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = pupil(tmp_path / "whole", 4)
    pupil(tmp_path / "parts", 4)[0].run(until=2)
    parts, _ = pupil(tmp_path / "parts", 4)
    assert parts.step == 2 and torch.equal(parts.wanted, whole.wanted)  # whoever has moved is no teacher
    assert all(torch.equal(a, b) for a, b in zip(whole.run().state_dict().values(), parts.run().state_dict().values(),
                                                 strict=True))


def test_the_front_pulls_back_a_pupil_that_has_moved(tmp_path: Path) -> None:
    trainer, _ = pupil(tmp_path, 40, 3e-3)
    first = trainer.losses(0)
    assert first["front"].item() < 1e-5 < first["elsewhere"].item()
    torch.nn.init.normal_(trainer.towers.image.head.weight, std=0.05)
    lost = trainer.losses(0)["front"].item()
    trainer.run()
    assert trainer.losses(0)["front"].item() < 0.6 * lost


def test_a_mirrored_view_is_asked_for_the_mirrored_front(tmp_path: Path) -> None:
    trainer, _ = pupil(tmp_path)
    trainer.wanted = trainer.wanted.flip(1)
    assert trainer.losses(0)["front"].item() > 1e-3  # the mirrored teachers are the wrong ones now


def test_views_in_other_colours_have_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = pupil(tmp_path)

    def loss(other: bool, scale: float) -> float:
        monkeypatch.setattr(aside, "recolor", lambda images, generator: (
            images * scale, torch.full((len(images),), other)))
        return trainer.losses(0)["elsewhere"].item()

    assert loss(True, 1.0) == pytest.approx(loss(True, 0.5), abs=1e-6)
    assert loss(False, 1.0) != pytest.approx(loss(False, 0.5), abs=1e-6)


def test_it_needs_towers_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert towers.main(["--aside", "--data", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert "--aside needs --start" in capsys.readouterr().err
