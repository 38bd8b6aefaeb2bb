"""The 3D-aware convolution as a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..layouts import RODIN, Layout, check_layout, cross_sources
from .op import rollout_conv


class RolloutConv(nn.Module):
    """The 3D-aware convolution with its weight and bias; computes `rollout_conv`.

    Args:
        in_channels: C, channels of each plane.
        out_channels: O.
        kernel_size: k; any whole number, usually 1, 3 or 5.
        stride, padding, transposed, layout, backend: as in `rollout_conv`; `padding=None` is half the kernel, which
            keeps the size at stride 1 and odd k.
        bias: whether a bias is added.
        separate: a weight and bias for each plane, instead of one shared by the three.
        device, dtype: of the parameters.

    Parameters are initialised as those of torch.nn.Conv2d with 3C input channels.

    Raises:
        TypeError, ValueError: a size is no positive integer, or the layout lacks a pair of axes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        transposed: bool = False,
        bias: bool = True,
        separate: bool = False,
        layout: Sequence[str] = RODIN,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, least=1)
        self.out_channels = check_integer("out_channels", out_channels, least=1)
        self.kernel_size = check_integer("kernel_size", kernel_size, least=1)
        self.stride = check_integer("stride", stride, least=1)
        self.padding = kernel_size // 2 if padding is None else check_integer("padding", padding, least=0)
        self.transposed, self.backend = transposed, backend
        self.layout: Layout = check_layout(layout)
        cross_sources(self.layout)
        lead = (3, out_channels) if separate else (out_channels,)
        shape = (*lead, 3 * in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(lead, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters, uniform within 1 / sqrt(3 C k^2)."""
        bound = 1 / math.sqrt(3 * self.in_channels * self.kernel_size**2)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, planes: Tensor) -> Tensor:
        """[B, 3, C, R, R] -> [B, 3, O, R', R']; three separate planes give three."""
        return rollout_conv(
            planes,
            self.weight,
            self.bias,
            layout=self.layout,
            stride=self.stride,
            padding=self.padding,
            transposed=self.transposed,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """What `print` shows."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}, layout={self.layout}"
        text += ", transposed=True" if self.transposed else ""
        text += ", separate=True" if self.weight.ndim == 5 else ""
        return text + ("" if self.bias is not None else ", bias=False")
