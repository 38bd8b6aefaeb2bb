"""Weights of other projects' 3D-aware convolutions, whose 3C input channels come in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_tensor

#: For each plane, where [own plane, line along the columns, line along the rows] lie among another project's thirds.
SlotOrder = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]

#: RodinHD's Conv3DAware, planes xy, xz, yz with the first axis along the columns (layout `RODINHD`): xy sees
#: [own, x, y], xz [x, own, z], yz [y, z, own].
RODINHD_SLOTS: SlotOrder = ((0, 1, 2), (1, 0, 2), (2, 0, 1))

#: TriplaneConv of Sin3DM and SemCity, planes xy, xz, yz with the first axis along the rows (layout ("yx", "zx", "zy")):
#: xy sees [own, y, x], xz [own, x, z], yz [own, y, z].
SIN3DM_SLOTS: SlotOrder = ((0, 1, 2), (0, 2, 1), (0, 2, 1))


def reorder_slots(weight: Tensor, order: SlotOrder | Sequence[Sequence[int]]) -> Tensor:
    """The weight of another project's roll-out convolution with its input channels in the order of `rollout_conv`.

        result[p, :, s C + c] = weight[p, :, order[p][s] C + c]

    Args:
        weight: [3, O, 3C, k, k], the three planes' kernels stacked in the order of the layout that is passed to
            `rollout_conv`; each plane's C channels of every third lie together.
        order: for each plane, which third is the own plane, which the line along its columns, which the line along its
            rows: `RODINHD_SLOTS`, `SIN3DM_SLOTS` or another three permutations of 0, 1, 2.

    Returns:
        [3, O, 3C, k, k], a copy; the biases [3, O] need no change. Differentiable.

    Raises:
        TypeError: `weight` is no floating tensor.
        ValueError: a shape does not fit, or `order` is not three permutations.
    """
    check_tensor("weight", weight, ndim=5)
    if weight.shape[0] != 3 or weight.shape[2] % 3:
        raise ValueError(f"weight must be [3, O, 3C, k, k]; got {list(weight.shape)}")
    if len(order) != 3 or any(sorted(one) != [0, 1, 2] for one in order):
        raise ValueError(f"order must be three permutations of 0, 1, 2; got {order!r}")
    thirds = weight.unflatten(2, (3, -1)).unbind(0)
    return torch.stack([third[:, list(one)] for third, one in zip(thirds, order, strict=True)]).flatten(2, 3)
