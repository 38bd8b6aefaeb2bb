"""One block of the U-Nets: `pytest benchmarks/test_unet_block.py`, sizes by `--level`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import block as CASES

__all__ = ["CASES"]


def test_unet_block(contest: Callable[[Any], None], benchmark: Any) -> None:
    """Agreement first, then time."""
    contest(benchmark)
