"""What this device can do at best, measured in the same run: copies, matrix products, random reads and additions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Work, short
from .clock import Clock, CpuClock

#: Texels of the table that is read and added to at random: three planes of 256 x 256 with 32 channels.
TABLE_ROWS, TABLE_CHANNELS = 3 * 256 * 256, 32


@dataclass(frozen=True)
class Ceilings:
    """Measured rates: bytes per second of a copy (reads and writes), random reads and random additions; operations
    per second by dtype of a matrix product or a 3 x 3 convolution of many channels, whichever is faster."""

    copy: float
    gather: float
    reduce: float
    matmul: dict[str, float] = field(default_factory=dict)

    def floor(self, work: Work, dtype: torch.dtype) -> float:
        """Seconds that `work` takes at least if the slowest of its parts ran at its ceiling and hid all others."""
        rate = self.matmul.get(short(dtype)) or self.matmul.get("float32", 0.0)
        parts = ((work.flops, rate), (work.moved, self.copy), (work.gathered, self.gather),
                 (work.reduced, self.reduce))
        return max(amount / rate for amount, rate in parts if rate)

    def as_json(self) -> dict[str, Any]:
        """Plain data for the results file."""
        return {"copy": self.copy, "gather": self.gather, "reduce": self.reduce, "matmul": self.matmul}


def measured(clock: Clock, level: str) -> Ceilings:
    """The ceilings of the clock's device."""
    small = level == "smoke"
    if isinstance(clock, CpuClock):
        elements, size, side, rows, dtypes = (1 << 24, 1536, 64, 1 << 19, (torch.float32,))
    else:
        elements, size, side, rows = (1 << 28, 8192, 256, 1 << 24)
        dtypes = (torch.bfloat16, torch.float16, torch.float32)
    if small:
        elements, size, side, rows = 1 << 12, 32, 4, 1 << 8
    device = clock.device
    source = torch.zeros(elements, device=device)
    target = torch.ones(elements, device=device)
    copy = _best(clock, lambda: target.copy_(source))
    matmul = {}
    for dtype in dtypes:
        matmul[short(dtype)] = max(_product_rate(clock, size, dtype), _convolution_rate(clock, side, dtype))
    table = torch.zeros(TABLE_ROWS, TABLE_CHANNELS, device=device)
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(TABLE_ROWS, (rows,), generator=generator).to(device)
    gather, reduce = (_random_on_cpu if isinstance(clock, CpuClock) else _random_on_gpu)(table, index)
    bytes_ = rows * TABLE_CHANNELS * 4
    return Ceilings(8 * elements / copy, bytes_ / _best(clock, gather), bytes_ / _best(clock, reduce), matmul)


def _product_rate(clock: Clock, size: int, dtype: torch.dtype) -> float:
    a, b = (torch.ones(size, size, dtype=dtype, device=clock.device) for _ in range(2))
    return 2 * size**3 / _best(clock, lambda: a @ b)


def _convolution_rate(clock: Clock, side: int, dtype: torch.dtype, channels: int = 256) -> float:
    """Some libraries convolve faster than they multiply."""
    x = torch.ones(1, channels, side, side, dtype=dtype, device=clock.device)
    weight = torch.ones(channels, channels, 3, 3, dtype=dtype, device=clock.device)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return 18 * channels**2 * side**2 / _best(clock, lambda: F.conv2d(x, weight, padding=1))


def _best(clock: Clock, run: Callable[[], Any]) -> float:
    """The median of some runs after one to warm up."""
    clock.seconds(run)
    return max(statistics.median(clock.seconds(run)[0] for _ in range(5)), 1e-9)


def _random_on_cpu(table: Tensor, index: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Sums of twelve rows by embedding_bag, and rows added by index_add."""
    bags = index[: index.numel() // 12 * 12].view(-1, 12)
    added = torch.ones(index.numel(), table.shape[1])
    return lambda: F.embedding_bag(bags, table, mode="sum"), lambda: table.index_add_(0, index, added)


def _random_on_gpu(table: Tensor, index: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two small kernels that read, and add to, rows of a table that the cache holds, and do nothing else."""
    from . import kernels

    block = 64
    places, grid = index.to(torch.int32), (index.numel() // block,)
    out = torch.empty(grid[0], table.shape[1], device=table.device)
    options = {"CHANNELS": table.shape[1], "BLOCK": block, "num_warps": 4}
    return (lambda: kernels.gather_kernel[grid](table, places, out, **options),
            lambda: kernels.reduce_kernel[grid](table, places, **options))
