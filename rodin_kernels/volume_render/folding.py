"""The decoder's first layer done on the planes: it commutes with bilinear sampling, and planes are fewer than samples.

    W sum_p f_p(x) = sum_p (W f_p)(x),      W [f_1(x), f_2(x), f_3(x)] = sum_p (W_p f_p)(x)

with f_p(x) the features that plane p has at x, W_p the columns of W that belong to it, and (W f_p) the plane whose
every texel went through W. Exact to rounding, for any padding and alignment; the bias stays outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decoder import DecoderConfig, color_of, density_of
from .perceptron import ROWS, activated, mlp

#: Operations that reading one number of a texel is worth: reading is bound by memory, the layers are not.
READ = 8
#: Share of the samples, one in so many, that is decoded where an occupancy grid leaves out the rest.
OCCUPIED = 8


def folds(config: DecoderConfig, reduce: str, channels: int, texels: int, samples: int) -> bool:
    """Whether folding takes fewer operations.

        samples (D H - 12 READ (H - C)) > 3 texels C H,     D = C, or 3 C for "concat"

    Args:
        reduce: as for `sample_triplane`; "product" does not commute. channels: C. texels: of a plane.
        samples: that are decoded. H is the width of the first hidden layer.
    """
    if reduce == "product" or not config.hidden or config.density_features:
        return False
    if config.feature_frequencies or config.view_directions != "none":
        return False
    width = config.hidden[0]
    gain = config.in_features * width - 12 * READ * (width - channels)
    return samples * gain > 3 * texels * channels * width


def folded_planes(planes: Tensor, weight: Tensor, reduce: str) -> tuple[Tensor, str]:
    """Planes through the first layer.

    Args:
        planes: [B, 3, H, W, C]. weight: [H', C], or [H', 3 C] for "concat".

    Returns:
        [B, 3, H, W, H'], and how they are now reduced. Differentiable any number of times in both.
    """
    if reduce != "concat":
        return planes @ weight.t(), reduce
    each = weight.view(len(weight), 3, 1, -1).permute(1, 2, 3, 0)
    return planes @ each, "sum"


def decode_folded(config: DecoderConfig, parameters: Sequence[Tensor], features: Tensor,
                  raw: bool = False) -> tuple[Tensor, Tensor]:
    """What `decode` returns, from features [..., H'] of folded planes; `parameters` without the first weight.

    Without gradients the features are used up.
    """
    flat = [p.to(features.dtype) for p in parameters]
    if torch.is_grad_enabled() and (features.requires_grad or any(p.requires_grad for p in flat)):
        first = activated(features + flat[0] if config.bias else features, config.activation)
    else:
        # rows that fit into the cache, and no fresh memory
        for rows in features.view(-1, features.shape[-1]).split(ROWS[0]):
            rows.copy_(activated(rows.add_(flat[0]) if config.bias else rows, config.activation))
        first = features
    out = mlp(first, flat[1:] if config.bias else flat, config.activation, config.bias)
    return (out[..., 0] if raw else density_of(config, out[..., 0])), color_of(config, out[..., 1:])


def fold(planes: Tensor, parameters: Sequence[Tensor], reduce: str) -> tuple[Tensor, str]:
    """`folded_planes` by the first of a decoder's parameters, in the planes' type."""
    with torch.autocast(planes.device.type, enabled=False):
        return folded_planes(planes, parameters[0].to(planes.dtype), reduce)
