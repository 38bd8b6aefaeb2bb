"""PSNR and SSIM against their formulas and against scikit-image."""

from __future__ import annotations

import math

import pytest
import torch

from rodin_model.metrics import psnr, ssim


def pictures(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    first = torch.rand(2, 24, 20, 3, generator=random)
    return first, (first + 0.1 * torch.randn(first.shape, generator=random)).clamp(0, 1)


def test_psnr_of_a_known_error() -> None:
    black = torch.zeros(5, 4, 3)
    torch.testing.assert_close(psnr(black, black + 0.1), torch.tensor(20.0), atol=1e-4, rtol=0)
    assert math.isinf(psnr(black, black))


def test_each_picture_has_its_own_value() -> None:
    first, second = pictures()
    for measure in (psnr, ssim):
        torch.testing.assert_close(measure(first, second)[1], measure(first[1], second[1]))


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    first, second = (picture[0] for picture in pictures())
    _, full = metrics.structural_similarity(first.numpy(), second.numpy(), channel_axis=-1, data_range=1.0, full=True,
                                            gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert float(ssim(first, second)) == pytest.approx(float(full[5:-5, 5:-5].mean()), abs=1e-5)
    assert float(ssim(first, first)) == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))
    with pytest.raises(ValueError, match="at least window = 11"):
        ssim(torch.zeros(8, 8, 3), torch.zeros(8, 8, 3))
