"""A residual block of a Sin3DM-style U-Net on our convolution: three planes of different sizes, a weight for each.

    python examples/sin3dm_block.py

Sin3DM (and SemCity, which shares its code) gives every plane the other two by averaging, expanding and concatenating:
3C channels into each of its convolutions. `rollout_conv` computes the same for the price of C channels. Planes are xy,
xz, yz with the first axis along the rows, and the order of the three inputs differs from plane to plane; `load` puts
trained weights into ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_kernels import rollout_conv
from rodin_kernels.rollout_conv import SIN3DM_SLOTS, reorder_slots

#: Columns first: Sin3DM's plane xy has x along its rows and y along its columns.
LAYOUT = ("yx", "zx", "zy")
NAMES = ("xy", "xz", "yz")


class TriplaneConv(nn.Module):
    """The 3D-aware convolution with a weight for each plane; sees other planes only if `cross_plane`."""

    def __init__(self, channels: int, outputs: int, kernel: int = 3, *, cross_plane: bool = True) -> None:
        super().__init__()
        self.cross_plane, self.padding = cross_plane, kernel // 2
        inputs = 3 * channels if cross_plane else channels
        plain = [nn.Conv2d(inputs, outputs, kernel) for _ in NAMES]
        self.weight = nn.Parameter(torch.stack([conv.weight.detach() for conv in plain]))
        self.bias = nn.Parameter(torch.stack([conv.bias.detach() for conv in plain]))

    def forward(self, planes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Three planes [B, C, H, W] of their own sizes -> three [B, O, H, W]."""
        if self.cross_plane:
            return rollout_conv(planes, self.weight, self.bias, layout=LAYOUT, padding=self.padding)
        return tuple(F.conv2d(x, w, b, padding=self.padding)
                     for x, w, b in zip(planes, self.weight, self.bias, strict=True))

    def load(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take the weights of Sin3DM's module: `conv_xy.weight`, `conv_xy.bias` and so on."""
        weight = torch.stack([state[f"{prefix}conv_{name}.weight"] for name in NAMES])
        with torch.no_grad():
            self.weight.copy_(reorder_slots(weight, SIN3DM_SLOTS) if self.cross_plane else weight)
            self.bias.copy_(torch.stack([state[f"{prefix}conv_{name}.bias"] for name in NAMES]))


class TriplaneBlock(nn.Module):
    """norm, SiLU, conv, scaled and shifted norm, SiLU, conv, added to the input; norms of each plane on its own."""

    def __init__(self, channels: int, outputs: int, embedding: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in NAMES)
        self.norm2 = nn.ModuleList(nn.GroupNorm(groups, outputs) for _ in NAMES)
        self.conv1, self.conv2 = TriplaneConv(channels, outputs), TriplaneConv(outputs, outputs)
        self.project = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Identity() if channels == outputs else TriplaneConv(channels, outputs, 1, cross_plane=False)

    def forward(self, planes: Sequence[Tensor], embedding: Tensor) -> tuple[Tensor, ...]:
        """Planes [B, C, H, W] of their own sizes, embedding [B, E] of the time step."""
        hidden = self.conv1([F.silu(norm(x)) for norm, x in zip(self.norm1, planes, strict=True)])
        scale, shift = self.project(F.silu(embedding))[..., None, None].chunk(2, 1)
        hidden = [F.silu(norm(x) * (1 + scale) + shift) for norm, x in zip(self.norm2, hidden, strict=True)]
        return tuple(x + y for x, y in zip(self.skip(planes), self.conv2(hidden), strict=True))


def main() -> None:
    """One block on the planes of a box that is longer than it is wide, and its gradient."""
    torch.manual_seed(0)
    block = TriplaneBlock(64, 96, embedding=128)
    x, y, z = 48, 32, 24
    planes = [torch.randn(2, 64, rows, columns) for rows, columns in ((x, y), (x, z), (y, z))]
    out = block(planes, torch.randn(2, 128))
    sum(plane.square().mean() for plane in out).backward()
    print([list(plane.shape) for plane in out], "gradient", block.conv2.weight.grad.norm().item())


if __name__ == "__main__":
    main()
