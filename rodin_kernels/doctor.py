"""What this machine can run and whether it works: `python -m rodin_kernels.doctor`.

Versions, devices, the path that each operator takes and why, a self-test, and what to install for more.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import (
    TinyDecoder,
    __version__,
    configs,
    launch,
    render_triplane,
    render_triplane_reference,
    rollout_conv,
    rollout_conv_reference,
    sample_triplane,
    sample_triplane_reference,
)
from .testing import assert_within_budget, random_tensor

OPERATORS = ("rollout_conv", "sample_triplane", "render_triplane")
Call = Callable[..., Any]


class Path(NamedTuple):
    """The path that an operator takes on a kind of device, and why."""

    operator: str
    device: str
    backend: str
    reason: str


def versions() -> list[tuple[str, str]]:
    """Packages that the operators stand on, and what is missing."""
    found = [("rodin_kernels", __version__), ("python", sys.version.split()[0]), ("torch", torch.__version__)]
    for package in ("triton", "einops", "numpy"):
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            found.append((package, "not installed"))
    return found


def devices() -> list[tuple[str, str]]:
    """Kinds of devices with their description, the CPU first."""
    cpu = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
    found = [("cpu", cpu + torch.backends.cpu.get_cpu_capability())]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        tuned = configs.find(configs.device_key(torch.device("cuda", index)))
        found.append((f"cuda:{index}", f"{facts.name}, capability {facts.major}.{facts.minor}, "
                      f"{facts.total_memory / 2**30:.0f} GiB, launch parameters "
                      + (f"tuned ({tuned.name})" if tuned else "shipped for its architecture")))
    return found


def paths() -> list[Path]:
    """What `backend="auto"` does for each operator on each device."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [_path(operator, kind) for operator in OPERATORS for kind in kinds]


def _path(operator: str, kind: str) -> Path:
    try:
        backend = launch.resolve_backend(operator, "auto", torch.empty(0, device=kind))
    except RuntimeError as error:
        return Path(operator, kind, "none", str(error))
    if backend == "triton":
        return Path(operator, kind, backend, "CUDA tensors, Triton installed, kernels in this version")
    if kind == "cpu":
        return Path(operator, kind, backend, "tensors on the CPU take the fast path in PyTorch")
    try:
        launch.resolve_backend(operator, "triton", torch.empty(0, device=kind))
        return Path(operator, kind, backend, "chosen by this version")
    except RuntimeError as error:
        return Path(operator, kind, backend, str(error))


def checks() -> list[tuple[str, Call, Call, list[Tensor]]]:
    """For each operator a small call, its specification, and float64 inputs; all of them get gradients."""
    planes, points = random_tensor(1, 3, 8, 9, 9, seed=1), random_tensor(1, 33, 3, seed=2) * 0.5
    planes, points = planes.double(), points.double()
    weight = random_tensor(5, 24, 3, 3, seed=3).double() * 0.1
    decoder = TinyDecoder(8, (16, 16))
    for index, parameter in enumerate(decoder.parameters()):
        parameter.data = random_tensor(*parameter.shape, seed=10 + index) * 0.3
        parameter.requires_grad_(False)
    origins = random_tensor(1, 7, 3, seed=4).double() * 0.1 + torch.tensor([0.0, 0.0, 3.0])
    directions = torch.tensor([0.02, -0.05, -1.0]).double().expand(1, 7, 3).contiguous()

    def rendered(render: Call) -> Call:
        def call(planes: Tensor, origins: Tensor, directions: Tensor, **options: Any) -> Tensor:
            own = TinyDecoder.from_config(decoder.config()).requires_grad_(False).to(planes)
            own.load_state_dict(decoder.state_dict())
            found = render(planes, origins, directions, own, near=2.0, far=4.0, num_samples=12, **options)
            return torch.cat([found.rgb, found.depth.unsqueeze(-1)], -1)
        return call

    return [
        ("rollout_conv", rollout_conv, rollout_conv_reference, [planes, weight]),
        ("sample_triplane", sample_triplane, sample_triplane_reference, [planes, points]),
        ("render_triplane", rendered(render_triplane), rendered(render_triplane_reference),
         [planes, origins, directions]),
    ]


def self_test() -> Iterator[tuple[str, str]]:
    """Every operator on every device and backend that can run here, forward and backward, against float64.

    Yields (what, "ok" or what is wrong).
    """
    for operator, call, reference, inputs in checks():
        for kind in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
            for backend in ("torch", "triton"):
                try:
                    launch.resolve_backend(operator, backend, torch.empty(0, device=kind))
                except RuntimeError:
                    continue
                yield f"{operator} on {kind}, backend {backend}", _verdict(call, reference, inputs, kind, backend)


def _verdict(call: Call, reference: Call, inputs: list[Tensor], kind: str, backend: str) -> str:
    try:
        exact = _with_gradients(reference, inputs)
        plain = _with_gradients(reference, [x.float() for x in inputs])
        got = _with_gradients(lambda *own: call(*own, backend=backend), [x.float().to(kind) for x in inputs])
        names = ("result", *(f"gradient of input {i}" for i in range(len(inputs))))
        for name, g, e, p in zip(names, got, exact, plain, strict=True):
            assert_within_budget(g, e, p, what=name)
    except Exception as error:  # a self-test reports whatever happens and goes on
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return "ok"


def _with_gradients(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    own = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(*own)
    cotangent = random_tensor(*out.shape, seed=7, dtype=out.dtype, device=out.device)
    return [out.detach(), *torch.autograd.grad(out, own, cotangent)]


def advice() -> list[str]:
    """What to install or set for more."""
    found = []
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        found.append("PyTorch was built without GPU support; for a GPU install another build (https://pytorch.org)"
                     if not built else "PyTorch is built for a GPU but sees none: is the driver installed?")
    if dict(versions())["triton"] == "not installed":
        found.append("pip install triton (Linux) for the kernels on GPUs")
    elif not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        found.append("TRITON_INTERPRET=1 runs the Triton kernels on the CPU: slow, for tests alone")
    if torch.cuda.is_available() and configs.find(configs.device_key("cuda")) is None:
        found.append("python -m rodin_kernels.tune searches launch parameters for this GPU")
    return found


def main() -> int:
    """Print the report; 0 if the self-test passes, 1 if not."""
    print("versions")
    for name, version in versions():
        print(f"  {name:14} {version}")
    print("devices")
    for name, words in devices():
        print(f"  {name:14} {words}")
    print("paths (backend='auto')")
    for path in paths():
        print(f"  {path.operator:16} {path.device:5} {path.backend:8} {path.reason}")
    print("self-test (float32 against float64, result and gradients)")
    failed = 0
    for what, verdict in self_test():
        failed += verdict != "ok"
        print(f"  {what:44} {verdict}")
    for line in advice():
        print(f"to do more: {line}")
    print("all is well" if not failed else f"{failed} of the self-tests failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
