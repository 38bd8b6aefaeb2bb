"""Launch parameters as data: the nearest shape answers, only what a kernel allows, and nothing from bad files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rodin_kernels import configs, tune
from rodin_kernels.rollout_conv import launches, triton_path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = {"points": 32, "num_warps": 4, "method": "gemm"}
SPACE = {"method": ("gemm", "library")}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder is an empty one, and nothing was read before."""
    monkeypatch.setenv("RODIN_KERNELS_CONFIGS", str(tmp_path))
    configs.forget()
    yield tmp_path
    configs.forget()


def write(folder: Path, *entries: Any) -> None:
    """A file for the CPU."""
    (folder / "cpu.json").write_text(json.dumps({"schema": 1, "entries": list(entries)}), encoding="utf-8")
    configs.forget()


def entry(channels: int, config: dict[str, Any], kernel: str = "forward") -> dict[str, Any]:
    """An entry of one operator."""
    return {"operator": "op", "kernel": kernel, "shape": {"bits": 16, "channels": channels}, "config": config}


def ask(channels: int = 32) -> dict[str, Any]:
    """What a kernel gets for a number of channels."""
    return configs.choose("op", "forward", {"channels": channels, "bits": 16}, DEFAULT, "cpu", space=SPACE)


def test_without_a_file_the_default_answers() -> None:
    assert ask() == DEFAULT and ask() is not DEFAULT


def test_the_nearest_shape_answers_and_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, entry(16, {"points": 64}), entry(128, {"num_warps": 8, "method": "library"}),
          entry(32, {"points": 128}, kernel="backward"))
    with caplog.at_level(logging.WARNING, "rodin_kernels"):
        assert ask(16) == {**DEFAULT, "points": 64}
        assert not caplog.records
        assert ask(100) == {**DEFAULT, "num_warps": 8, "method": "library"}
        assert ask(99)["num_warps"] == 8 and ask(20)["points"] == 64
    assert len(caplog.records) == 1 and "nearest shape" in caplog.text


@pytest.mark.parametrize("config", [{"points": 33}, {"points": 1 << 20}, {"num_warps": 3}, {"unknown": 1},
                                    {"method": "other"}])
def test_what_the_kernel_does_not_allow_is_left_out(folder: Path, config: dict[str, Any],
                                                    caplog: pytest.LogCaptureFixture) -> None:
    write(folder, entry(32, config), entry(512, {"points": 16}))
    assert ask() == {**DEFAULT, "points": 16}
    assert "does not allow" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "entries": []}', '{"schema": 1, "entries": [1]}',
                                  '{"schema": 1, "entries": [{"operator": "op", "kernel": "forward"}]}',
                                  '{"schema": 1, "entries": [{"operator": "op", "kernel": "forward", '
                                  '"shape": {"a": 1.5}, "config": {}}]}',
                                  '{"schema": 1, "entries": [{"operator": "op", "kernel": "forward", '
                                  '"shape": {"a": 1}, "config": {"num_warps": true}}]}'])
def test_a_damaged_file_counts_as_none(folder: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "cpu.json").write_text(text, encoding="utf-8")
    configs.forget()
    assert ask() == DEFAULT
    assert "cpu.json is ignored" in caplog.text and str(folder) not in caplog.text


def test_shapes_with_other_names_do_not_answer(folder: Path) -> None:
    write(folder, {**entry(32, {"points": 64}), "shape": {"channels": 32}})
    assert ask() == DEFAULT


@pytest.mark.parametrize("config", [{"points": 33}, {"num_warps": 5}, {"steps": 2}, {"method": "other"}])
def test_forced_parameters_that_the_kernel_does_not_allow_are_refused(config: dict[str, Any]) -> None:
    name, value = next(iter(config.items()))
    with configs.forced("op", "forward", config), pytest.raises(ValueError, match=f"op: forced {name}={value!r}"):
        ask()


def test_forced_parameters_answer_inside_alone() -> None:
    with configs.forced("op", "forward", {"points": 8}):
        assert ask() == {**DEFAULT, "points": 8}
        with configs.forced("op", "forward", {"points": 16}):
            assert ask()["points"] == 16
        assert ask()["points"] == 8
    assert ask() == DEFAULT


def test_neighbours_of_the_default_are_allowed() -> None:
    assert configs.allowed("BLOCK", 32) == (8, 16, 32, 64, 128)
    assert configs.allowed("num_warps", 4) == (1, 2, 4, 8, 16) and configs.allowed("stages", 2)[0] == 1
    assert configs.allowed("steps", 3) == (3,) and configs.allowed("method", "gemm") == ("gemm",)


def test_a_rule_with_a_tile_is_tuned_as_a_whole(folder: Path) -> None:
    rule = {"bits": [16], "tile": [8, 16, 64], "warps": 4, "stages": 3, "why": "shipped"}
    assert configs.tuned_rule("op", "forward", {"bits": 16, "channels": 32}, rule, "cpu") == rule
    write(folder, entry(32, {"tile1": 32, "warps": 8}))
    found = configs.tuned_rule("op", "forward", {"bits": 16, "channels": 32}, rule, "cpu")
    assert found == {**rule, "tile": [8, 32, 64], "warps": 8}


def test_a_tile_is_never_smaller_than_its_kernel_can_do(folder: Path) -> None:
    rule = {"tile": [32, 64], "warps": 4}
    write(folder, entry(32, {"tile0": 8}), entry(16, {"tile0": 16}))
    found = configs.tuned_rule("op", "forward", {"bits": 16, "channels": 32}, rule, "cpu", least=(16, 16))
    assert found["tile"] == [16, 64]


CONVOLUTION = {"bits": 32, "channels": 4, "outputs": 6, "side": 8}


def of_convolution(kernel: str, config: dict[str, Any]) -> dict[str, Any]:
    """An entry for planes of 4 channels to 6, 8 x 8."""
    return {"operator": "rollout_conv", "kernel": kernel, "shape": CONVOLUTION, "config": config}


def test_the_convolution_launches_what_was_tuned(folder: Path) -> None:
    planes, weight = torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 6, 12, 3, 3)
    shipped = launches.launch_rule("own_plane", planes, 6)
    assert triton_path._method("auto", planes, weight, "forward") == "gemm"
    write(folder, of_convolution("own_plane", {"tile2": 64, "warps": 8}), of_convolution("line_conv", {"tile1": 8}),
          of_convolution("forward_method", {"method": "library"}))
    assert launches.launch_rule("own_plane", planes, 6) == {**shipped, "tile": [8, 8, 64, 16], "warps": 8}
    assert launches.launch_rule("line_conv", planes, 6)["tile"] == [32, 32, 32]
    assert triton_path._method("auto", planes, weight, "forward") == "library"
    assert triton_path._method("auto", planes, weight, "weight_gradient") == "gemm"
    assert triton_path._method("gemm", planes, weight, "forward") == "gemm"


def test_the_sampler_launches_what_was_tuned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from rodin_kernels.triplane_sample import triton_path as sampler

    planes, points = torch.zeros(1, 3, 32, 8, 8), torch.zeros(2, 600, 3)
    shipped = sampler.sample_tile(32, 4)
    assert sampler.tuned("sample", shipped, 32, planes, points) == shipped
    write(folder, {"operator": "sample_triplane", "kernel": "sample", "config": {"points": 16, "warps": 2},
                   "shape": {"channels": 32, "bits": 32, "magnitude": 11}})
    assert sampler.tuned("sample", shipped, 32, planes, points) == shipped._replace(points=16, warps=2)
    assert sampler.tuned("sample", shipped, 32, planes, points[:1]) == shipped._replace(points=16, warps=2)
    assert caplog.text.count("nearest shape") == 1
    assert sampler.tuned("plane_gradient", shipped, 32, planes, points) == shipped


def test_another_default_for_the_same_shape_is_another_question(folder: Path) -> None:
    write(folder, entry(32, {"points": 64}))
    for warps in (4, 8):
        found = configs.choose("op", "forward", {"channels": 32, "bits": 16}, {**DEFAULT, "num_warps": warps}, "cpu")
        assert found == {**DEFAULT, "points": 64, "num_warps": warps}


class Fake:
    """An operator whose time and result depend on the parameters that it is given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self) -> list[torch.Tensor]:
        """One step."""
        self.seen.append(ask())
        if self.seen[-1]["num_warps"] == 16:
            raise RuntimeError("out of resources")
        return [torch.full((3,), 1.5 if self.seen[-1]["points"] == 128 else 1.0)]

    def seconds(self, step: tune.Step) -> float:
        """Fast with many points and eight warps, fastest with a result that is wrong."""
        step()
        last = self.seen[-1]
        return 1.0 / last["points"] + 0.01 * abs(last["num_warps"] - 8) + (0.1 if last["method"] == "gemm" else 0)


def test_the_search_finds_the_best_that_is_right(folder: Path) -> None:
    fake = Fake()
    found = tune.search(tune.Job("op", "tiny", fake), fake.seconds, 1e30, say=lambda line: None)
    best = {"points": 64, "num_warps": 8, "method": "library"}
    assert [e["config"] for e in found] == [best] and found[0]["after_us"] < found[0]["before_us"]
    path = folder / "cpu.json"
    tune.write(path, "a device", found)
    tune.write(path, "a device", [entry(8, {"points": 8})])
    configs.forget()
    assert len(configs.load(path)) == 2 and ask() == best


def test_the_search_ends_in_time() -> None:
    fake = Fake()
    found = tune.search(tune.Job("op", "tiny", fake), fake.seconds, 0.0, say=lambda line: None)
    assert found[0]["config"] == DEFAULT and len(fake.seen) <= 3


@pytest.mark.parametrize("name", ["_convolution", "_sampling", "_rendering"])
def test_the_steps_of_real_operators_run(name: str) -> None:
    sizes = {"_convolution": (1, 4, 6, 5), "_sampling": (4, 6, 20), "_rendering": (4, 3, 5)}
    job = getattr(tune, name)(*sizes[name], torch.float32, torch.device("cpu"))
    first, second = job.step(), job.step()
    assert len(first) >= 2 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tuning_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    error = capsys.readouterr().err
    assert "no GPU" in error and error.count("\n") == 1


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")
def test_a_rehearsal_asks_and_writes_what_can_be_read_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    assert tune.main(["--dry-run"]) == 2 and "TRITON_INTERPRET=1" in capsys.readouterr().err
    path = folder / "cpu.json"
    command = [sys.executable, "-m", "rodin_kernels.tune", "--dry-run", "--operator", "sample_triplane", "--seconds",
               "3", "--output", str(path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = configs.load(path)
    assert {entry["operator"] for entry in found} == {"sample_triplane"} and "kernels tuned" in done.stdout
    configs.forget()
    shape, config = found[0]["shape"], found[0]["config"]
    assert configs.choose("sample_triplane", found[0]["kernel"], shape, config, "cpu") == config


def test_what_ships_for_a_device_can_be_read_and_is_allowed() -> None:
    from rodin_kernels.volume_render.tiles import RAYS, WINDOWS

    shipped = sorted(Path(configs.__file__).parent.glob("*.json"))
    assert [path.stem for path in shipped] == ["nvidia-h200"]
    for path in shipped:
        for entry in configs.load(path):
            assert entry["operator"] == "render_triplane"
            found = entry["config"]
            assert found["rays"] in RAYS and found["windows"] in WINDOWS and found["num_warps"] in (1, 2, 4, 8, 16)


def test_an_h200_marches_on_fewer_warps_than_what_ships_for_its_kind(monkeypatch: pytest.MonkeyPatch,
                                                                     tmp_path: Path) -> None:
    from rodin_kernels.volume_render.tiles import Widths, decoder_tile, tuned

    monkeypatch.setenv("RODIN_KERNELS_CONFIGS", str(tmp_path))
    usual, widths = decoder_tile("sm_90", 2, Widths(32, 64, 16)), Widths(32, 64, 16)
    for key, launch in (("nvidia-h200", (64, 4, 0)), ("nvidia-h100-80gb-hbm3", (64, 8, usual.windows))):
        monkeypatch.setattr(configs, "device_key", lambda device, key=key: key)
        configs.forget()
        found = tuned(usual, "backward planes decoder", torch.device("cuda"), 2, widths, splats=True)
        assert (found.rays, found.warps, found.windows) == launch
    configs.forget()
