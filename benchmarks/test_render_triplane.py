"""Volume rendering: `pytest benchmarks/test_render_triplane.py`, sizes by `--level`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import rendering as CASES

__all__ = ["CASES"]


def test_render_triplane(contest: Callable[[Any], None], benchmark: Any) -> None:
    """Agreement first, then time."""
    contest(benchmark)
