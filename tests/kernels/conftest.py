"""What the kernel tests share: memory that shows unwritten elements, and an interpreter that watches its addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from rodin_kernels.testing import poisoned


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory holds NaN, so that an operator that leaves an element unwritten fails its test."""
    with poisoned():
        yield


class Watched:
    """Triton's interpreter, with an error for every address outside of the tensors that the kernel was given."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.spans: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def load(self, places: Any, mask: Any, other: Any, dtype: Any) -> Any:
        """Checked."""
        self._check(places, mask, np.dtype(dtype).itemsize, "reads")
        return self.inner.load(places, mask, other, dtype)

    def store(self, places: Any, values: Any, mask: Any) -> Any:
        """Checked."""
        self._check(places, mask, values.dtype.itemsize, "writes")
        return self.inner.store(places, values, mask)

    def atomic_rmw(self, kind: Any, places: Any, values: Any, mask: Any, order: Any) -> Any:
        """Checked."""
        self._check(places, mask, values.dtype.itemsize, "adds")
        return self.inner.atomic_rmw(kind, places, values, mask, order)

    def _check(self, places: Any, mask: Any, size: int, what: str) -> None:
        used = places[mask.astype(bool)]
        inside = np.zeros(used.shape, bool)
        for first, last in self.spans:
            inside |= (used >= first) & (used + np.uint64(size) <= last)
        assert inside.all(), f"the kernel {what} {np.count_nonzero(~inside)} elements outside of its tensors"


@pytest.fixture
def watched_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, touching memory outside of the tensors of a kernel is an error, whatever comes of it."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    watched = Watched(interpreter._interpreter)
    launch = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        watched.spans = [_span(tensor) for tensor in tensors if tensor.numel()]
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_interpreter", watched)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor's elements and the first one after them."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
