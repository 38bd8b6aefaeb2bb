"""Two Triton kernels that measure a GPU: random reads and random additions of rows, with nothing around them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_kernel(table, places, out, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Program i writes the sum of the BLOCK rows that `places` names; every row is CHANNELS float32 numbers."""
    program = tl.program_id(0).to(tl.int64)
    rows = tl.load(places + program * BLOCK + tl.arange(0, BLOCK))
    columns = tl.arange(0, CHANNELS)
    values = tl.load(table + rows[:, None] * CHANNELS + columns[None, :])
    tl.store(out + program * CHANNELS + columns, tl.sum(values, 0))


@triton.jit
def reduce_kernel(table, places, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Program i adds 1 to the BLOCK rows that `places` names."""
    program = tl.program_id(0).to(tl.int64)
    rows = tl.load(places + program * BLOCK + tl.arange(0, BLOCK))
    columns = tl.arange(0, CHANNELS)
    ones = tl.full((BLOCK, CHANNELS), 1.0, tl.float32)
    tl.atomic_add(table + rows[:, None] * CHANNELS + columns[None, :], ones, sem="relaxed")
