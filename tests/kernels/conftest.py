"""What the kernel tests share: memory that shows which elements were never written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rodin_kernels.testing import poisoned


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory holds NaN, so that an operator that leaves an element unwritten fails its test."""
    with poisoned():
        yield
