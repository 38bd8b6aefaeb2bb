"""What every operator asks before it computes: which backend, how wide the offsets, on which device.

The answers come from facts that cannot change while the process runs (which files are installed, one environment
variable that Triton itself reads once), so they are looked up at import and cost nothing per call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checks import check_choice

#: What a caller may ask for.
BACKENDS = ("auto", "triton", "torch", "reference")

_FOLDERS = {"rollout_conv": "rollout_conv", "sample_triplane": "triplane_sample", "render_triplane": "volume_render"}
_WITH_KERNELS = frozenset(
    name for name, folder in _FOLDERS.items() if (Path(__file__).parent / folder / "kernels.py").is_file()
)
_TRITON_INSTALLED = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_LARGEST_INT32 = 2**31 - 1


def resolve_backend(op_name: str, backend: str, *tensors: Tensor | None) -> str:
    """The backend that will run: "triton", "torch" or "reference".

    "auto" is "triton" for CUDA tensors where this version has Triton kernels for the operator and Triton is installed,
    else "torch". With `TRITON_INTERPRET=1` in the environment, "triton" also takes CPU tensors.

    Args:
        op_name: public name of the operator, such as "rollout_conv"; it also appears in the errors.
        backend: one of `BACKENDS`.
        tensors: the operator's tensors; None is skipped.

    Raises:
        ValueError: `backend` is not one of `BACKENDS`.
        RuntimeError: "triton" was asked for and cannot run here; the message says why and what to use instead.
    """
    check_choice("backend", backend, BACKENDS)
    if backend in ("torch", "reference"):
        return backend
    on_gpu = any(tensor.is_cuda for tensor in tensors if tensor is not None)
    if backend == "auto":
        return "triton" if on_gpu and _TRITON_INSTALLED and op_name in _WITH_KERNELS else "torch"
    if op_name not in _WITH_KERNELS:
        raise RuntimeError(
            f"{op_name}: this version has no Triton kernels for it yet; use backend='auto' or backend='torch'"
        )
    if not _TRITON_INSTALLED:
        raise RuntimeError(f"{op_name}: backend='triton' needs the package triton, which is not installed")
    if not on_gpu and not _INTERPRETED:
        raise RuntimeError(
            f"{op_name}: backend='triton' needs CUDA tensors, or TRITON_INTERPRET=1 set before Python starts"
        )
    return "triton"


def needs_int64(*tensors: Tensor | None) -> bool:
    """True if an element of one of the tensors (None is skipped) lies so far from its first that int32 cannot count it.

    Offsets are counted in elements along the strides; expanded (stride 0) dimensions add nothing.
    """
    for tensor in tensors:
        if tensor is None or tensor.numel() == 0:
            continue
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if reach > _LARGEST_INT32:
            return True
    return False


def device_guard(tensor: Tensor) -> AbstractContextManager[object]:
    """A context that makes the tensor's device the current one, on which Triton launches whatever the tensor says."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_options(warps: int, stages: int | None = None) -> dict[str, Any]:
    """How a kernel is compiled and launched, besides its own arguments: warps, stages (None: Triton's choice), fusion.

    Products and sums are fused (one rounding, not two), which is what the kernels were inspected and tested with; said
    explicitly, because Triton's own default is about to change.
    """
    chosen = {} if stages is None else {"num_stages": stages}
    return {"num_warps": warps, **chosen, "enable_fp_fusion": True}


@contextmanager
def exact_float32(tensor: Tensor) -> Iterator[None]:
    """Inside, PyTorch's convolutions of float32 tensors on the GPU are exact, as its matrix products are by default.

    Unless the process asked for less by `torch.set_float32_matmul_precision`; other tensors change nothing.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    if not (tensor.is_cuda and tensor.dtype == torch.float32 and exact and torch.backends.cudnn.allow_tf32):
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True
