"""How far two pictures are apart: PSNR in decibel and SSIM, on float pictures in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(actual: Tensor, expected: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures [..., H, W, C] in [0, 1]: [...] in dB, -10 log10(mean squared error).

    Each picture has its own value; equal pictures give infinity. Different shapes are a ValueError.
    """
    _same_pictures(actual, expected)
    error = (actual.to(torch.float64) - expected.to(torch.float64)).square().mean((-3, -2, -1))
    return (-10.0 * error.log10()).to(torch.float32)


def ssim(actual: Tensor, expected: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures [..., H, W, C] in [0, 1]: [...], 1 for equal pictures.

    A Gaussian window of `window` pixels and width `sigma`, constants K1 = 0.01 and K2 = 0.03, population variances;
    averaged over the positions where the whole window lies inside, and over channels. Pictures smaller than the
    window are a ValueError. Differentiable in both pictures.
    """
    _same_pictures(actual, expected)
    height, width, channels = actual.shape[-3:]
    if min(height, width) < window:
        raise ValueError(f"pictures must be at least window = {window} pixels high and wide; got {height} x {width}")
    x, y = (picture.reshape(-1, height, width, channels).permute(0, 3, 1, 2).float() for picture in (actual, expected))
    offsets = torch.arange(window, device=x.device, dtype=torch.float32) - (window - 1) / 2
    line = torch.exp(-offsets.square() / (2 * sigma * sigma))
    line = line / line.sum()
    blurred = _blur(torch.cat([x, y, x * x, y * y, x * y], 1), line)
    mean_x, mean_y, square_x, square_y, product = blurred.chunk(5, 1)
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    value = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
             / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)))
    return value.mean((1, 2, 3)).reshape(actual.shape[:-3])


def _blur(pictures: Tensor, line: Tensor) -> Tensor:
    """Separable blur of [B, C, H, W] by one line of weights, without padding."""
    channels = pictures.shape[1]
    columns = line.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    rows = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(pictures, columns, groups=channels), rows, groups=channels)


def _same_pictures(actual: Tensor, expected: Tensor) -> None:
    if actual.shape != expected.shape or actual.ndim < 3:
        raise ValueError(f"two pictures [..., H, W, C] of one shape are needed; got {tuple(actual.shape)} and "
                         f"{tuple(expected.shape)}")
