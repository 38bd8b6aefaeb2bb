"""The 3D-aware convolution: `pytest benchmarks/test_rollout_conv.py`, sizes by `--level`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import convolution as CASES

__all__ = ["CASES"]


def test_rollout_conv(contest: Callable[[Any], None], benchmark: Any) -> None:
    """Agreement first, then time."""
    contest(benchmark)
