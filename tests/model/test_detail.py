"""The face at full size: windows that lie where they say, nothing changed outside, and a stage that learns them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rodin_kernels import RODIN, TinyDecoder, sample_triplane
from rodin_model.avatars.dataset import Recipe, build
from rodin_model.config import PRESETS, DetailConfig, NoiseConfig, PlanesConfig, UNetConfig
from rodin_model.detail import Detail
from rodin_model.fit import FitConfig
from rodin_model.fit_data import BEHIND, EVERYWHERE, FEATURES, Cloud, draw_inside
from rodin_model.train import detail as command
from rodin_model.train.denoiser import DenoiserSettings, statistics
from rodin_model.train.detail import DetailLosses, Windows, seen_windows, window_box, window_points
from rodin_model.train.latents import Latents
from rodin_model.train.upsample import Conditions
from rodin_model.upsampler import Upsampler

CONFIG = DetailConfig(window=6, corner=(5, 6, 8), maps=5, width=8, layers=2, embedding=8, border=2)
WHOLE = DetailConfig(window=16, corner=(0, 0, 0), patch=2, maps=5, width=8, layers=2, embedding=8, border=0)
UNET = UNetConfig(resolution=16, in_channels=8, out_channels=4, channels=8, channel_mult=(1,), blocks=(1,),
                  embedding=8, groups=4)
NOISE = NoiseConfig(steps=10, prediction="sample")


def make(seed: int = 0) -> Detail:
    torch.manual_seed(seed)
    module = Detail(CONFIG, 4, 16, RODIN)
    for parameter in module.parameters():  # zero-initialised layers would hide everything
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_a_new_one_changes_nothing() -> None:
    planes, z = torch.randn(2, 3, 4, 16, 16), torch.randn(2, 512)
    assert torch.equal(Detail(CONFIG, 4, 16, RODIN)(planes, planes, z), planes)


def test_only_the_windows_change_and_their_border_fades() -> None:
    planes, z = torch.randn(2, 3, 4, 16, 16), torch.randn(2, 512) / 512**0.5
    given = planes.clone()
    changed = (make()(planes, torch.randn_like(planes), z) - planes).abs().amax((0, 2))
    assert torch.equal(planes, given)
    for plane, (columns, rows) in enumerate((("x", "y"), ("z", "x"), ("y", "z"))):
        top, left = (CONFIG.corner["xyz".index(axis)] for axis in (rows, columns))
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[top:top + 6, left:left + 6] = True
        assert bool((changed[plane][inside] > 0).all()) and not changed[plane][~inside].any()
    cut = make().fade
    assert cut[0, 0] == 0.0625 and cut[1, 3] == 0.75 and cut[2, 3] == 1.0 and torch.equal(cut, cut.flip(0, 1))


def test_a_whole_plane_can_be_one_window() -> None:
    torch.manual_seed(0)
    module = Detail(WHOLE, 4, 16, RODIN)
    assert module.where.shape == (3, 5, 8, 8) and bool((module.fade == 1).all())
    torch.nn.init.normal_(module.head.weight)
    planes = torch.randn(1, 3, 4, 16, 16)
    added = module(planes, planes, torch.randn(1, 512) / 512**0.5) - planes
    assert bool((added != 0).all())
    quarters = added[0, 0, 0].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)  # four texels of a patch are drawn apart
    assert float(quarters.detach().std(-1).min()) > 0


def test_z_and_the_planes_both_steer_it() -> None:
    module, planes = make(), torch.randn(1, 3, 4, 16, 16)
    z, other = torch.randn(2, 1, 512) / 512**0.5
    first = module(planes, planes, z) - planes
    assert not torch.allclose(first, module(planes, planes, other) - planes, atol=1e-3)
    assert not torch.allclose(first, module(planes, planes * 2, z) - planes, atol=1e-3)
    assert not torch.allclose(first[:, 0], first[:, 1], atol=1e-3)


def test_windows_are_planes_whose_box_is_a_part_of_the_avatars() -> None:
    module, planes = make(), torch.randn(1, 3, 4, 16, 16)
    low, high = torch.tensor(window_box(CONFIG, 16)).T
    assert torch.allclose(low, torch.tensor([5, 6, 8]) / 8 - 1) and torch.allclose(high - low, torch.tensor(0.75))
    points = low + (high - low) * (0.1 + 0.8 * torch.rand(1, 50, 3))  # half a texel from the border at least
    whole = sample_triplane(planes, points, layout=RODIN, padding_mode="zeros")
    part = sample_triplane(module.cut(planes), (points - low) / (high - low) * 2 - 1, layout=RODIN,
                           padding_mode="zeros")
    assert torch.allclose(whole, part, atol=1e-5)


def test_an_upsampler_keeps_it_on_disk(tmp_path: Path) -> None:
    model = Upsampler(UNET, NOISE, 4, (CONFIG, WHOLE)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save(tmp_path, dtype=torch.float32)
    again = Upsampler.from_folder(tmp_path)
    assert again.detail_configs() == (CONFIG, WHOLE)
    x, t, z = torch.randn(2, 3, 4, 16, 16), torch.tensor([9, 3]), torch.randn(2, 512)
    assert torch.equal(model.predict(x, t, z, x), again.predict(x, t, z, x))
    plain = Upsampler(UNET, NOISE, 4).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "details" not in name})
    assert not torch.allclose(model.predict(x, t, z, x), plain.predict(x, t, z, x), atol=1e-3)


@pytest.mark.parametrize(("config", "noise", "words"), [
    (dataclasses.replace(CONFIG, corner=(11, 6, 8)), NOISE, r"windows of 6 texels from \(11, 6, 8\) on"),
    (dataclasses.replace(CONFIG, corner=(1, 2)), NOISE, "do not fit into planes of 16"),
    (dataclasses.replace(CONFIG, patch=4), NOISE, "in patches of 4"),
    (CONFIG, dataclasses.replace(NOISE, prediction="epsilon"), 'prediction must be "sample"'),
])
def test_what_cannot_be_is_refused(config: DetailConfig, noise: NoiseConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Upsampler(UNET, noise, 4, (config,))


def test_points_are_drawn_inside_and_near() -> None:
    points = torch.rand(2, 4000, 3) * 2 - 1
    cloud = Cloud(points.half(), (points.norm(dim=-1) - 0.6).half(), (points.abs() * 255).to(torch.uint8))
    box = ((-0.5, 0.5), (0.0, 0.5), (0.2, 1.0))
    drawn = draw_inside(cloud, box, 0.1, 300, [(1, 0), (1, 1)])
    low, high = torch.tensor(box).T
    assert drawn.points.shape == (2, 300, 3) and drawn.points.dtype == torch.float16
    assert bool(((drawn.points >= low) & (drawn.points <= high)).all()) and float(drawn.distance.abs().max()) <= 0.1
    own = draw_inside(Cloud(*(part[1:] for part in cloud)), box, 0.1, 300, [(1, 1)])
    assert torch.equal(own.points[0], drawn.points[1])


def test_points_come_from_the_places_that_the_window_shows(tmp_path: Path) -> None:
    build(tmp_path, Recipe(count=1, views=0, size=8, uniform=3000, surface=6000), progress=False)
    whole = window_points(str(tmp_path), [0], EVERYWHERE, 100, 0)
    face = window_points(str(tmp_path), [0], window_box(DetailConfig(), 128), 100, 0)
    assert len(whole) == 3 and len(face) == 2  # the back of the head is not in front of the face
    for cloud, place in zip((*whole, face[0]), (FEATURES, EVERYWHERE, BEHIND, FEATURES), strict=True):
        low, high = torch.tensor(place).T
        assert cloud.points.shape == (1, 100, 3) and bool(((cloud.points >= low) & (cloud.points <= high)).all())


def scene() -> tuple[Upsampler, DetailLosses]:
    torch.manual_seed(0)
    model = Upsampler(UNET, NOISE, 4, (CONFIG,))
    model.requires_grad_(False)
    model.details[-1].requires_grad_(True)
    coarse, latents = 0.1 * torch.randn(3, 3, 4, 8, 8), Latents(torch.randn(3, 2, 512), torch.randn(3, 2, 512))
    settings = DenoiserSettings(batch=4, precision="fp32")
    conditions = Conditions(coarse, [0, 1, 2], latents, settings, statistics(coarse))
    windows = Windows(*(torch.empty(3, 2, 3, 4, 6, 6).half() for _ in range(2)), torch.empty(3, 5, 512).half())
    seen_windows(Upsampler(UNET, NOISE, 4), model.details[-1], conditions, [0, 1, 2], windows, "fp32", batch=2)
    box = window_box(CONFIG, 16)
    low, high = torch.tensor(box).T
    points = low + (high - low) * torch.rand(3, 400, 3)
    cloud = Cloud(points, points[..., 0] - 0.1, (torch.rand(3, 1, 3) * 255).to(torch.uint8).expand(3, 400, 3))
    config = FitConfig(planes=PlanesConfig(channels=4, resolution=16, coarse_resolution=8))
    return model, DetailLosses(windows, (cloud, cloud), box, TinyDecoder(4, (16,)), config, settings, 64)


def test_windows_are_those_of_what_the_upsampler_draws() -> None:
    windows: Windows = scene()[1].windows
    assert not torch.equal(windows.planes[:, 0], windows.planes[:, 1])
    assert torch.equal(windows.planes, windows.cond)  # a new U-Net adds nothing to the condition
    assert torch.equal(windows.z[:, 0], windows.z[:, 4]) and len({float(v) for v in windows.z[0, :, 0]}) == 4


def test_it_learns_and_nothing_else_does() -> None:
    model, losses = scene()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    seen: list[float] = []
    for step in range(80):
        adam.zero_grad()
        loss: Tensor = losses(model, step)["points"]
        loss.backward()
        adam.step()
        seen.append(float(loss.detach()))
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:10])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("details.0.") for name in changed)
    assert float(losses(scene()[0], 0)["points"].detach()) == seen[0]


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--init", str(tmp_path / "none"), "--base", "b", "--decoder", "d", "--output", str(tmp_path / "o"),
              "--data", "x", "--coarse", "y", "--latents", "z"]
    assert command.main([*common, "--data", "more"]) == 2
    assert "as many --data as --coarse" in capsys.readouterr().err
    assert command.main([*common, "--preset", "rodin"]) == 2
    assert "the preset rodin has 0 details" in capsys.readouterr().err
    assert command.main(common) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_the_preset_fits_its_planes() -> None:
    preset = PRESETS["mini"]
    for config in preset.details:
        Detail(config, preset.planes.channels, preset.planes.resolution, preset.planes.layout)
        for low, high in window_box(config, preset.planes.resolution):
            assert -1 <= low < high <= 1
