"""The specification of the 3D-aware convolution: average, replicate, concatenate, convolve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import RODIN, cross_sources


def rollout_conv_reference(
    planes: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    layout: Sequence[str] = RODIN,
    stride: int = 1,
    padding: int = 1,
    transposed: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """What `rollout_conv` computes, in plain PyTorch (Rodin, section 3.2): same arguments, same result.

        y_p = conv2d([x_p, line along the columns, line along the rows]; weight_p) + bias_p

    Any device and floating dtype; differentiable any number of times. `rollout_conv` checks the arguments.
    """
    own = list(planes.unbind(1)) if isinstance(planes, Tensor) else list(planes)
    results = []
    for index, (columns, rows) in enumerate(cross_sources(layout)):
        x = own[index]
        along_columns = own[columns[0]].mean(columns[1]).unsqueeze(-2).expand_as(x)
        along_rows = own[rows[0]].mean(rows[1]).unsqueeze(-1).expand_as(x)
        stacked = torch.cat([x, along_columns, along_rows], 1)
        kernel = weight if weight.ndim == 4 else weight[index]
        shift = bias if bias is None or bias.ndim == 1 else bias[index]
        if transposed:
            y = F.conv_transpose2d(stacked, kernel.transpose(0, 1), shift, stride, padding, stride - 1)
        else:
            y = F.conv2d(stacked, kernel, shift, stride, padding)
        results.append(y)
    return torch.stack(results, 1) if isinstance(planes, Tensor) else (results[0], results[1], results[2])
