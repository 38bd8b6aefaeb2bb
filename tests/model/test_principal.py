"""The principal components of planes and the denoiser of them, alone and inside the base diffusion."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rodin_model import checkpoints
from rodin_model.config import PRESETS, NoiseConfig, PrincipalConfig, UNetConfig
from rodin_model.diffusion import BaseDiffusion
from rodin_model.layers import enlarge
from rodin_model.principal import PrincipalDenoiser, principal_components
from rodin_model.train import principal as command

CONFIG = PrincipalConfig(components=5, resolution=4, width=16, blocks=1, embedding=16, dropout=0.0)
NOISE = NoiseConfig(steps=50)
UNET = UNetConfig(resolution=8, in_channels=4, out_channels=2, channels=8, channel_mult=(1,), blocks=(1,),
                  cross_plane=(8,), head_channels=8, embedding=16, groups=4)


def smooth_planes(count: int, seed: int = 0) -> Tensor:
    """Planes [count, 3, 2, 8, 8] of five smooth components of falling variance, and a little of everything else."""
    generator = torch.Generator().manual_seed(seed)
    parts = enlarge(torch.randn(5, 3, 2, 4, 4, generator=torch.Generator().manual_seed(9)), 8)
    amounts = torch.randn(count, 5, generator=generator) * torch.tensor([2.0, 1.5, 1.0, 0.7, 0.5])
    noise = 0.02 * torch.randn(count, 3, 2, 8, 8, generator=generator)
    return (amounts @ parts.flatten(1)).view(-1, 3, 2, 8, 8) + noise


def make_denoiser(planes: Tensor) -> PrincipalDenoiser:
    torch.manual_seed(0)
    model = PrincipalDenoiser(CONFIG, NOISE, 2, 8)
    model.set_components(*principal_components(planes, CONFIG))
    return model


def test_components_span_the_planes() -> None:
    planes = smooth_planes(300)
    model = make_denoiser(planes)
    span = model.span()
    assert torch.allclose(span.T @ span, torch.eye(5), atol=1e-4)
    numbers = model.numbers(planes)
    assert torch.allclose(numbers.square().mean(0), model.variance, rtol=1e-3) and (model.variance.diff() < 0).all()
    outside = planes.flatten(1) - numbers @ span.T
    assert float(outside.square().mean()) < 0.03 * float(planes.square().mean())  # area, then bicubic: not quite exact
    assert float(model.rest) == pytest.approx(float(outside.square().sum(1).mean()) / (3 * 2 * 64 - 5), rel=0.02)


def test_components_need_more_avatars_than_there_are_components() -> None:
    with pytest.raises(ValueError, match="planes holds 5 avatars; 5 components need more"):
        principal_components(smooth_planes(5), CONFIG)


def test_untrained_it_is_the_best_linear_denoiser() -> None:
    """E[x | y] of a Gaussian with this covariance, by the textbook's inverse, in float64."""
    model, planes = make_denoiser(smooth_planes(300)), smooth_planes(4, seed=1)
    t = torch.tensor([0, 10, 30, 49])
    eps = torch.randn(planes.shape, generator=torch.Generator().manual_seed(2))
    bar = model.bars[t].view(-1, 1, 1, 1, 1)
    noisy = bar.sqrt() * planes + (1 - bar).sqrt() * eps
    found = model(noisy, t, torch.randn(4, 512))
    span = torch.linalg.qr(model.span().double())[0]
    identity = torch.eye(len(span), dtype=torch.float64)
    covariance = span @ torch.diag(model.variance.double()) @ span.T + model.rest.double() * (identity - span @ span.T)
    for i, a in enumerate(model.bars[t].double()):
        wanted = a.sqrt() * covariance @ torch.linalg.solve(a * covariance + (1 - a) * identity,
                                                            noisy[i].double().flatten())
        assert torch.allclose(found[i].double().flatten(), wanted, atol=2e-3 * float(wanted.abs().max()))


def test_training_beats_the_linear_denoiser() -> None:
    """Two kinds of planes, told apart by z alone: what the covariance cannot know, the network learns."""
    planes = smooth_planes(300)
    model = make_denoiser(planes)
    clean = model.numbers(planes)
    clean[:, 0] = torch.where(torch.arange(300) % 2 == 0, 2.0, -2.0) * model.variance[0].sqrt()
    z = torch.where(torch.arange(300)[:, None] % 2 == 0, 1.0, -1.0) * torch.full((300, 512), 512**-0.5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(150):
        loss = model.training_loss(clean, z, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_saving_and_loading_keeps_the_components(tmp_path) -> None:
    model = make_denoiser(smooth_planes(300))
    model.save(tmp_path)
    again = PrincipalDenoiser.from_folder(tmp_path)
    assert again.config == CONFIG and again.resolution == 8 and not any(p.requires_grad for p in again.parameters())
    assert torch.allclose(again.span(), model.span(), atol=1e-3)
    checkpoints.write_json(tmp_path / "config.json", {"unet": {}})
    with pytest.raises(ValueError, match="does not describe a principal denoiser"):
        PrincipalDenoiser.from_folder(tmp_path)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_base_diffusion_starts_from_it(prediction: str, tmp_path) -> None:
    """Whatever is predicted, the untrained base says what the components say about the clean planes."""
    torch.manual_seed(0)
    model = BaseDiffusion(UNET, dataclasses.replace(NOISE, prediction=prediction), 2, CONFIG)
    model.principal.load_state_dict(make_denoiser(smooth_planes(300)).state_dict())
    noisy, z = smooth_planes(2, seed=3), torch.randn(2, 512)
    t = torch.tensor([20, 20])
    said, bar = model.predict(noisy, t, z), float(model.bars[20])
    clean = {"sample": said, "epsilon": (noisy - (1 - bar) ** 0.5 * said) / bar**0.5,
             "v_prediction": bar**0.5 * noisy - (1 - bar) ** 0.5 * said}[prediction]
    assert torch.allclose(clean, model.principal(noisy, t, z), atol=1e-4)
    model.save(tmp_path, torch.float32)
    again = BaseDiffusion.from_folder(tmp_path)
    assert torch.equal(again.predict(noisy, t, z), said)


def test_command_trains_and_the_base_takes_what_it_wrote(tmp_path, monkeypatch) -> None:
    preset = dataclasses.replace(PRESETS["mini"], base=UNET, base_noise=NOISE, principal=CONFIG,
                                 planes=dataclasses.replace(PRESETS["mini"].planes, channels=2))
    monkeypatch.setitem(PRESETS, "mini", preset)
    checkpoints.save_tensors(tmp_path / "coarse" / "planes-00000.safetensors",
                             {"planes": smooth_planes(12).half(), "avatars": torch.arange(12)})
    checkpoints.save_tensors(tmp_path / "z.safetensors",
                             {"pictures": torch.randn(12, 2, 512).half(), "words": torch.randn(12, 3, 512).half()})
    common = ["--coarse", str(tmp_path / "coarse"), "--latents", str(tmp_path / "z.safetensors"),
              "--steps", "3", "--batch", "4"]
    assert command.main([*common, "--output", str(tmp_path / "p")]) == 0
    from rodin_model.train import base

    assert base.main([*common, "--output", str(tmp_path / "b")]) == 2  # the preset needs --principal
    assert base.main([*common, "--output", str(tmp_path / "b"), "--principal", str(tmp_path / "p" / "model")]) == 0
    trained, used = PrincipalDenoiser.from_folder(tmp_path / "p" / "model"), BaseDiffusion.from_folder(
        tmp_path / "b" / "model").principal
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), used.state_dict().values(),
                                                 strict=True))
