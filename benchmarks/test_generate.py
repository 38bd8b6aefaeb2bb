"""Words to a picture, end to end: `pytest benchmarks/test_generate.py`, sizes by `--level`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import generation as CASES

__all__ = ["CASES"]


def test_generate(contest: Callable[[Any], None], benchmark: Any) -> None:
    """Agreement first, then time."""
    contest(benchmark)
