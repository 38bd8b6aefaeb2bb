"""The command: what it writes, what it says, and that it leaves nothing behind when it fails."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rodin_model import files, generate, outputs
from rodin_model.triplane import Avatar

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["avatar.safetensors", "front.png", "settings.json", "turntable.webp"]
MARK = b"trainedAlgorithmicMedia"
SMALL = ["--size", "24", "--views", "3", "--steps", "2"]


pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
def command(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with the tiny model, in an empty folder, small and quick; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: str, model: Path = tiny_model_dir) -> int:
        return generate.main([*arguments, "--model", str(model), "--device", "cpu", *SMALL])

    return run


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_words_to_files(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("a bearded man", "--seed", "3", "--output-dir", "out") == 0
    assert listing(tmp_path) == [f"out/{name}" for name in NAMES]
    with Image.open("out/front.png") as front, Image.open("out/turntable.webp") as table:
        assert front.size == table.size == (24, 24)
        assert table.n_frames == 3
        assert len(front.getcolors(10_000) or []) > 8
    for name in NAMES:
        data = Path("out", name).read_bytes()
        assert MARK in data
        assert (b"bearded" in data) == (name == "settings.json")
    settings = json.loads(Path("out/settings.json").read_text())
    assert (settings["prompt"], settings["seed"], settings["num_inference_steps"]) == ("a bearded man", 3, 2)
    assert Avatar.load("out/avatar.safetensors").planes.shape == (3, 4, 16, 16)
    said = capsys.readouterr()
    assert "out/front.png" in said.out
    assert "seed 3, tiny on cpu" in said.out


def test_the_same_seed_gives_the_same_bytes(command: Any) -> None:
    for name in ("a", "b"):
        assert command("a man", "--seed", "3", "--output-dir", name, "--quiet") == 0
    assert command("a man", "--seed", "4", "--output-dir", "c", "--quiet") == 0
    for name in listing(Path("a")):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert Path("a/front.png").read_bytes() != Path("c/front.png").read_bytes()


def test_settings_are_embedded_on_request(command: Any) -> None:
    assert command("a bearded man", "--seed", "77", "--embed-settings", "--turntable", "gif", "--output-dir", "x") == 0
    for name in ("front.png", "turntable.gif", "avatar.safetensors"):
        data = Path("x", name).read_bytes()
        assert b"a bearded man" in data
        assert MARK in data


def test_count_and_edits_make_folders_and_a_sheet(command: Any) -> None:
    assert command("--count", "2", "--seed", "5", "--edit", "blonde hair", "--edit", "glasses", "--output-dir", "x",
                   "--quiet") == 0
    places = [f"{i:03d}/{edit}" for i in (0, 1) for edit in ("", "edit-1/", "edit-2/")]
    assert listing(Path("x")) == sorted(["sheet.png", *(place + name for place in places for name in NAMES)])
    assert MARK in Path("x/sheet.png").read_bytes()
    settings = json.loads(Path("x/001/edit-2/settings.json").read_text())
    assert (settings["seed"], settings["edits"], settings["prompt"]) == (6, ["blonde hair", "glasses"], None)
    assert command("--seed", "6", "--output-dir", "y", "--quiet") == 0
    assert Path("y/front.png").read_bytes() == Path("x/001/front.png").read_bytes()
    assert Path("x/001/front.png").read_bytes() != Path("x/001/edit-2/front.png").read_bytes()


def test_an_avatar_from_a_file_is_edited(command: Any) -> None:
    assert command("a man", "--seed", "1", "--output-dir", "x", "--quiet") == 0
    assert command("--avatar", "x/avatar.safetensors", "--edit", "black hair -> blonde hair", "--edit", "sunglasses",
                   "--edit-strength", "1.5", "--output-dir", "y", "--quiet") == 0
    places = [f"{edit}{name}" for edit in ("", "edit-1/", "edit-2/") for name in NAMES]
    assert listing(Path("y")) == sorted(["sheet.png", *places])
    settings = json.loads(Path("y/edit-2/settings.json").read_text())
    assert settings["edits"] == ["black hair -> blonde hair", "sunglasses"] and settings["edit_strength"] == 1.5
    assert settings["avatar"] == "avatar.safetensors" and settings["prompt"] is None
    fronts = [Path("y", place, "front.png").read_bytes() for place in ("", "edit-1", "edit-2")]
    assert fronts[0] == Path("x/front.png").read_bytes() and len(set(fronts)) == 3
    edited, first = (Avatar.load(f"{place}/avatar.safetensors").metadata["z"] for place in ("y/edit-2", "x"))
    assert not torch.equal(edited, first)


def test_a_portrait_to_files(command: Any) -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture.save("me.jpg", exif=exif)
    assert command("--image", "me.jpg", "--output-dir", "x") == 0
    assert json.loads(Path("x/settings.json").read_text())["image"] == "me.jpg"
    assert all(b"where I live" not in path.read_bytes() for path in Path("x").iterdir())
    assert command("--image", "me.jpg", "--match", "always", "--output-dir", "y") == 0
    assert abs(json.loads(Path("y/settings.json").read_text())["matched"]["yaw"]) <= 77.5


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_a_mesh_on_request(command: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rodin_model.mesh.extract_mesh.__defaults__", (24, 5.0))
    monkeypatch.setattr("rodin_model.mesh.export.__kwdefaults__", {"resolution": 24, "threshold": 5.0, "mark": None})
    assert command("a man", "--seed", "1", "--mesh", kind, "--output-dir", "x") == 0
    data = Path("x", f"mesh.{kind}").read_bytes()
    assert MARK in data
    assert b"tiny" in data


def test_quiet_says_nothing(command: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("a man", "--quiet") == 0
    assert capfd.readouterr() == ("", "")
    assert listing(Path()) == [f"avatar/{name}" for name in NAMES]


def bomb() -> bytes:
    """A PNG that claims 20,000 x 10,000 pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("arguments", "message"), [
    ([""], "the prompt is empty"),
    (["   "], "the prompt is empty"),
    (["x" * 10_000], "the prompt has 10000 characters; at most 1000 are read"),
    (["a man", "--image", "bomb.png"], "give a prompt or --image, not both"),
    (["--image", "notes.png"], "notes.png is not a picture"),
    (["--image", "bomb.png"], "bomb.png has too many pixels; at most 50 megapixels"),
    (["--image", "nobody.png"], "there is no file nobody.png"),
    (["a man", "--edit", " "], "--edit is empty"),
    (["a man", "--crop", "0", "0", "64"], "--crop needs --image"),
    (["a man", "--match", "always"], "--match needs --image"),
    (["a man", "--edit", "black hair -> "], "--edit is empty"),
    (["a man", "--avatar", "notes.png", "--edit", "a hat"], "give --avatar or a prompt or --image, not two of them"),
    (["--avatar", "notes.png"], "--avatar needs --edit"),
    (["--avatar", "nobody.safetensors", "--edit", "a hat"], "there is no file nobody.safetensors"),
    (["--avatar", "notes.png", "--edit", "a hat"], "notes.png"),
    (["a man", "--output-dir", "notes.png"], "notes.png is a file"),
    (["a man", "--output-dir", "notes.png/sub"], "notes.png is a file"),
    (["a man", "--output-dir", "full"], "full already holds front.png; add --overwrite"),
    (["a man", "--count", "many"], "--count: needs a whole number from 1 to 1000; got 'many'"),
    (["a man", "--count", "0"], "--count: needs a whole number"),
    (["a man", "--size", "100000"], "--size: needs a whole number from 16 to 2048"),
    (["a man", "--guidance", "nan"], "--guidance: needs a number from 0 to 100"),
    (["a man", "--mesh", "fbx"], "invalid choice"),
    (["a man", "--frobnicate"], "unrecognized arguments: --frobnicate"),
    (["a", "man"], "unrecognized arguments: man"),
    (["a man", "--model", "nowhere"], "there is no model in nowhere"),
    (["a man", "--steps", "900"], "steps must lie between 1 and 50; got 900"),
    (["a man", "--device", "abacus"], "this machine has no device 'abacus'"),
])
def test_bad_input_is_one_line_and_leaves_nothing(command: Any, tiny_model_dir: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str], arguments: list[str],
                                                  message: str) -> None:
    Path("notes.png").write_text("dear diary")
    Path("bomb.png").write_bytes(bomb())
    Path("full").mkdir()
    Path("full/front.png").write_text("old")
    before = listing(tmp_path)
    defaults = ["--model", str(tiny_model_dir), "--device", "cpu", *SMALL]
    code = generate.main([*defaults, *arguments])
    said = capsys.readouterr()
    line = said.err.rpartition("\r")[2].strip()
    assert code == 2
    assert line.startswith("error: ")
    assert message in line
    assert "\n" not in line
    assert said.out == ""
    assert listing(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.png", "full", "notes.png"]


@pytest.mark.parametrize("budget", [0, 1000, 9000])
def test_a_full_disk_leaves_nothing(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str], budget: int) -> None:
    real_open, left = open, [budget]

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            size = memoryview(data).nbytes
            left[0] -= size
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def limited(path: Any, mode: str) -> Any:
        real_open(path, mode).close()
        return Full(path, "w")

    monkeypatch.setattr(files, "open", limited, raising=False)
    assert command("a man", "--output-dir", "x", "--quiet") == 2
    assert capsys.readouterr().err == "error: the disk is full; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.files, "write_json", interrupt)
    assert command("a man", "--output-dir", "x/y", "--quiet") == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_run_leaves_nothing(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs.files, "write_json", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            generate.main(["a man", "--model", str(tiny_model_dir), "--output-dir", str(tmp_path / "x"), "--quiet",
                           "--device", "cpu", *SMALL])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_the_middle_leaves_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = tmp_path / "work"
    work.mkdir()
    with open(log, "w") as errors:
        run = subprocess.Popen(
            [sys.executable, "-m", "rodin_model.generate", "a man", "--model", str(tiny_model_dir), "--output-dir",
             str(work / "x"), "--size", "128", "--views", "360", "--device", "cpu"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        end = time.monotonic() + 180
        while "turntable" not in log.read_text() and time.monotonic() < end and run.poll() is None:
            time.sleep(0.05)
        assert [path.name[:3] for path in work.iterdir()] == [".x."]
        # not SIGINT: shells start background jobs with it ignored, and children inherit that
        run.send_signal(signal.SIGTERM)
        out, _ = run.communicate(timeout=300)
    assert run.returncode == 143, log.read_text()
    assert "Traceback" not in log.read_text()
    assert out == ""
    assert list(work.iterdir()) == []


def test_an_earlier_run_is_replaced_on_request(command: Any) -> None:
    assert command("a man", "--seed", "1", "--count", "2", "--output-dir", "x", "--quiet") == 0
    Path("x/notes.txt").write_text("mine")
    assert command("a man", "--seed", "2", "--output-dir", "x", "--quiet") == 2
    assert command("a man", "--seed", "2", "--output-dir", "x", "--quiet", "--overwrite") == 0
    assert listing(Path("x")) == ["avatar.safetensors", "front.png", "notes.txt", "settings.json", "turntable.webp"]


def test_missing_parts_of_a_model_are_named(command: Any, tiny_model_dir: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / "base" / "model.safetensors").unlink()
    assert command("a man", "--output-dir", "x", model=model) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_wrong_arguments_are_answered_before_anything_heavy_is_loaded() -> None:
    code = ("import sys; from rodin_model.generate import main; code = main(['']); "
            "assert code == 2 and not {'torch', 'numpy', 'PIL'} & set(sys.modules), code")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_front_is_the_first_view_of_the_turntable(command: Any) -> None:
    assert command("a man", "--seed", "1", "--turntable", "png", "--output-dir", "x", "--quiet") == 0
    with Image.open("x/front.png") as front, Image.open("x/turntable.png") as table:
        assert front.convert("RGB").tobytes() == table.convert("RGB").tobytes()
        table.seek(1)
        assert front.convert("RGB").tobytes() != table.convert("RGB").tobytes()
