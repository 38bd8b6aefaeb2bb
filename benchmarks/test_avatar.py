"""A view of an avatar: `pytest benchmarks/test_avatar.py`, sizes by `--level`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import avatar as CASES

__all__ = ["CASES"]


def test_avatar(contest: Callable[[Any], None], benchmark: Any) -> None:
    """Agreement first, then time."""
    contest(benchmark)
