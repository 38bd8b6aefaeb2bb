"""The choice of backend, the width of offsets, the current device."""

from __future__ import annotations

import pytest
import torch

from rodin_kernels import launch

TENSOR = torch.zeros(2)


@pytest.mark.parametrize("name", ["rollout_conv", "sample_triplane", "render_triplane", "volume_weights"])
def test_auto_is_torch_without_a_gpu(name: str) -> None:
    assert launch.resolve_backend(name, "auto", TENSOR, None) == "torch"
    assert launch.resolve_backend(name, "reference", TENSOR) == "reference"


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'torch', 'reference'; got 'cuda'"):
        launch.resolve_backend("rollout_conv", "cuda", TENSOR)


def test_missing_kernels_are_told_apart_from_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_WITH_KERNELS", frozenset())
    with pytest.raises(RuntimeError, match="rollout_conv: this version has no Triton kernels"):
        launch.resolve_backend("rollout_conv", "triton", TENSOR)
    monkeypatch.setattr(launch, "_WITH_KERNELS", frozenset({"rollout_conv"}))
    monkeypatch.setattr(launch, "_TRITON_INSTALLED", False)
    with pytest.raises(RuntimeError, match="needs the package triton"):
        launch.resolve_backend("rollout_conv", "triton", TENSOR)


def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_WITH_KERNELS", frozenset({"rollout_conv"}))
    monkeypatch.setattr(launch, "_TRITON_INSTALLED", True)
    monkeypatch.setattr(launch, "_INTERPRETED", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        launch.resolve_backend("rollout_conv", "triton", TENSOR)
    monkeypatch.setattr(launch, "_INTERPRETED", True)
    assert launch.resolve_backend("rollout_conv", "triton", TENSOR) == "triton"
    assert launch.resolve_backend("rollout_conv", "auto", TENSOR) == "torch"


def test_offsets_widen_exactly_where_int32_ends() -> None:
    assert not launch.needs_int64(torch.empty(2**31, device="meta"))
    assert launch.needs_int64(torch.empty(2**31 + 1, device="meta"))
    assert launch.needs_int64(None, torch.empty(3, 2**30, device="meta"))
    assert not launch.needs_int64(torch.empty(1, 2**20, device="meta").expand(2**20, -1))
    assert not launch.needs_int64(torch.empty(0, 2**40, device="meta"))


def test_the_guard_does_nothing_for_cpu_tensors() -> None:
    with launch.device_guard(TENSOR):
        assert torch.equal(TENSOR, torch.zeros(2))


@pytest.mark.multigpu
def test_the_guard_makes_the_tensor_s_device_current() -> None:
    with launch.device_guard(torch.zeros(1, device="cuda:1")):
        assert torch.cuda.current_device() == 1


def test_launches_say_how_products_and_sums_are_fused() -> None:
    assert launch.launch_options(8) == {"num_warps": 8, "enable_fp_fusion": True}
    assert launch.launch_options(4, 3)["num_stages"] == 3
