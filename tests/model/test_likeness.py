"""Likeness: pictures that are those of the renderer, differentiable, and a stage that moves the details towards z."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import TinyDecoder
from rodin_model.cameras import Camera
from rodin_model.config import PRESETS, DetailConfig, NoiseConfig, PlanesConfig, UNetConfig
from rodin_model.decoder import load_decoder
from rodin_model.fit import FitConfig, conventions
from rodin_model.fit_data import Cloud, Views
from rodin_model.pipeline import RodinPipeline
from rodin_model.towers import Towers, TowersConfig
from rodin_model.train import likeness as command
from rodin_model.train.changes import plain
from rodin_model.train.denoiser import DenoiserSettings, step_randomness
from rodin_model.train.detail import Windows
from rodin_model.train.latents import Latents, through_prior
from rodin_model.train.likeness import (
    Known,
    LikenessLosses,
    chosen_latents,
    disagreement,
    drawn,
    portrait,
    portrait_camera,
)
from rodin_model.triplane import Avatar
from rodin_model.upsampler import Upsampler

SHIPPED = Path(__file__).parents[2] / "rodin_model" / "pretrained"
CONFIG = PRESETS["mini"].planes
SMALL = PlanesConfig(channels=4, resolution=16, coarse_resolution=8)
UNET = UNetConfig(resolution=16, in_channels=8, out_channels=4, channels=8, channel_mult=(1,), blocks=(1,),
                  embedding=8, groups=4)


def average() -> tuple[Tensor, TinyDecoder]:
    """The shipped model's average avatar, and its decoder."""
    decoder, _, _ = load_decoder(SHIPPED / "decoder")
    decoder.requires_grad_(False)
    return Upsampler.from_folder(SHIPPED / "upsampler").mean, decoder


def test_a_picture_is_the_renderers() -> None:
    planes, decoder = average()
    camera = Camera.orbit(0.0, 5.0, 96)
    true = Avatar(planes, decoder, **conventions(CONFIG)).picture(camera, num_samples=192, use_occupancy=False)
    drawn = portrait(planes[None], decoder, camera, CONFIG, samples=48, generator=torch.Generator().manual_seed(0))
    error = (plain(drawn)[0].permute(1, 2, 0) - true).abs()
    assert drawn.shape == (1, 4, 96, 96) and float(true.std()) > 0.1
    assert float(error.mean()) < 0.01 and float((error > 0.25).float().mean()) < 0.01


def test_its_gradient_reaches_the_planes_and_lowers_the_loss() -> None:
    planes, decoder = average()
    camera, grown = Camera.orbit(0.0, 5.0, 48), planes[None].clone().requires_grad_()

    def red(planes: Tensor) -> Tensor:
        picture = portrait(planes, decoder, camera, CONFIG, generator=torch.Generator().manual_seed(1))
        return (picture[:, 0] - 1).square().mean()

    before = red(grown)
    gradient, = torch.autograd.grad(before, grown)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().amax()) > 0
    assert float(red(grown.detach() - 0.2 * gradient / gradient.abs().amax())) < float(before.detach()) - 1e-6


def test_nothing_to_see_is_transparent() -> None:
    decoder = TinyDecoder(4, (16,)).requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.fill_(-40.0 if parameter.ndim == 1 else 0.0)  # no density anywhere
    picture = portrait(torch.randn(1, 3, 4, 8, 8), decoder, Camera.orbit(0.0, 5.0, 32), SMALL)
    assert torch.equal(picture, torch.zeros(1, 4, 32, 32)) and torch.equal(plain(picture), torch.ones(1, 3, 32, 32))


def test_cameras_stay_about_the_front() -> None:
    rng = np.random.default_rng(0)
    cameras = [portrait_camera(128, rng) for _ in range(50)]
    assert max(abs(camera.yaw) for camera in cameras) < 20 and len({camera.cx for camera in cameras}) == 50
    assert all(abs(camera.cx - 64) <= 0.5 and camera.width == 128 for camera in cameras)


def test_who_is_read_alike_does_not_disagree() -> None:
    torch.manual_seed(0)
    towers = Towers(TowersConfig(buckets=64, text_width=16, text_layers=1, image_size=32, image_widths=(4, 8)))
    a, b = F.normalize(torch.randn(2, 3, 512), dim=-1)
    assert float(disagreement(towers, a, a).detach().abs()) < 1e-6 < float(disagreement(towers, a, b).detach())


def scene() -> tuple[Upsampler, LikenessLosses]:
    torch.manual_seed(0)
    model = Upsampler(UNET, NoiseConfig(steps=10, prediction="sample"), 4, (
        DetailConfig(window=6, corner=(5, 6, 8), maps=5, width=8, layers=2, embedding=8, border=2),
        DetailConfig(window=16, corner=(0, 0, 0), patch=2, maps=5, width=8, layers=2, embedding=8, border=0)))
    model.requires_grad_(False)
    model.details.requires_grad_(True)
    planes = torch.randn(3, 2, 3, 4, 16, 16)
    windows = Windows(planes.half(), planes.half(), F.normalize(torch.randn(3, 2, 512), dim=-1))
    points = torch.rand(3, 300, 3) * 2 - 1
    cloud = Cloud(points, points.norm(dim=-1) - 0.6, (points.abs() * 255).to(torch.uint8))
    camera = Camera.orbit(0.0, 5.0, 12)
    views = Views(torch.full((3, 1, 12, 12, 3), 90, dtype=torch.uint8), torch.full((3, 1, 12, 12), 255).to(torch.uint8),
                  torch.full((3, 1, 12, 12), 3.6), camera.cam2world.expand(3, 1, 4, 4),
                  camera.intrinsics().expand(3, 1, 4))
    towers = Towers(TowersConfig(buckets=64, text_width=16, text_layers=1, image_size=32, image_widths=(4, 8)))
    settings = DenoiserSettings(batch=2, precision="fp32", image_weight=1.0)
    return model, LikenessLosses(Known(windows, cloud, views, views.depth), TinyDecoder(4, (16,)), towers,
                                 FitConfig(planes=SMALL), settings, points=64, rays=16)


def test_the_details_learn_and_nothing_else_does() -> None:
    model, losses = scene()
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    judge = {name: value.clone() for name, value in losses.towers.state_dict().items()}
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    seen: list[float] = []
    for step in range(40):
        adam.zero_grad()
        found = losses(model, step)
        rng, _ = step_randomness(losses.settings.seed, step)
        _, variant = (rng.integers(0, n, losses.settings.batch) for n in (3, 2))
        compared = {"perceptual"} if (variant == 0).any() else set()
        assert set(found) == {"likeness", "reading", "points", "rays"} | compared
        torch.stack([*found.values()]).sum().backward()
        adam.step()
        seen.append(float(torch.stack([*found.values()]).sum().detach()))
    assert np.mean(seen[-8:]) < 0.95 * np.mean(seen[:8])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, frozen[name])}
    assert {name.split(".")[1] for name in changed} == {"0", "1"}
    assert all(name.startswith("details.") for name in changed)
    assert all(torch.equal(value, judge[name]) for name, value in losses.towers.state_dict().items())
    again = losses(scene()[0], 0)
    assert float(torch.stack([*again.values()]).sum().detach()) == seen[0]


class Looked(torch.nn.Module):
    """A tower that keeps what it is shown."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower, self.whole, self.face = tower, tower.whole, tower.face
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach())
        return self.tower(images)


def test_the_tower_looks_once_as_it_is_and_once_at_a_change() -> None:
    model, losses = scene()
    losses.towers.image = Looked(losses.towers.image)
    losses(model, 0)
    (shown,), size = losses.towers.image.shown, 32
    assert shown.shape == (4, 3, size, size)
    assert all(float((a - b).abs().mean()) > 1e-3 for a, b in zip(shown[:2], shown[2:], strict=True))


def test_only_planes_of_pictures_are_compared_with_pictures() -> None:
    """Captions say less than pictures, so the picture of the avatar that they describe is not what they ask for."""
    _, losses = scene()
    planes, z = torch.randn(2, 3, 4, 16, 16), F.normalize(torch.randn(2, 512), dim=-1)

    def apart(pictured: list[bool], color: int) -> float | None:
        fronts = torch.full((2, 12, 12, 3), color, dtype=torch.uint8)
        found = losses._seen(planes, z, fronts, torch.tensor(pictured), np.random.default_rng(0),
                             torch.Generator().manual_seed(0))
        return float(found["perceptual"]) if "perceptual" in found else None

    both, one = apart([True, True], 90), apart([True, False], 90)
    assert apart([False, False], 90) is None and both is not None and one is not None and 0 < one < both
    assert apart([True, True], 255) != both
    losses.perceptual = 0.0
    assert apart([True, True], 90) is None


def test_a_picture_is_not_apart_from_itself() -> None:
    _, losses = scene()
    size = losses.towers.config.image_size
    planes, z = torch.randn(1, 3, 4, 16, 16), F.normalize(torch.randn(1, 512), dim=-1)
    same = plain(portrait(planes, losses.decoder, Camera.orbit(0.0, 5.0, size), SMALL,
                          generator=torch.Generator().manual_seed(3)))
    fronts = (same * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
    found, other = (losses._seen(planes, z, front, torch.tensor([True]), np.random.default_rng(0),
                                 torch.Generator().manual_seed(3)) for front in (fronts, 255 - fronts))
    assert float(found["perceptual"]) < 0.02 < 0.1 < float(other["perceptual"])


def test_other_towers_read_what_they_read_in_the_true_picture() -> None:
    _, losses = scene()
    torch.manual_seed(1)
    losses.observers = [Towers(losses.towers.config).eval().requires_grad_(False)]
    size, planes, z = losses.towers.config.image_size, torch.randn(1, 3, 4, 16, 16), F.normalize(torch.randn(1, 512))
    same = plain(portrait(planes, losses.decoder, Camera.orbit(0.0, 5.0, size), SMALL,
                          generator=torch.Generator().manual_seed(3)))
    fronts = (same * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)

    def said(fronts: Tensor, pictured: bool) -> float:
        found = losses._seen(planes, z, fronts, torch.tensor([pictured]), np.random.default_rng(0),
                             torch.Generator().manual_seed(3))
        return float(found["observers"])

    assert said(fronts, True) < 0.5 * said(255 - fronts, True) and said(fronts, False) > 0
    losses.reading = 0.0
    assert said(255 - fronts, True) == 0


def test_the_further_behind_the_more_often_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model, losses = scene()
    cameras = [Camera.orbit(yaw, 5.0, 12) for yaw in (0.0, 20.0, 180.0)]
    views = losses.known.views
    views = Views(torch.full((3, 3, 12, 12, 3), 90, dtype=torch.uint8), views.alpha.expand(3, 3, 12, 12),
                  views.depth.expand(3, 3, 12, 12), torch.stack([c.cam2world for c in cameras]).expand(3, 3, 4, 4),
                  views.intrinsics.expand(3, 3, 4))
    seen: list[float] = []

    def looked(planes: Tensor, decoder: TinyDecoder, camera: Camera, *rest: object, **options: object) -> Tensor:
        seen.append(abs(camera.yaw))
        assert camera.width == losses.towers.config.image_size
        return portrait(planes, decoder, camera, SMALL, generator=options["generator"])  # type: ignore[arg-type]

    monkeypatch.setattr(command, "portrait", looked)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for _ in range(20):
        assert float(losses._elsewhere(torch.randn(3, 3, 4, 16, 16), views, rng, generator)) > 0
    assert len(seen) == 60 and min(seen) > 15 and np.mean(np.array(seen) > 170) > 0.85
    losses.known = losses.known._replace(views=views, depths=views.depth)
    assert "around" not in losses(model, 0)
    losses.around = 2.0
    found, losses.around = losses(model, 0)["around"].detach(), 1.0
    assert float(found) == pytest.approx(2 * float(losses(model, 0)["around"].detach()), rel=1e-5)


def test_planes_are_those_of_use(tiny_model_dir: Path) -> None:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    latents = Latents(torch.randn(3, 4, 512), 5 + torch.randn(3, 2, 512))
    z = chosen_latents(latents, [0, 2], 4, 0)
    assert z.shape == (2, 4, 512) and bool((z[:, 1::2].mean(-1) > 4).all()) and bool((z[:, ::2].mean(-1) < 1).all())
    z = F.normalize(z, dim=-1)
    windows, again, other = (drawn(pipe.upsampler, pipe.base, z, seed, 1) for seed in (0, 0, 1))
    assert windows.planes.shape[:2] == (2, 4) and windows.planes.shape[2:] == pipe.upsampler.mean.shape
    assert all(torch.equal(a, b) for a, b in zip(windows, again, strict=True))
    assert not torch.equal(windows.planes, other.planes) and torch.equal(windows.z, z)
    # the condition is drawn for its own z: coarse planes of one draw, made fine, differ as the latents do
    assert not torch.equal(windows.cond[:, 0], windows.cond[:, 1])


def test_captions_can_go_through_the_prior() -> None:
    words = RodinPipeline.from_pretrained().conditioner.encode_text(["a bald man", "an old woman"]).half()[:, None]
    first, again = (through_prior(words, str(SHIPPED / "prior"), 2.5, "cpu") for _ in range(2))
    assert torch.equal(first, again) and first.shape == words.shape and first.dtype == torch.float16
    likeness = (first[:, 0].float() @ words[:, 0].float().T)
    assert bool((likeness.diagonal() > likeness.flip(1).diagonal()).all()) and not torch.equal(first, words)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", "x", "--latents", "z", "--base", "b", "--towers", "t", "--decoder", "d",
              "--output", str(tmp_path / "o")]
    assert command.main([*common, "--init", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    Upsampler(UNET, NoiseConfig(steps=10, prediction="sample"), 4).save(tmp_path / "plain")
    assert command.main([*common, "--init", str(tmp_path / "plain")]) == 2
    assert "has no details to teach" in capsys.readouterr().err and not (tmp_path / "o").exists()
