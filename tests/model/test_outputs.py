"""A run leaves everything or nothing, and never touches what is not its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from rodin_model.outputs import outputs_in, staged_folder


def tree(folder: Path) -> dict[str, str]:
    """Every file under `folder` with its text, hidden ones included; empty folders end in a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[name + "/"] = ""
    return found


def fill(stage: Path, text: str = "new") -> None:
    (stage / "front.png").write_text(text)
    (stage / "edit-1").mkdir()
    (stage / "edit-1" / "front.png").write_text(text)


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "b") as stage:
        fill(stage)
        assert not (tmp_path / "a" / "b").exists()
        assert stage.name.startswith(".")
    assert tree(tmp_path) == {"a/b/front.png": "new", "a/b/edit-1/front.png": "new"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_a_failing_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "a" / "b" / "c") as stage:
        fill(stage)
        raise error
    assert tree(tmp_path) == {}
    assert not (tmp_path / "a").exists()


def test_an_earlier_run_is_replaced_only_on_request(tmp_path: Path) -> None:
    for name in ("front.png", "turntable.gif", "mesh.glb", "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "002").mkdir()
    (tmp_path / "002" / "front.png").write_text("old")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="already holds 002, front.png, mesh.glb.*--overwrite"), \
            staged_folder(tmp_path):
        pass
    assert tree(tmp_path) == before
    with pytest.raises(OSError, match="disk"), staged_folder(tmp_path, overwrite=True) as stage:
        fill(stage)
        raise OSError("disk")
    assert tree(tmp_path) == before
    with staged_folder(tmp_path, overwrite=True) as stage:
        fill(stage)
    assert tree(tmp_path) == {"front.png": "new", "edit-1/front.png": "new", "notes.txt": "old"}


def test_files_of_others_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with staged_folder(tmp_path) as stage:
        fill(stage)
    assert outputs_in(tmp_path) == ["edit-1", "front.png"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("failing", range(6))
def test_a_swap_that_fails_half_way_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    for name in ("front.png", "settings.json", "turntable.webp"):
        (tmp_path / name).write_text("old")
    before, rename, calls = tree(tmp_path), os.rename, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError("no")
        rename(source, target)

    with pytest.raises(OSError, match="no") if failing < 5 else contextlib.nullcontext(), \
            staged_folder(tmp_path, overwrite=True) as stage:
        fill(stage)
        monkeypatch.setattr(os, "rename", fail_once)
    assert tree(tmp_path) == (before if failing < 5 else {"front.png": "new", "edit-1/front.png": "new"})


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(NotADirectoryError, match="x is a file; the output needs a folder"), \
            staged_folder(tmp_path / "x"):
        pass
    with pytest.raises(NotADirectoryError, match="x is a file"), staged_folder(tmp_path / "x" / "y" / "z"):
        pass
    assert tree(tmp_path) == {"x": "a file"}


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if path.name.endswith(".tmp"):
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError) as caught, staged_folder(tmp_path / "locked" / "new" / "avatar"):
        pass
    assert caught.value.filename == str(tmp_path / "locked" / "new" / "avatar")
    assert tree(tmp_path) == {"locked/": ""}
