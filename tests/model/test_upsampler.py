"""The notch of the upsampler: the grid that drawing in patches leaves goes, everything else stays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rodin_model.config import NoiseConfig, UNetConfig
from rodin_model.upsampler import Upsampler, notched

UNET = UNetConfig(resolution=16, in_channels=8, out_channels=4, channels=8, channel_mult=(1, 2), blocks=(1, 1),
                  cross_plane=(16,), embedding=16, groups=4, patch=2)
NOISE = NoiseConfig("sigmoid", 0.0, 3.0, 0.3, steps=10, prediction="sample")


def alternating(size: int) -> torch.Tensor:
    """1, -1, 1, ... in float64."""
    return (1.0 - 2.0 * (torch.arange(size) % 2)).double()


@pytest.mark.parametrize("size", [16, 17, 32])
@pytest.mark.parametrize("reach", [0.7, 2.0, 4.0])
def test_what_alternates_from_texel_to_texel_is_gone_up_to_the_border(size: int, reach: float) -> None:
    stripes = alternating(size).expand(2, 3, 4, size, size)  # not contiguous, too
    for grid in (stripes, stripes.mT, stripes * stripes.mT):
        torch.testing.assert_close(notched(grid, reach), torch.zeros(2, 3, 4, size, size).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("reach", [1.5, 3.0])
def test_it_takes_of_every_frequency_the_share_that_the_formula_says(reach: float) -> None:
    planes = torch.zeros(1, 3, 1, 64, 64, dtype=torch.float64)
    planes[..., 32, 32] = 1
    passed = torch.fft.fft2(notched(planes, reach)[0, 0, 0]).abs()
    away = math.pi - 2 * math.pi * torch.fft.fftfreq(64, dtype=torch.float64).abs()
    taken = torch.exp(-0.5 * (reach * away) ** 2)
    torch.testing.assert_close(passed, (1 - taken)[:, None] * (1 - taken), rtol=0, atol=0.01)
    assert passed[0, 0] > 0.999


def test_planes_have_nothing_to_do_with_each_other() -> None:
    planes = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = notched(planes[1:, 2:, 3:].contiguous(), 2.0)
    torch.testing.assert_close(notched(planes, 2.0)[1:, 2:, 3:], alone)
    assert notched(planes[:0], 2.0).shape == (0, 3, 4, 16, 16)


def test_it_can_be_learned_through() -> None:
    planes = torch.randn(1, 1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: notched(x, 1.3), (planes,))


def test_an_upsampler_draws_without_the_grid_and_keeps_that_on_disk(tmp_path: Path) -> None:
    model = Upsampler(UNET, NOISE, 4, notch=2.0).eval()
    model.set_statistics(torch.randn(3, 4, 16, 16), 1 + torch.rand(3, 4, 1, 1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save(tmp_path, dtype=torch.float32)
    again, coarse, z = Upsampler.from_folder(tmp_path), torch.randn(2, 3, 4, 8, 8), torch.randn(2, 512)
    noise = torch.randn(2, 3, 4, 16, 16)
    fine = again.sample(coarse, z, generators=[], noise=noise, steps=1)
    again.notch = 0.0
    bare = again.sample(coarse, z, generators=[], noise=noise, steps=1)
    wanted = notched((bare - model.mean) / model.std, 2.0) * model.std + model.mean
    torch.testing.assert_close(fine, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(fine, bare, atol=0.01)


@pytest.mark.parametrize("notch", [-1.0, 5.1, float("nan")])
def test_what_does_not_fit_is_refused(notch: float) -> None:
    with pytest.raises(ValueError, match="notch must be 0 or more"):
        Upsampler(UNET, NOISE, 4, notch=notch)
