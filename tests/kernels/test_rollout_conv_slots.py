"""Weights of other projects give the same planes after their slots are reordered."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import RODINHD, rollout_conv
from rodin_kernels.rollout_conv import RODINHD_SLOTS, SIN3DM_SLOTS, reorder_slots
from rodin_kernels.testing import random_tensor

DOUBLE = torch.float64


def replicated(plane: Tensor, dim: int, axis: int, like: Tensor) -> Tensor:
    """The plane's mean over `dim`, laid along `axis` (-1: the columns) of a plane like `like`."""
    line = plane.mean(dim)
    return (line.unsqueeze(-2) if axis == -1 else line.unsqueeze(-1)).expand_as(like)


def test_rodinhd_s_order_is_understood() -> None:
    weight, bias = random_tensor(3, 4, 6, 3, 3, dtype=DOUBLE), random_tensor(3, 4, dtype=DOUBLE)
    x, y, z = 4, 5, 6
    # planes xy, xz, yz, the first axis along the columns
    xy, xz, yz = (random_tensor(2, 2, *size, seed=i, dtype=DOUBLE) for i, size in enumerate(((y, x), (z, x), (z, y))))
    seen = (
        [xy, replicated(xz, -2, -1, xy), replicated(yz, -2, -2, xy)],
        [replicated(xy, -2, -1, xz), xz, replicated(yz, -1, -2, xz)],
        [replicated(xy, -1, -1, yz), replicated(xz, -1, -2, yz), yz],
    )
    got = rollout_conv([xy, xz, yz], reorder_slots(weight, RODINHD_SLOTS), bias, layout=RODINHD)
    for have, parts, kernel, shift in zip(got, seen, weight, bias, strict=True):
        torch.testing.assert_close(have, F.conv2d(torch.cat(parts, 1), kernel, shift, padding=1))


def test_sin3dm_s_order_is_understood() -> None:
    weight = random_tensor(3, 4, 6, 3, 3, dtype=DOUBLE)
    x, y, z = 4, 5, 6
    # planes xy, xz, yz, the first axis along the rows
    xy, xz, yz = (random_tensor(2, 2, *size, seed=i, dtype=DOUBLE) for i, size in enumerate(((x, y), (x, z), (y, z))))
    seen = (
        [xy, replicated(yz, -1, -1, xy), replicated(xz, -1, -2, xy)],
        [xz, replicated(xy, -1, -2, xz), replicated(yz, -2, -1, xz)],
        [yz, replicated(xy, -2, -2, yz), replicated(xz, -2, -1, yz)],
    )
    got = rollout_conv([xy, xz, yz], reorder_slots(weight, SIN3DM_SLOTS), layout=("yx", "zx", "zy"))
    for have, parts, kernel in zip(got, seen, weight, strict=True):
        torch.testing.assert_close(have, F.conv2d(torch.cat(parts, 1), kernel, padding=1))


@pytest.mark.parametrize("shape, order, message", [
    ((4, 6, 3, 3), RODINHD_SLOTS, "5 dimensions"),
    ((3, 4, 5, 3, 3), RODINHD_SLOTS, r"weight must be \[3, O, 3C, k, k\]"),
    ((3, 4, 6, 3, 3), ((0, 1, 2), (0, 1, 2)), "three permutations"),
    ((3, 4, 6, 3, 3), ((0, 1, 2), (0, 1, 2), (0, 0, 2)), "three permutations"),
])  # fmt: skip
def test_bad_orders_are_named(shape: tuple[int, ...], order: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reorder_slots(torch.zeros(shape), order)  # type: ignore[arg-type]
