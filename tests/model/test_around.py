"""The picture tower that learns to read from every side: its data, its targets, and what stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rodin_model import checkpoints
from rodin_model.avatars.attributes import sample_attributes
from rodin_model.avatars.captions import caption_with_labels
from rodin_model.avatars.dataset import FORMAT
from rodin_model.cameras import Camera
from rodin_model.conditioning import TowerConditioner
from rodin_model.train import towers
from rodin_model.train.around import AroundTrainer, caption_means, probe_around
from rodin_model.train.changes import in_full_precision, plain
from rodin_model.train.pace import Pace
from rodin_model.train.views import Views, uniform_on_host
from tests.model.test_conditioning import seeded


def noise_views(folder: Path) -> Path:
    """A data set of four avatars, noise from the front, from 10, 50 and 100 degrees aside."""
    rng = np.random.default_rng(0)
    cameras = torch.stack([Camera.orbit(yaw, 5.0, 32).cam2world for yaw in (0.0, -10.0, 50.0, 100.0)])
    checkpoints.save_tensors(folder / "shard-00000.safetensors", {
        "images": torch.from_numpy(rng.integers(0, 256, (4, 4, 32, 32, 4), dtype=np.uint8)),
        "cam2world": cameras.expand(4, -1, -1, -1).contiguous()}, {
            "format": FORMAT, "attributes": json.dumps([sample_attributes(i).to_dict() for i in range(4)])})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return noise_views(tmp_path / "data")


def trainer(folder: Path, data: Path, steps: int = 4) -> AroundTrainer:
    settings = towers.Settings(steps=steps, image_batch=8, learning_rate=1e-2, front_share=0.3)
    return AroundTrainer(folder, settings, [data], seeded(), captions=2)


def test_views_from_behind_are_left_out_and_the_front_is_known(data: Path) -> None:
    views = Views.load([data, data], 32, 70.0)
    assert len(views) == 24 and len(views.attributes) == 8
    assert views.first.tolist() == list(range(0, 24, 3))
    assert views.owner[views.first].tolist() == list(range(8))
    torch.testing.assert_close(views.yaw[:3], torch.tensor([0.0, -10.0, 50.0]), rtol=0, atol=1e-3)
    assert len(Views.load([data], 16, 70.0, first_only=True)) == 4
    white = views.on_white()
    expected = (views.rgba[:, :3].int() + 255 - views.rgba[:, 3:].int()).clamp(0, 255)
    assert torch.equal(white.int(), expected)
    with pytest.raises(FileNotFoundError, match=r"rodin_model\.avatars\.dataset"):
        Views.load([data / "none"], 32)


def test_targets_are_the_means_of_captions_and_workers_change_nothing() -> None:
    start, avatars = seeded(), [sample_attributes(i) for i in range(3)]
    found = caption_means(start, avatars, 2)
    rng = np.random.default_rng([0xA20, 0])
    texts = [caption_with_labels(a, rng, full=1.0)[0] for a in avatars for _ in range(2)]
    with torch.no_grad():
        torch.testing.assert_close(found[1], start.encode_text(texts)[2:4].mean(0), rtol=0, atol=1e-5)
    assert torch.equal(found, caption_means(start, avatars, 2, workers=2))


def test_only_the_picture_tower_learns_and_the_result_is_its_average(data: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", data)
    before = seeded()
    after = run.run()
    assert torch.equal(after.text.groups, before.text.groups)
    assert torch.equal(after.heads.linear.weight, before.heads.linear.weight)
    assert not torch.equal(after.image.head.weight, before.image.head.weight)
    assert torch.equal(after.image.head.weight, run.average.head.weight)
    saved = TowerConditioner.from_folder(tmp_path / "run").towers
    torch.testing.assert_close(saved.image.head.weight, run.average.head.weight, rtol=1e-2, atol=1e-3)
    found = probe_around(after, [data])
    assert set(found) == {"front", "0-15", "15-35", "35-60", "photographs"} and 0 <= found["front"] <= 1


def test_a_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", data).run()
    trainer(tmp_path / "parts", data).run(until=2)
    parts = trainer(tmp_path / "parts", data).run()
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(),
                                                 strict=True))


def test_losses_fall_and_the_clock_ends_the_run(data: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", data, steps=1_000_000)
    first = sum(float(v.detach()) for v in run.losses(0).values())
    run.run(pace=Pace(1_000_000, 0.05), save_every=1_000_000)
    assert sum(float(v.detach()) for v in run.losses(0).values()) < first
    assert (tmp_path / "run/model.safetensors").is_file()


def test_a_number_for_the_host_comes_from_the_generator() -> None:
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert uniform_on_host(first) == float(torch.rand(1, generator=second))


def test_plain_is_the_picture_on_white() -> None:
    assert torch.equal(plain(torch.zeros(1, 4, 2, 2)), torch.ones(1, 3, 2, 2))


def test_changes_leave_mixed_precision() -> None:
    double = in_full_precision(lambda images: images @ images)
    with torch.autocast("cpu", torch.bfloat16):
        assert double(torch.ones(2, 2)).dtype == torch.float32
