"""How a file has its tests run that need Triton's interpreter, which a process chooses when it imports Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def assert_passes_interpreted(file: str, *options: str, timeout: float = 1800) -> None:
    """The tests of `file` that are marked `interpret` pass in a process of their own; skipped inside that process."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the interpreter's own process")
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "-m", "interpret", "-p", "no:cacheprovider", file],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
