"""Files are whole or absent, bytes are deterministic, and a training resumes from the newest complete state."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rodin_model import checkpoints, files


def some_tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {
        "b": torch.randn(3, 5, generator=rng).T, "a": torch.randn(2, generator=rng).half(),
        "scalar": torch.tensor(7), "empty": torch.zeros(0, 4), "mask": torch.tensor([True, False, True]),
        "brain": torch.randn(4, generator=rng).bfloat16(), "bytes": torch.arange(5, dtype=torch.uint8),
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tensors_round_trip_and_other_readers_agree(tmp_path: Path) -> None:
    tensors = some_tensors()
    checkpoints.save_tensors(tmp_path / "x.safetensors", tensors, {"note": "grüß", "b": "1"})
    loaded, metadata = checkpoints.load_tensors(tmp_path / "x.safetensors")
    official = load_file(tmp_path / "x.safetensors")
    assert metadata == {"note": "grüß", "b": "1"}
    assert set(loaded) == set(official) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(official[name], tensor)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = some_tensors()
    metadata = {f"key{i}": str(i) for i in range(20)}
    checkpoints.save_tensors(tmp_path / "a", tensors, metadata)
    checkpoints.save_tensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class DyingFile:
    """A binary file that takes `budget` bytes and then fails as `error`."""

    def __init__(self, file: object, budget: int, error: BaseException) -> None:
        self.file, self.budget, self.error = file, budget, error

    def __enter__(self) -> DyingFile:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        taken = bytes(data)[: self.budget]
        self.file.write(taken)
        self.budget -= len(taken)
        if len(taken) < len(bytes(data)):
            raise self.error
        return len(taken)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")],
                         ids=["killed", "full disk"])
@pytest.mark.parametrize("old", [None, b"the old file"], ids=["new", "replacing"])
@pytest.mark.parametrize("budget", [0, 1, 9, 300, 501])
def test_a_dying_writer_leaves_the_old_file_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int,
                                                    old: bytes | None, error: BaseException) -> None:
    path = tmp_path / "x.safetensors"
    if old is not None:
        path.write_bytes(old)
    real_open = open
    monkeypatch.setattr(files, "open", lambda *a: DyingFile(real_open(*a), budget, error), raising=False)
    with pytest.raises(type(error)):
        checkpoints.save_tensors(path, some_tensors())
    assert names_in(tmp_path) == ([path.name] if old else [])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_flush_or_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       step: str) -> None:
    checkpoints.write_bytes(tmp_path / "x", b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output"):
        checkpoints.write_bytes(tmp_path / "x", b"new")
    assert names_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_file_over_the_limit_of_the_system(tmp_path: Path) -> None:
    limits = pytest.importorskip("resource")
    soft, hard = limits.getrlimit(limits.RLIMIT_FSIZE)
    limits.setrlimit(limits.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save_tensors(tmp_path / "big", {"x": torch.zeros(10_000)})
    finally:
        limits.setrlimit(limits.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 4, 8, 60, -1])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.save_tensors(path, some_tensors())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="x.safetensors is not a whole safetensors file"):
        checkpoints.load_tensors(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        checkpoints.load_tensors(tmp_path / "nothing")


def test_wrong_shapes_are_found_in_the_header(tmp_path: Path) -> None:
    checkpoints.save_tensors(tmp_path / "x", {"w": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"'w' has shape \(2, 3\); needed is \(3, 2\)"):
        checkpoints.load_tensors(tmp_path / "x", shapes={"w": (3, 2)})
    with pytest.raises(ValueError, match="lacks the tensor 'v'"):
        checkpoints.load_tensors(tmp_path / "x", shapes={"w": (2, 3), "v": (1,)})
    with pytest.raises(ValueError, match="'w' that the model does not have"):
        checkpoints.load_tensors(tmp_path / "x", shapes={})


def test_what_cannot_be_stored_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must be text"):
        checkpoints.save_tensors(tmp_path / "x", {}, {"a": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="complex64"):
        checkpoints.save_tensors(tmp_path / "x", {"a": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(TypeError, match="meta"):
        checkpoints.save_tensors(tmp_path / "x", {"a": torch.zeros(1, device="meta")})
    assert names_in(tmp_path) == []


def test_json_is_strict(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "x.json", {"ö": [1, 2.5, None]})
    assert checkpoints.read_json(tmp_path / "x.json") == {"ö": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        checkpoints.write_json(tmp_path / "y.json", float("nan"))
    (tmp_path / "bad.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="bad.json is not valid JSON"):
        checkpoints.read_json(tmp_path / "bad.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(files.MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match="huge.json has"):
        checkpoints.read_json(tmp_path / "huge.json")


def test_a_component_round_trips_in_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    checkpoints.save_component(tmp_path, {"width": 8}, model.state_dict(), dtype=torch.float16, max_bytes=200)
    assert names_in(tmp_path) == ["config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                  "model-00003-of-00003.safetensors"]
    assert max(path.stat().st_size for path in tmp_path.glob("model*")) < 200 + 700
    assert checkpoints.read_config(tmp_path) == {"width": 8}
    other = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    checkpoints.load_component(tmp_path, other)
    for name, tensor in model.state_dict().items():
        assert other.state_dict()[name].dtype == tensor.dtype
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    checkpoints.save_component(tmp_path, {"width": 8}, model.state_dict())
    assert names_in(tmp_path) == ["config.json", "model.safetensors"]


def test_an_incomplete_component_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(8, 8)
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        checkpoints.load_component(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="config.json"):
        checkpoints.read_config(tmp_path)
    checkpoints.save_component(tmp_path, {}, model.state_dict(), max_bytes=100)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="do not belong together"):
        checkpoints.load_component(tmp_path, model)
    checkpoints.save_component(tmp_path, {}, torch.nn.Linear(4, 8).state_dict())
    with pytest.raises(ValueError, match=r"'weight' has shape \(8, 4\); needed is \(8, 8\)"):
        checkpoints.load_component(tmp_path, model)


def test_states_keep_the_newest_two(tmp_path: Path) -> None:
    assert checkpoints.load_state(tmp_path / "new") is None
    for step in (5, 10, 15):
        checkpoints.save_state(tmp_path, step, {"w": torch.full((2,), float(step))}, {"loss": [0.5, step], "seed": 3})
    assert names_in(tmp_path) == ["manifest.json", "state-000000010.safetensors", "state-000000015.safetensors"]
    loaded = checkpoints.load_state(tmp_path)
    assert loaded is not None
    step, tensors, extra = loaded
    assert (step, extra) == (15, {"loss": [0.5, 15], "seed": 3})
    assert torch.equal(tensors["w"], torch.tensor([15.0, 15.0]))


@pytest.mark.parametrize("dies_in", ["state", "manifest"])
def test_a_killed_save_resumes_from_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     dies_in: str) -> None:
    checkpoints.save_state(tmp_path, 5, {"w": torch.zeros(1)})

    def replace(source: str, target: Path) -> None:
        if Path(target).name.startswith(dies_in):
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_state(tmp_path, 10, {"w": torch.ones(1)})
    monkeypatch.undo()
    loaded = checkpoints.load_state(tmp_path)
    assert loaded is not None
    assert loaded[0] == 5
    checkpoints.save_state(tmp_path, 10, {"w": torch.ones(1)})
    loaded = checkpoints.load_state(tmp_path)
    assert loaded is not None
    assert loaded[0] == 10


def test_a_state_cut_short_by_hand_is_passed_over(tmp_path: Path) -> None:
    checkpoints.save_state(tmp_path, 1, {"w": torch.zeros(1)})
    checkpoints.save_state(tmp_path, 2, {"w": torch.ones(1)})
    newest = tmp_path / "state-000000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    loaded = checkpoints.load_state(tmp_path)
    assert loaded is not None
    assert loaded[0] == 1
    checkpoints.write_json(tmp_path / "manifest.json", {"states": [{"step": 1, "file": "../../x", "bytes": 3}]})
    with pytest.raises(ValueError, match="no training state"):
        checkpoints.load_state(tmp_path)
