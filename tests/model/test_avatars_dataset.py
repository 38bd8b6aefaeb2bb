"""Shards of avatars: the format, the same bytes from the same seed, resuming after a kill, the command line."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rodin_model.avatars import dataset
from rodin_model.avatars.attributes import sample_attributes
from rodin_model.avatars.dataset import SHARD, AvatarDataset, Recipe, avatar_cameras, build, main, write_shard
from rodin_model.avatars.pictures import render_avatar

TINY = Recipe(seed=1, count=3, views=2, size=16, uniform=20, surface=30)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fake_avatar(identity: int, recipe: Recipe, device: str = "cpu") -> dict[str, Tensor]:
    """Cheap stand-in for `make_avatar` with the same names."""
    images = torch.full((recipe.views, 4, 4, 4), identity % 251, dtype=torch.uint8)
    return {"images": images, "points": torch.zeros(2, 3).half()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one real shard."""
    path = tmp_path_factory.mktemp("avatars")
    build(path, TINY, progress=False)
    return path


def test_shard_holds_what_is_promised(folder: Path) -> None:
    data = AvatarDataset(folder)
    assert len(data) == 3 and data.attributes(2) == sample_attributes(1_000_002)
    expected = {"images": ((2, 16, 16, 4), torch.uint8), "depth": ((2, 16, 16), torch.float16),
                "cam2world": ((2, 4, 4), torch.float32), "intrinsics": ((2, 4), torch.float32),
                "points": ((50, 3), torch.float16), "distance": ((50,), torch.float16), "color": ((50, 3), torch.uint8)}
    for name, (shape, dtype) in expected.items():
        tensor = data.read(1, name)
        assert tuple(tensor.shape) == shape and tensor.dtype == dtype, name
    assert data.images(0).shape == (2, 16, 16, 3) and data.images(0, background=None).shape == (2, 16, 16, 4)
    assert data.depth(0).dtype == torch.float32 and data.depth(0).max() > 3
    points, distance, color = data.points(2)
    assert points.dtype == distance.dtype == color.dtype == torch.float32 and color.max() <= 1


def test_cameras_and_pictures_come_back(folder: Path) -> None:
    data = AvatarDataset(folder)
    cameras = data.cameras(1)
    for stored, made in zip(cameras, avatar_cameras(1_000_001, 2, 16), strict=True):
        assert torch.equal(stored.cam2world, made.cam2world) and stored.fx == pytest.approx(made.fx)
        assert (stored.width, stored.height, stored.cx) == (16, 16, 8)
    assert cameras[0].cam2world[0, 3].abs() < 1e-6 and cameras[0].cam2world[2, 3] > 4, "the first view is the front"
    picture = render_avatar(data.attributes(1), cameras[1])
    torch.testing.assert_close(data.images(1)[1], picture.rgb, rtol=0, atol=0.012)


def test_cameras_of_portraits_see_the_face(tmp_path: Path) -> None:
    recipe = Recipe(count=1, views=60, size=4, uniform=0, surface=0, max_yaw=50)
    yaw = [camera.yaw for camera in avatar_cameras(7, 60, 4, 50)]
    assert yaw[0] == pytest.approx(0) and 40 < max(map(abs, yaw)) <= 50 and min(yaw) < -30
    assert max(abs(camera.yaw) for camera in avatar_cameras(7, 60, 4)) > 120
    write_shard(tmp_path, 0, recipe)
    stored = [camera.yaw for camera in AvatarDataset(tmp_path).cameras(0)]
    assert stored == pytest.approx([camera.yaw for camera in avatar_cameras(0, 60, 4, 50)], abs=1e-3)
    with pytest.raises(ValueError, match="made with other settings"):
        build(tmp_path, replace(recipe, max_yaw=180), progress=False)


@pytest.mark.parametrize("recipe", [Recipe(count=2, views=0, size=16, uniform=20, surface=30),
                                    Recipe(count=2, views=2, size=16, uniform=0, surface=0)])
def test_points_alone_and_pictures_alone(recipe: Recipe, tmp_path: Path) -> None:
    assert build(tmp_path, recipe, progress=False) == [0] and build(tmp_path, recipe, progress=False) == []
    data, points = AvatarDataset(tmp_path), recipe.uniform + recipe.surface
    assert data.images(1).shape == (recipe.views, 16, 16, 3) and data.depth(1).shape == (recipe.views, 16, 16)
    assert len(data.cameras(1)) == recipe.views
    assert [tuple(t.shape) for t in data.points(1)] == [(points, 3), (points,), (points, 3)]


def test_same_seed_same_bytes_whatever_the_threads(folder: Path, tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, TINY)
    assert digest(path) == digest(folder / path.name)
    other = write_shard(tmp_path / "other", 0, Recipe(seed=2, count=3, views=2, size=16, uniform=20, surface=30))
    assert digest(other) != digest(path)


def test_worker_count_does_not_matter(tmp_path: Path) -> None:
    recipe = Recipe(seed=1, count=SHARD + 1, views=1, size=8, uniform=4, surface=4)
    assert build(tmp_path / "two", recipe, workers=2, progress=False) == [0, 1]
    alone = write_shard(tmp_path / "one", 1, recipe)
    assert digest(alone) == digest(tmp_path / "two" / alone.name)
    assert len(AvatarDataset(tmp_path / "two")) == SHARD + 1


def test_a_killed_run_leaves_whole_shards_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(count=2 * SHARD + 5, views=1)

    def killed(identity: int, *rest: object) -> dict[str, Tensor]:
        if identity == SHARD + 3:
            raise KeyboardInterrupt
        return fake_avatar(identity, recipe)

    monkeypatch.setattr(dataset, "make_avatar", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, recipe, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]
    before = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(dataset, "make_avatar", fake_avatar)
    assert build(tmp_path, recipe, progress=False) == [1, 2]
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == before
    data = AvatarDataset(tmp_path)
    assert len(data) == 2 * SHARD + 5 and int(data.read(SHARD + 3, "images")[0, 0, 0, 0]) == SHARD + 3


def test_a_disk_that_fails_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "make_avatar", fake_avatar)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        build(tmp_path, Recipe(count=2, views=1), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_larger_count_extends_the_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "make_avatar", fake_avatar)
    assert build(tmp_path, Recipe(count=3, views=1), progress=False) == [0]
    assert build(tmp_path, Recipe(count=3, views=1), progress=False) == []
    assert build(tmp_path, Recipe(count=SHARD + 1, views=1), progress=False) == [0, 1]
    assert build(tmp_path, Recipe(count=5 * SHARD, views=1), first=4, progress=False) == [4]


def test_data_sets_never_mix(folder: Path) -> None:
    with pytest.raises(ValueError, match="other settings"):
        build(folder, Recipe(seed=0, count=3), progress=False)


def test_reading_refuses_what_is_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="rodin_model.avatars.dataset"):
        AvatarDataset(tmp_path)
    dataset.save_tensors(tmp_path / "shard-00000.safetensors", {"images": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a shard of avatars"):
        AvatarDataset(tmp_path)


@pytest.mark.parametrize("arguments, named", [
    (["--count", "0"], "--count"), (["--count", "2", "--workers", "0"], "--workers"),
    (["--count", "2", "--first-shard", "-1"], "--first-shard")])
def test_bad_options_end_with_2_and_one_line(arguments: list[str], named: str, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_command_line_says_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dataset, "make_avatar", fake_avatar)
    assert main(["--output", str(tmp_path / "new"), "--count", "20"]) == 0
    assert "2 shards" in capsys.readouterr().out
    assert main(["--output", str(tmp_path / "new"), "--count", "20", "--seed", "5"]) == 2
    assert "other settings" in capsys.readouterr().err
