"""Settings of all tests: hypothesis draws the same examples every time, GPU tests are skipped where there is no GPU.

Tests marked `interpret` run in Triton's interpreter, in processes of their own. Where there is a GPU they are GPU tests
as well: tensors are then made on it, and tests that take `other_dtype` run in bfloat16 too, which no interpreter can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "rodin", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", parent=settings.get_profile("rodin"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rodin"))
#: Whether Triton kernels run on a GPU in this process.
NATIVE = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
#: Parameters that change how a test runs, but hardly which kernels it compiles.
SAME_KERNELS = ("method", "deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` also runs the tests marked slow."""
    parser.addoption("--slow", action="store_true", default=False, help="also run the tests marked slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run or what was not asked for.

    Where there is a GPU, tests marked `interpret` are GPU tests as well, except those marked `interpret(only=True)`.
    """
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        interpreted = item.get_closest_marker("interpret")
        if NATIVE and interpreted is not None and not interpreted.kwargs.get("only"):
            item.add_marker(pytest.mark.gpu)
            interpreted = None
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("multigpu") and torch.cuda.device_count() < 2:
            item.add_marker(pytest.mark.skip(reason="needs two GPUs"))
        if interpreted is not None and not interpreting:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if NATIVE and item.get_closest_marker("gpu") and isinstance(item, pytest.Function):
            _group(config, item)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On a GPU, tests that take `other_dtype` run in their own dtype and in bfloat16."""
    if NATIVE and "other_dtype" in metafunc.fixturenames:
        metafunc.parametrize("other_dtype", [None, torch.bfloat16], ids=["own", "bfloat16"], indirect=True)


def _group(config: pytest.Config, item: pytest.Function) -> None:
    """With `--dist loadgroup` of pytest-xdist, tests that compile the same kernels share a process."""
    if config.pluginmanager.hasplugin("xdist"):
        call = getattr(item, "callspec", None)
        kept = [] if call is None else [f"{k}={v}" for k, v in call.params.items() if k not in SAME_KERNELS]
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {item.originalname} {' '.join(kept)}"))


@pytest.fixture
def other_dtype(request: pytest.FixtureRequest) -> torch.dtype | None:
    """A dtype in place of the test's own, on a GPU; None for its own."""
    return getattr(request, "param", None)


@pytest.fixture(autouse=True)
def on_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of native kernels make their tensors on the GPU; plain PyTorch convolves without tf32 there.

    After an illegal access nothing works in a process any more: the process ends, and pytest-xdist starts another.
    """
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    torch.set_default_device("cuda")
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.set_default_device(None)
    torch.backends.cudnn.allow_tf32 = before
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            os.write(2, f"{request.node.nodeid}: {error}\n".encode())
        os._exit(1)
