"""The refiner: nothing changes before training, any size and dtype, files, and the ways in which people use it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rodin_model import generate
from rodin_model.cameras import Camera
from rodin_model.checkpoints import tensor_shapes
from rodin_model.config import PRESETS, RefinerConfig
from rodin_model.decoder import save_decoder
from rodin_model.pipeline import RodinPipeline
from rodin_model.refiner import Refiner, enlarge, look, over, smaller
from rodin_model.train import assemble
from rodin_model.triplane import Avatar

CONFIG = RefinerConfig(features=4, width=8, growth=4, dense=1, detail=4)
MARK = b"trainedAlgorithmicMedia"


def make_refiner(config: RefinerConfig = CONFIG, trained: bool = True) -> Refiner:
    """A refiner of one seed; `trained`: its last layer is random, too, so that it changes pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        refiner = Refiner(config)
        if trained:
            torch.nn.init.normal_(refiner.head.weight, std=0.05)
            torch.nn.init.normal_(refiner.head.bias, std=0.05)
    return refiner.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def refined_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a refiner."""
    folder = tmp_path_factory.mktemp("models") / "refined"
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    RodinPipeline(pipe.conditioner, pipe.prior, pipe.base, pipe.upsampler, pipe.decoder, pipe.conventions, pipe.index,
                  make_refiner()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def avatar(tiny_model_dir: Path) -> Avatar:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a man", generator=torch.Generator().manual_seed(1)).avatars[0]


@pytest.mark.parametrize(("scale", "shrink"), [(2, 2), (2, 1), (3, 2), (1, 4)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 9), (3, 32)])
def test_untrained_it_only_enlarges_at_any_size(scale: int, shrink: int, size: tuple[int, int]) -> None:
    refiner = Refiner(RefinerConfig(scale, shrink, 0, 8, 4, 1, 1, 4))
    seen = torch.randn(2, 5, *size)
    out = refiner(seen)
    assert out.shape == (2, 4, size[0] * scale, size[1] * scale)
    assert torch.equal(out, enlarge(seen[:, :4], scale))


def test_padding_of_odd_sizes_changes_nothing_inside() -> None:
    refiner, seen = make_refiner(), torch.randn(1, 9, 31, 40)
    odd, even = refiner(seen), refiner(torch.nn.functional.pad(seen, (0, 0, 0, 1)))[..., :62, :]
    # the enlargement repeats the last row, the network sees zeros either way
    assert torch.allclose(odd[..., :60, :], even[..., :60, :], atol=1e-5)


def test_samples_do_not_see_each_other() -> None:
    refiner, seen = make_refiner(), torch.randn(3, 9, 12, 10)
    assert torch.allclose(refiner(seen)[1:2], refiner(seen[1:2]), atol=1e-6)
    assert float((refiner(seen)[0] - refiner(seen)[1]).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_of_what_is_seen(dtype: torch.dtype) -> None:
    refiner, seen = make_refiner(), torch.rand(1, 9, 8, 8)
    out = refiner(seen.to(dtype))
    assert out.dtype == dtype
    assert torch.allclose(out.float(), refiner(seen), atol=0.05)
    assert torch.equal(out, refiner(seen.to(dtype)))


def test_every_input_channel_matters_and_gradients_reach_every_weight() -> None:
    refiner = make_refiner().train().requires_grad_()
    seen = torch.randn(1, 9, 8, 8, requires_grad=True)
    refiner(seen).square().sum().backward()
    assert seen.grad is not None
    assert bool((seen.grad.abs().amax((0, 2, 3)) > 0).all())
    assert all(p.grad is not None and bool(p.grad.any()) for p in refiner.parameters())


@pytest.mark.parametrize(("seen", "error", "message"), [
    (torch.zeros(1, 9, 4, 4, dtype=torch.int64), TypeError, "floating-point"),
    (torch.zeros(9, 4, 4), ValueError, r"\[B, 9, H, W\]"),
    (torch.zeros(1, 5, 4, 4), ValueError, r"got \[1, 5, 4, 4\]"),
    (torch.zeros(1, 9, 0, 4), ValueError, "nothing empty"),
])
def test_what_it_cannot_see_is_named(seen: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_refiner()(seen)


@pytest.mark.parametrize("name", ["scale", "blocks", "width"])
def test_absurd_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"the refiner's {name} must lie between 1 and"):
        RefinerConfig(**{name: 10_000})


def test_the_files_are_half_precision_and_the_shipped_size_is_bounded(tmp_path: Path) -> None:
    refiner = make_refiner(PRESETS["mini"].refiner)
    assert sum(p.numel() for p in refiner.parameters()) <= 190_000
    refiner.save(tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 400_000
    copy = Refiner.from_folder(tmp_path)
    assert copy.config == refiner.config
    seen = torch.rand(1, 21, 8, 8)
    assert torch.allclose(copy(seen), refiner(seen), atol=2e-3)
    assert set(tensor_shapes(tmp_path / "model.safetensors")) == set(refiner.state_dict())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    make_refiner().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (({"width": 16}, "stem"), ({"colour": 1}, "RefinerConfig has no colour")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            Refiner.from_folder(tmp_path)


def test_it_sees_what_was_rendered_and_what_the_planes_hold(avatar: Avatar) -> None:
    camera = Camera.orbit(20, 5, 24)
    seen, rendered = look(avatar, camera, 4)
    assert seen.shape == (9, 24, 24)
    assert torch.equal(seen[:3], rendered.rgb.permute(2, 0, 1))
    assert torch.equal(seen[3], rendered.opacity)
    solid = rendered.opacity > 0.9
    # the ball's front is nearer than its centre, by at most its radius and what the noise of the planes adds
    assert 0 < float(seen[4][solid].mean()) < 1
    assert bool((seen[5:, rendered.opacity == 0] == 0).all()) and bool((seen[5:, solid].abs().amax(1) > 0).all())
    hazy = (rendered.opacity > 0.05) & (rendered.opacity < 0.9)
    opacity = rendered.opacity[hazy][:, None]
    origins, directions = (ray.view(24, 24, 3)[hazy] for ray in camera.rays())
    points = origins + rendered.depth[hazy][:, None] / opacity * directions
    assert len(points) > 3 and torch.allclose(seen[5:, hazy].T, avatar.features(points) * opacity, atol=1e-4)


def test_features_are_zero_outside_the_box(avatar: Avatar) -> None:
    found = avatar.features(torch.tensor([[0.0, 0.0, 0.1], [0.0, 1.01, 0.0]]))
    assert found.shape == (2, 4)
    assert bool(found[0].any()) and not bool(found[1].any())


def test_untrained_a_refined_picture_is_the_small_one_enlarged(avatar: Avatar) -> None:
    camera = Camera.orbit(0, 5, 32)
    plain = avatar.render(camera.resized(16), background=(0.2, 0.5, 0.9))
    refined = avatar.render(camera, background=(0.2, 0.5, 0.9), refine=make_refiner(trained=False))
    assert torch.allclose(refined.rgb, enlarge(plain.rgb.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0), atol=1e-5)
    assert torch.allclose(refined.depth, enlarge(plain.depth[None, None], 2)[0, 0])
    assert torch.allclose(refined.opacity, enlarge(plain.opacity[None, None], 2)[0, 0])


@pytest.mark.parametrize("size", [33, 32, 1])
def test_refined_pictures_have_the_size_asked_for(avatar: Avatar, size: int) -> None:
    seen = avatar.render(Camera.orbit(0, 5, size), refine=make_refiner())
    assert seen.rgb.shape == (size, size, 3)
    assert seen.depth.shape == seen.opacity.shape == (size, size)
    assert float(seen.rgb.min()) >= 0 and float(seen.rgb.max()) <= 1


def test_the_small_camera_looks_at_the_same_places() -> None:
    camera = Camera(torch.eye(4), 30.0, 20.0, 10.0, 7.0, 33, 21)
    small = smaller(camera, 2)
    assert (small.width, small.height) == (17, 11)
    big = camera.rays()[1].view(21, 33, 3)
    mean = (big[4:6, 8:10] / big[4:6, 8:10, 2:]).mean((0, 1))
    own = small.rays()[1].view(11, 17, 3)[2, 4]
    assert torch.allclose(own / own[2], mean, atol=1e-6)


def test_the_background_shows_through_where_opacity_is_low(avatar: Avatar) -> None:
    refiner, camera = make_refiner(), Camera.orbit(0, 5, 32)
    black, white = (avatar.render(camera, background=b, refine=refiner) for b in (0.0, 1.0))
    rgba = torch.cat([black.rgb, black.opacity[..., None]], -1).permute(2, 0, 1)
    assert torch.allclose(white.rgb, over(rgba, 1.0).permute(1, 2, 0), atol=1e-6)
    only = avatar.render(camera, outputs=("rgb",), refine=refiner)
    assert only.depth is None and only.opacity is None and torch.equal(only.rgb, white.rgb)


def test_what_cannot_be_refined_is_named(avatar: Avatar) -> None:
    with pytest.raises(ValueError, match="rgb, depth and opacity; got normals"):
        avatar.render(Camera.orbit(0, 5, 16), outputs=("rgb", "normals"), refine=make_refiner())
    with pytest.raises(ValueError, match="reads 16 plane features; the avatar's planes give 4"):
        avatar.render(Camera.orbit(0, 5, 16), refine=make_refiner(RefinerConfig()))


def test_a_model_keeps_its_refiner(refined_model_dir: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert json.loads((refined_model_dir / "model_index.json").read_text())["refiner"] is True
    pipe = RodinPipeline.from_pretrained(refined_model_dir)
    assert pipe.required_refiner().config == CONFIG
    with pytest.raises(ValueError, match="the model tiny has no refiner; .*assemble --refiner"):
        RodinPipeline.from_pretrained(tiny_model_dir).required_refiner()
    shutil.copytree(refined_model_dir, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "refiner")
    with pytest.raises(FileNotFoundError, match="refiner"):
        RodinPipeline.from_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="reads 16 plane features; this model has 4"):
        RodinPipeline(pipe.conditioner, pipe.prior, pipe.base, pipe.upsampler, pipe.decoder, pipe.conventions,
                      pipe.index, make_refiner(RefinerConfig()))


def test_parts_are_assembled_with_a_refiner(tiny_model_dir: Path, tmp_path: Path) -> None:
    make_refiner().save(tmp_path / "refiner")
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    save_decoder(tmp_path / "decoder", pipe.decoder, pipe.base.mean, pipe.conventions)
    parts = [f"--{name}={tiny_model_dir / name}" for name in ("towers", "prior", "base", "upsampler")]
    parts += [f"--decoder={tmp_path / 'decoder'}"]
    assert assemble.main([*parts, f"--refiner={tmp_path / 'refiner'}", f"--output={tmp_path / 'with'}"]) == 0
    assert RodinPipeline.from_pretrained(tmp_path / "with").refiner is not None
    assert assemble.main([*parts, f"--output={tmp_path / 'without'}"]) == 0
    assert RodinPipeline.from_pretrained(tmp_path / "without").refiner is None


@pytest.fixture
def command(refined_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with the tiny refined model; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: str, model: Path = refined_model_dir) -> int:
        return generate.main(["a man", "--seed", "3", "--views", "3", "--steps", "2", "--quiet", "--model", str(model),
                              "--device", "cpu", *arguments])

    return run


def test_refined_outputs_on_request(command: Any) -> None:
    assert command("--refine", "--size", "48", "--output-dir", "refined") == 0
    assert command("--size", "48", "--output-dir", "plain") == 0
    pictures = {}
    for name in ("refined", "plain"):
        assert json.loads(Path(name, "settings.json").read_text())["refine"] == (name == "refined")
        with Image.open(f"{name}/front.png") as front, Image.open(f"{name}/turntable.webp") as table:
            assert front.size == table.size == (48, 48) and table.n_frames == 3
            pictures[name] = np.asarray(front).astype(int)
        assert all(MARK in path.read_bytes() for path in Path(name).iterdir())
    assert np.abs(pictures["refined"] - pictures["plain"]).mean() > 2
    assert Path("refined/avatar.safetensors").read_bytes() == Path("plain/avatar.safetensors").read_bytes()


def test_refined_pictures_are_larger_unless_a_size_is_given() -> None:
    assert [generate.read_options(["x", *more])[0].size for more in ([], ["--refine"], ["--refine", "--size", "64"])
            ] == [256, 512, 64]


def test_a_model_without_a_refiner_says_so(command: Any, tiny_model_dir: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--refine", model=tiny_model_dir) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no refiner" in said and "--refiner" in said
    assert not Path("avatar").exists()
