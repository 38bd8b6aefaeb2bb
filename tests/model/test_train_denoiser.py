"""Training the diffusions: the same weights whether or not the run was stopped, and losses that fall."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from rodin_kernels import TinyDecoder
from rodin_model import checkpoints
from rodin_model.cameras import Camera
from rodin_model.config import NoiseConfig, PlanesConfig, PrincipalConfig, UNetConfig
from rodin_model.diffusion import BaseDiffusion, TriplaneDiffusion
from rodin_model.fit import FitConfig
from rodin_model.fit_data import Cloud, Views
from rodin_model.principal import principal_components
from rodin_model.train import denoiser, upsample
from rodin_model.train.denoiser import DenoiserSettings, DenoiserTrainer, all_planes, rate, statistics, step_randomness
from rodin_model.train.latents import Latents
from rodin_model.train.pace import Pace
from rodin_model.train.upsample import (
    Conditions,
    PointLosses,
    begin_with,
    paired,
    patch_rays,
    picture_loss,
    remade,
)
from rodin_model.upsampler import Upsampler

UNET = UNetConfig(resolution=8, in_channels=4, out_channels=4, channels=8, channel_mult=(1,), blocks=(1,),
                  cross_plane=(8,), head_channels=8, embedding=16, groups=4, dropout=0.1)
SETTINGS = DenoiserSettings(steps=10, batch=4, learning_rate=1e-2, warmup=2, precision="fp32")


def make_model() -> BaseDiffusion:
    torch.manual_seed(0)
    return BaseDiffusion(UNET, NoiseConfig(steps=20), 4)


def losses(model: TriplaneDiffusion, step: int) -> dict[str, Tensor]:
    rng, generator = step_randomness(0, step)
    row = torch.from_numpy(rng.normal(size=(4, 3, 4, 1, 1)).astype(np.float32))
    return {"loss": model.training_loss(row.expand(4, 3, 4, 8, 8), torch.zeros(4, 512), generator)[0]}


def test_a_resumed_run_reaches_the_same_weights(tmp_path) -> None:
    whole = DenoiserTrainer(tmp_path / "whole", make_model(), SETTINGS, losses)
    whole.run()
    DenoiserTrainer(tmp_path / "parts", make_model(), SETTINGS, losses).run(until=4)
    resumed = DenoiserTrainer(tmp_path / "parts", make_model(), SETTINGS, losses)
    assert resumed.step == 4
    resumed.run()
    for part in ("model", "average"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(resumed, part).state_dict()[name]), (part, name)


def test_other_settings_are_refused(tmp_path) -> None:
    DenoiserTrainer(tmp_path, make_model(), SETTINGS, losses).run(until=1)
    with pytest.raises(ValueError, match="other settings"):
        DenoiserTrainer(tmp_path, make_model(), dataclasses.replace(SETTINGS, learning_rate=1.0), losses)


def test_training_lowers_the_loss_and_writes_a_model(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=80)
    trainer = DenoiserTrainer(tmp_path, make_model(), settings, losses)
    trainer.run(log_every=10)
    stats = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert stats[-1]["loss"] < 0.8 * stats[0]["loss"] and stats[-1]["step"] == 80
    model = BaseDiffusion.from_folder(tmp_path / "model")
    for p, q in zip(model.parameters(), trainer.average.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-3)


def test_the_average_follows_the_model(tmp_path) -> None:
    trainer = DenoiserTrainer(tmp_path, make_model(), dataclasses.replace(SETTINGS, ema=0.0), losses)
    trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), trainer.average.parameters(), strict=True))


def test_rate_rises_stays_and_falls() -> None:
    settings = DenoiserSettings(steps=100, warmup=10, cooldown=0.4, learning_rate=1.0)
    assert [rate(step, settings) for step in (0, 9, 30, 60, 80)] == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5])


def test_statistics_are_those_of_the_whole_set() -> None:
    planes = torch.randn(7, 3, 4, 5, 5) * 2 + torch.randn(3, 4, 5, 5)
    mean, std = statistics(planes, chunk=3)
    assert torch.allclose(mean, planes.mean(0), atol=1e-5)
    assert torch.allclose(std, (planes - planes.mean(0)).square().mean((0, 3, 4))[..., None, None].sqrt(), atol=1e-5)


def test_planes_of_all_shards_come_in_order(tmp_path) -> None:
    for shard in (1, 0):
        checkpoints.save_tensors(tmp_path / f"planes-{shard:05d}.safetensors", {
            "planes": torch.full((2, 3, 1, 2, 2), float(shard)).half(), "avatars": torch.arange(2) + 2 * shard})
    planes, avatars = all_planes(tmp_path)
    assert avatars == [0, 1, 2, 3] and planes[:, 0, 0, 0, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(FileNotFoundError, match="rodin_model.train.fit"):
        all_planes(tmp_path / "nothing")


def test_pairs_share_their_avatars() -> None:
    coarse, fine = torch.arange(4.0).view(4, 1), torch.arange(2.0).view(2, 1)
    a, b, avatars = paired((coarse, [5, 6, 7, 8]), (fine, [8, 6]))
    assert a.flatten().tolist() == [3.0, 1.0] and b.flatten().tolist() == [0.0, 1.0] and avatars == [8, 6]
    with pytest.raises(ValueError, match="no avatar in common"):
        paired((coarse, [1, 2, 3, 4]), (fine, [8, 6]))


def test_most_conditions_are_what_the_base_model_makes_of_the_planes() -> None:
    base = make_model().requires_grad_(False)
    coarse, z = torch.randn(64, 3, 4, 8, 8), torch.randn(64, 512)
    latents, rows = Latents(z[:, None], z[:, None]), torch.arange(64)
    parts = [Conditions(coarse, list(range(64)), latents, SETTINGS, statistics(coarse), given)(
        make_upsampler(), rows, *step_randomness(0, 1))[0] for given in (base, base, None)]
    assert torch.equal(parts[0], parts[1])
    last = torch.arange(64) % 20
    found = remade(base, coarse, z, last, torch.Generator().manual_seed(1))
    away = (found - coarse).square().flatten(1).mean(1)
    assert float(away[last < 3].mean()) < 0.3 * float(away[last > 15].mean())
    assert torch.equal(found, remade(base, coarse, z, last, torch.Generator().manual_seed(1)))


def test_remaking_by_the_components_alone_is_what_they_say() -> None:
    torch.manual_seed(0)
    principal = PrincipalConfig(components=3, resolution=4, width=16, blocks=1, embedding=8)
    base = BaseDiffusion(dataclasses.replace(UNET, in_channels=8), NoiseConfig(steps=20), 4, principal)
    assert base.principal is not None
    base.principal.set_components(*principal_components(torch.randn(6, 3, 4, 8, 8), principal))
    base.requires_grad_(False).eval()
    coarse, z, last = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 512), torch.tensor([19, 19])
    quick, whole = (remade(base, coarse, z, last, torch.Generator().manual_seed(1), quick=quick)
                    for quick in (True, False))
    assert torch.allclose(quick, whole, atol=1e-5)  # a new U-Net says nothing
    torch.nn.init.normal_(base.unet.head.conv.weight)
    quick_again, whole_again = (remade(base, coarse, z, last, torch.Generator().manual_seed(1), quick=quick)
                                for quick in (True, False))
    assert torch.equal(quick, quick_again) and not torch.allclose(whole, whole_again, atol=1e-2)


def test_an_upsampler_without_places_can_be_begun_with() -> None:
    old = randomized(make_upsampler())
    config = dataclasses.replace(old.config, positions=True, position_channels=4)
    new = Upsampler(config, old.noise, 4).eval()
    begin_with(new, old)
    x, t, z = torch.randn(2, 3, 4, 8, 8), torch.tensor([3, 19]), torch.randn(2, 512)
    assert torch.equal(new.predict(x, t, z, x), old.predict(x, t, z, x))
    torch.nn.init.normal_(new.unet.placing[0].conv.weight)
    assert not torch.allclose(new.predict(x, t, z, x), old.predict(x, t, z, x), atol=1e-2)
    with pytest.raises(ValueError, match="another kind of upsampler: it lacks unet"):
        begin_with(new, Upsampler(dataclasses.replace(config, dropout=0.0, cross_plane=()), old.noise, 4))


def randomized(model: Upsampler) -> Upsampler:
    """The same with random weights everywhere: zero-initialised branches would hide their inputs."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_point_losses(settings: DenoiserSettings = SETTINGS, views: Views | None = None) -> PointLosses:
    torch.manual_seed(1)
    latents = Latents(torch.randn(3, 2, 512), torch.randn(3, 2, 512))
    coarse = 0.1 * torch.randn(3, 3, 4, 4, 4)
    conditions = Conditions(coarse, [0, 1, 2], latents, settings, statistics(coarse))
    points = torch.rand(3, 500, 3) * 2 - 1
    distance = points.norm(dim=-1) - 0.6
    cloud = Cloud(points.half(), distance.half(), (points.abs() * 255).to(torch.uint8))
    config = FitConfig(planes=PlanesConfig(channels=4, resolution=8, coarse_resolution=4))
    return PointLosses(conditions, cloud, TinyDecoder(4, (16,)), config, points=200, views=views, rays=64)


def make_upsampler() -> Upsampler:
    torch.manual_seed(0)
    return Upsampler(dataclasses.replace(UNET, in_channels=8), NoiseConfig(steps=20, prediction="sample"), 4)


def test_an_upsampler_learns_from_points_alone() -> None:
    losses, model, seen = make_point_losses(), make_upsampler(), []
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        adam.zero_grad()
        parts = losses(model, step)
        sum(parts.values()).backward()
        adam.step()
        seen.append(float(parts["points"].detach()))
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])
    again = make_point_losses()(make_upsampler(), 0)
    assert float(again["points"].detach()) == seen[0]  # everything follows from the seed and the step


def test_pictures_teach_an_upsampler_too() -> None:
    camera = Camera.orbit(0, 0, 16)
    rgb = torch.zeros(3, 1, 16, 16, 3, dtype=torch.uint8)
    alpha, depth = torch.full((3, 1, 16, 16), 255, dtype=torch.uint8), torch.full((3, 1, 16, 16), 4.0)
    views = Views(rgb, alpha, depth, camera.cam2world.expand(3, 1, 4, 4), camera.intrinsics().expand(3, 1, 4))
    settings = dataclasses.replace(SETTINGS, image_weight=2.0)
    parts, twice = (make_point_losses(dataclasses.replace(settings, image_weight=w), views)(make_upsampler(), 0)
                    for w in (2.0, 4.0))
    assert set(parts) == {"points", "planes", "rays"} and float(parts["rays"].detach()) > 0
    assert torch.allclose(2 * parts["rays"], twice["rays"])
    assert torch.equal(parts["points"], make_point_losses(settings)(make_upsampler(), 0)["points"])


def test_a_run_ends_when_its_minutes_are_over(tmp_path, monkeypatch) -> None:
    class Clock(Pace):
        def progress(self, step: int) -> float:
            assert self.minutes == 3.0
            return min(step / 8, 1.0)

    monkeypatch.setattr(denoiser, "Pace", Clock)
    settings = dataclasses.replace(SETTINGS, steps=10**6, cooldown=0.5)
    trainer = DenoiserTrainer(tmp_path, make_model(), settings, losses, minutes=3.0)
    trainer.run()
    assert trainer.step == 8 and trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * settings.learning_rate)
    assert (tmp_path / "model" / "config.json").is_file()


def test_all_ranks_follow_the_clock_of_the_first(tmp_path, monkeypatch) -> None:
    trainer = DenoiserTrainer(tmp_path, make_model(), SETTINGS, losses, minutes=3.0)
    trainer.world = 2
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.fill_(0.75 + source))
    assert trainer.progress() == 0.75
    trainer.minutes = None  # steps are the same everywhere, so that nothing need be said
    assert trainer.progress() == 0.0


def test_noisy_planes_start_from_the_networks_own_estimate() -> None:
    model, torch_rows = make_upsampler(), torch.arange(3)
    cond, z = make_point_losses().conditions(model, torch_rows, *step_randomness(0, 0))
    kinds = set()
    for step in range(40):
        rng, generator = step_randomness(0, step)
        noisy, t = PointLosses._noisy(model, cond, z, rng, generator)
        assert noisy.shape == cond.shape and not noisy.requires_grad
        kinds.add(bool((t == 19).all()))
    assert kinds == {True, False}


def test_upsampling_needs_one_kind_of_target(tmp_path, capsys) -> None:
    common = ["--coarse", "c", "--latents", "l", "--decoder", "d", "--output", str(tmp_path / "o")]
    for more, message in (([], "either --fine"), (["--fine", "f", "--data", "d"], "either --fine"),
                          (["--data", "d"], "c holds no planes-*.safetensors")):
        assert upsample.main([*common, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_patches_lie_in_the_picture_and_repeat() -> None:
    a, b = (patch_rays(np.random.default_rng(3), 16) for _ in range(2))
    assert a[0].shape == a[1].shape == (1, 256, 3) and torch.equal(a[1], b[1])
    assert torch.allclose(a[1].norm(dim=-1), torch.ones(1, 256), atol=1e-5)


def test_picture_loss_sees_the_planes() -> None:
    torch.manual_seed(0)
    decoder = TinyDecoder(4, (8,))
    true = torch.randn(1, 3, 4, 8, 8)
    guess = (true + 0.5 * torch.randn_like(true)).requires_grad_()
    loss = picture_loss(guess, true, decoder, PlanesConfig(channels=4), np.random.default_rng(0), pixels=8, samples=8)
    loss.backward()
    assert float(loss.detach()) > 0 and guess.grad.abs().max() > 0
    same = picture_loss(true, true, decoder, PlanesConfig(channels=4), np.random.default_rng(0), pixels=8, samples=8)
    assert float(same.detach()) == 0.0
