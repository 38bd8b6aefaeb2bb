"""Tri-plane sampling: `pytest benchmarks/test_sample_triplane.py`, sizes by `--level`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import sampling as CASES

__all__ = ["CASES"]


def test_sample_triplane(contest: Callable[[Any], None], benchmark: Any) -> None:
    """Agreement first, then time."""
    contest(benchmark)
