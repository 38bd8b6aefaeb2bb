"""The noise schedules, the samplers against a closed form, and the denoisers of all presets."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from rodin_model import config as configs
from rodin_model.config import PRESETS, NoiseConfig, UNetConfig
from rodin_model.diffusion import BaseDiffusion
from rodin_model.layers import enlarge
from rodin_model.noise import alpha_bars, make_scheduler
from rodin_model.unet import TriplaneUNet
from rodin_model.upsampler import Upsampler, degrade, gaussian_blur

TINY = UNetConfig(resolution=8, in_channels=4, out_channels=4, channels=8, channel_mult=(1, 2), blocks=(1, 1),
                  attention=(4,), cross_plane=(8, 4), head_channels=8, embedding=16, groups=4, positions=True)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("noise", [n for p in PRESETS.values() for n in (p.base_noise, p.upsampler_noise)])
def test_alpha_bar_falls_from_clean_to_noise(noise: NoiseConfig) -> None:
    bars = alpha_bars(noise)
    assert bars.shape == (noise.steps,) and (bars.diff() < 0).all()
    assert bars[0] > 0.85 and bars[-1] < 1e-3


def test_schedules_have_the_published_signal_to_noise() -> None:
    """RodinHD's base and upsampler schedules in dB at t = 0.1, 0.25, 0.5 (computed from the printed formulas)."""
    def decibel(noise: NoiseConfig, t: float) -> float:
        bar = alpha_bars(noise)[round(t * noise.steps) - 1]
        return float(10 * torch.log10(bar / (1 - bar)))

    base, upsampler = PRESETS["rodinhd"].base_noise, PRESETS["rodinhd"].upsampler_noise
    assert [decibel(base, t) for t in (0.1, 0.25, 0.5)] == pytest.approx([4.6, -2.1, -12.3], abs=0.15)
    assert [decibel(upsampler, t) for t in (0.1, 0.25, 0.5)] == pytest.approx([-9.8, -29.6, -62.0], abs=1.0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("kind", "steps", "tolerance"),
                         [("dpm++", 25, 0.01), ("dpm++", 50, 0.005), ("ddpm", 200, 0.015)])
def test_samplers_return_the_gaussian_that_they_were_given(prediction: str, kind: str, steps: int,
                                                           tolerance: float) -> None:
    """Data N(m, s^2) has a denoiser in closed form; a right sampler returns its mean and standard deviation."""
    m, s = 0.3, 0.5
    noise = NoiseConfig(start=0.0, tau=1.0, prediction=prediction)
    bars, process = alpha_bars(noise), make_scheduler(noise, kind)
    process.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    for t in process.timesteps:
        bar = bars[int(t)]
        clean = m + bar.sqrt() * s**2 / (bar * s**2 + 1 - bar) * (x - bar.sqrt() * m)
        eps = (x - bar.sqrt() * clean) / (1 - bar).sqrt()
        v = bar.sqrt() * eps - (1 - bar).sqrt() * clean
        said = {"epsilon": eps, "sample": clean, "v_prediction": v}[prediction]
        x = process.step(said, t, x, **({"generator": generator} if kind == "ddpm" else {})).prev_sample
    assert float(x.mean()) == pytest.approx(m, abs=0.01)
    assert float(x.std()) == pytest.approx(s, abs=tolerance)


def test_unknown_scheduler_is_named() -> None:
    with pytest.raises(ValueError, match="scheduler must be"):
        make_scheduler(NoiseConfig(), "euler")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_takes_a_step(name: str) -> None:
    """`mini` in numbers, the papers' on meta tensors: shapes of base and upsampler, forward and backward."""
    preset = PRESETS[name]
    device = "cpu" if name == "mini" else "meta"
    with torch.device(device):
        for unet in (preset.base, preset.upsampler):
            net = TriplaneUNet(unet)
            x = torch.zeros(1, 3, unet.in_channels, unet.resolution, unet.resolution)
            y = net(x, torch.zeros(1), torch.zeros(1, configs.LATENT_SIZE))
            assert y.shape == (1, 3, unet.out_channels, unet.resolution, unet.resolution)
            y.square().mean().backward()
            assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("name", "millions"), [("mini", (1, 2)), ("rodin", (290, 370)), ("rodinhd", (300, 380))])
def test_presets_have_the_published_sizes(name: str, millions: tuple[int, int]) -> None:
    with torch.device("meta"):
        size = sum(p.numel() for p in TriplaneUNet(PRESETS[name].base).parameters()) / 1e6
    assert millions[0] < size < millions[1]


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters random, so that zero-initialised branches take part."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def test_the_network_can_tell_the_planes_apart() -> None:
    """Weights are shared by the planes, so without a plane's identity the sum over turned axes would be the same."""
    net = randomized(TriplaneUNet(dataclasses.replace(TINY, positions=False)))
    net.plane.data.normal_(generator=torch.Generator().manual_seed(0))
    x, z = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 512)
    turned = net(x.roll(1, 1), torch.zeros(1), z).roll(-1, 1)
    straight = net(x, torch.zeros(1), z)
    assert (turned - straight).abs().max() > 1e-2 * straight.abs().max()
    with torch.no_grad():
        net.plane.copy_(net.plane[:1].expand(3, -1).clone())
    assert torch.allclose(net(x.roll(1, 1), torch.zeros(1), z).roll(-1, 1), net(x, torch.zeros(1), z), atol=1e-5)


def test_every_plane_sees_the_others() -> None:
    net = randomized(TriplaneUNet(dataclasses.replace(TINY, attention=())))
    x = torch.randn(1, 3, 4, 8, 8, requires_grad=True)
    for plane in range(3):
        grad, = torch.autograd.grad(net(x, torch.zeros(1), torch.zeros(1, 512))[0, plane].sum(), x)
        assert (grad[0].abs().amax((1, 2, 3)) > 0).all()


def make_base(noise: NoiseConfig | None = None, out_channels: int = 4) -> BaseDiffusion:
    unet = dataclasses.replace(TINY, out_channels=out_channels)
    model = BaseDiffusion(unet, noise or NoiseConfig(steps=50), 4)
    randomized(model.unet)
    return model


@pytest.mark.parametrize("scheduler", ["dpm++", "ddpm"])
def test_a_sample_depends_on_its_own_seed_alone(scheduler: str) -> None:
    model, z = make_base(), torch.randn(3, 512)
    together = model.sample(z, generators=generators(1, 2, 3), steps=5, scheduler=scheduler)
    alone = model.sample(z[1:2], generators=generators(2), steps=5, scheduler=scheduler)
    assert torch.allclose(together[1:2], alone, atol=1e-4 * float(together.abs().max()))
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_guidance_extrapolates_from_the_null_latent() -> None:
    model, z = make_base(), torch.randn(1, 512)
    x, t = torch.randn(1, 3, 4, 8, 8), torch.tensor([7])
    known, free = model.predict(x, t, z), model.predict(x, t, torch.zeros_like(z))
    assert torch.allclose(model._guided(x, t, z, 3.0, None), 3 * known - 2 * free, atol=1e-4)


def test_guidance_ends_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, z, strengths = make_base(), torch.randn(1, 512), []
    plain = model._guided

    def watched(planes: Tensor, t: Tensor, z: Tensor, scale: float, cond: Tensor | None) -> Tensor:
        strengths.append((int(t[0]), scale))
        return plain(planes, t, z, scale, cond)

    monkeypatch.setattr(model, "_guided", watched)
    sampled = [model.sample(z, generators=generators(0), steps=10, guidance_scale=3.0, guidance_stop=stop)
               for stop in (0.0, 0.4, 1.0)]
    alone = model.sample(z, generators=generators(0), steps=10, guidance_scale=1.0)
    assert torch.equal(sampled[0], alone) and not torch.allclose(sampled[1], alone)
    assert not torch.allclose(sampled[1], sampled[2])
    assert all((scale == 3.0) == (t >= 0.6 * model.noise.steps) for t, scale in strengths[10:20])
    assert {scale for _, scale in strengths[20:30]} == {3.0}


@pytest.mark.parametrize(("kind", "out_channels"), [("epsilon", 8), ("v_prediction", 4), ("sample", 4)])
def test_training_loss_of_a_perfect_answer_is_zero(kind: str, out_channels: int) -> None:
    noise = NoiseConfig(steps=50, prediction=kind, learn_variance=out_channels == 8)
    model = make_base(noise, out_channels)
    clean, z = torch.randn(4, 3, 4, 8, 8), torch.randn(4, 512)
    loss, prediction = model.training_loss(clean, z, torch.Generator().manual_seed(3))
    assert torch.isfinite(loss) and prediction.shape == clean.shape
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(50, (4,), generator=generator)
    eps = torch.randn(clean.shape, generator=generator)
    plain = torch.nn.functional.mse_loss(prediction, model.target(clean, eps, t))
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=0.2 if noise.learn_variance else 1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_right_prediction_means_the_clean_planes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_base(NoiseConfig(steps=50, prediction=kind))
    clean, eps, t = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8), torch.tensor([3, 30])
    monkeypatch.setattr(model, "predict", lambda noisy, t, z, cond=None: model.target(clean, eps, t))
    found = model.clean_estimate(model.add_noise(clean, eps, t), t, torch.zeros(2, 512))
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)


def test_learned_variance_gets_a_gradient_and_samples() -> None:
    model = make_base(NoiseConfig(steps=50, prediction="epsilon", learn_variance=True), 8)
    model.training_loss(torch.randn(2, 3, 4, 8, 8), torch.randn(2, 512), torch.Generator().manual_seed(0))[0].backward()
    assert model.unet.head.conv.weight.grad[4:].abs().max() > 0
    planes = model.sample(torch.zeros(2, 512), generators=generators(0, 1), steps=5, scheduler="ddpm")
    assert planes.shape == (2, 3, 4, 8, 8) and torch.isfinite(planes).all()


def test_saving_and_loading_keeps_every_number(tmp_path) -> None:
    model = make_base()
    model.set_statistics(torch.randn(3, 4, 8, 8), torch.rand(3, 4, 1, 1) + 0.5)
    model.save(tmp_path, torch.float32)
    again = BaseDiffusion.from_folder(tmp_path)
    z = torch.randn(1, 512)
    first, second = (m.sample(z, generators=generators(1), steps=4) for m in (model, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("kwargs", "message"), [({"steps": 0}, "steps must lie"), ({"steps": 51}, "steps must lie")])
def test_bad_steps_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_base().sample(torch.zeros(1, 512), generators=generators(0), **kwargs)


def test_bad_latents_are_named() -> None:
    with pytest.raises(ValueError, match=r"z must be \[1, 512\]"):
        make_base().sample(torch.zeros(2, 512), generators=generators(0))


def test_upsampler_starts_from_the_enlarged_planes() -> None:
    unet = dataclasses.replace(TINY, resolution=16, in_channels=8)
    model = Upsampler(unet, NoiseConfig("sigmoid", 0.0, 3.0, 0.3, steps=20, prediction="sample"), 4)
    coarse = torch.randn(2, 3, 4, 4, 4)
    # its head starts at zero, so untrained it returns the enlarged planes whatever the noise
    fine = model.sample(coarse, torch.zeros(2, 512), generators=generators(0, 1), steps=4)
    assert torch.allclose(fine, enlarge(coarse, 16), atol=1e-4)
    with pytest.raises(ValueError, match="needs cond"):
        model.predict(fine, torch.zeros(2), torch.zeros(2, 512))


def test_degrading_keeps_shape_and_seed_and_changes_every_sample() -> None:
    coarse = torch.randn(6, 3, 4, 16, 16)
    a, b = (degrade(coarse, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == coarse.shape
    assert ((a - coarse).abs().amax((1, 2, 3, 4)) > 1e-3).all()
    # without blur, shrinking and noise only the interpolation's rounding is left
    assert torch.allclose(degrade(coarse, strength=0.0), coarse, atol=1e-4)


def test_blur_keeps_constants_and_spreads_a_point() -> None:
    assert torch.allclose(gaussian_blur(torch.full((1, 3, 2, 9, 9), 2.5), torch.tensor([0.7])), torch.tensor(2.5))
    point = torch.zeros(2, 3, 1, 9, 9)
    point[:, :, :, 4, 4] = 1.0
    blurred, sharp = gaussian_blur(point, torch.tensor([1.0, 0.0]))
    assert float(blurred.sum()) == pytest.approx(3.0, abs=1e-4) and 0.05 < float(blurred[0, 0, 4, 5]) < 0.15
    assert torch.equal(sharp, point[1])
