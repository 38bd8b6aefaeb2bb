"""The fused renderer's memory: what its launch code allocates, counted at full size without spending it."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rodin_kernels import TinyDecoder
from rodin_kernels.volume_render.torch_path import March


class Counted(TorchDispatchMode):
    """Remembers every storage that an operation inside brings into the world."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        known = {x.untyped_storage()._cdata for x in flat if isinstance(x, torch.Tensor)}
        for x in torch.utils._pytree.tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in known:
                self.made[x.untyped_storage()._cdata] = x.untyped_storage()
        return found

    def beyond(self, returned: list[torch.Tensor]) -> int:
        """Bytes of all of them but those that come back."""
        kept = {x.untyped_storage()._cdata for x in returned}
        return sum(storage.nbytes() for key, storage in self.made.items() if key not in kept)


class Silent:
    """A kernel that is launched and does nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **named: None


def scene_of(side: int, resolution: int, dtype: torch.dtype, storage: str, cells: bool, samples: int) -> Any:
    from rodin_kernels.volume_render.triton_path import Scene

    planes = torch.empty(1, 3, resolution, resolution, 32, dtype=dtype, device="meta").permute(0, 1, 4, 2, 3)
    planes = planes.contiguous() if storage == "channels first" else planes
    rays = tuple(torch.empty(1, side * side, *last, device="meta") for last in ((3,), (3,), (), ()))
    parameters = [p.to("meta") for p in TinyDecoder(32, (64, 64)).parameters()]
    grid = torch.empty(1, 64, 64, 64, dtype=torch.bool, device="meta") if cells else None
    return Scene(planes, rays, None, grid, None, parameters, TinyDecoder(32, (64, 64)).choices,
                 ("xy,zx,yz", "sum", False, "zeros"), March(samples), 0, side)


def spent(scene: Any, needed: list[bool], programs: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that the real launch code allocates on its way, kernels left out."""
    from rodin_kernels.volume_render import triton_path

    for name, kernel in (("kernels", "forward_kernel"), ("backward_kernels", "backward_kernel")):
        stub = types.ModuleType(name)
        setattr(stub, kernel, Silent())
        monkeypatch.setitem(sys.modules, f"rodin_kernels.volume_render.{name}", stub)
    monkeypatch.setattr(triton_path, "_programs", lambda device: programs)
    with torch.no_grad(), Counted() as counted:
        results = triton_path.forward(scene)[:3]
        grads = [torch.empty_like(x) for x in results]
        found = triton_path.backward(scene, grads, results, needed)
    return counted.beyond([*results, *grads, *found])


@pytest.mark.parametrize(("dtype", "storage", "cells", "wanted"), [
    (torch.bfloat16, "channels last", False, "all"), (torch.bfloat16, "channels first", True, "all"),
    (torch.float32, "channels last", True, "planes"), (torch.float16, "channels last", False, "near"),
    (torch.float32, "channels first", False, "decoder"),
], ids=str)  # fmt: skip
def test_what_is_said_beforehand_is_what_is_allocated(dtype: torch.dtype, storage: str, cells: bool, wanted: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from rodin_kernels.volume_render.memory import scratch_bytes

    needed = {"all": [True] * 5 + [False] + [True] * 6, "planes": [True] + [False] * 11,
              "near": [False] * 3 + [True] + [False] * 8, "decoder": [False] * 6 + [True] * 6}[wanted]
    scene = scene_of(64, 32, dtype, storage, cells, 8)
    said, real = scratch_bytes(scene, needed, 24), spent(scene, needed, 24, monkeypatch)
    assert 0.55 * said <= real <= said


def test_a_picture_of_512_by_512_with_96_samples_takes_under_150_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from rodin_kernels.volume_render.memory import scratch_bytes
    from rodin_kernels.volume_render.triton_path import PROGRAMS_EACH

    needed, programs = [True] * 5 + [False] + [True] * 6, PROGRAMS_EACH * 132
    scene = scene_of(512, 256, torch.bfloat16, "channels last", True, 96)
    bounds = 4 * 8 * 512 * 512  # near and far as one number each, and rays made finite, are copied before
    said, real = scratch_bytes(scene, needed, programs), spent(scene, needed, programs, monkeypatch)
    print(f"{real / 1e6:.1f} MB spent, {said / 1e6:.1f} MB said")
    assert real + bounds <= said + bounds < 150e6
    longer = scene_of(512, 256, torch.bfloat16, "channels last", True, 960)
    assert scratch_bytes(longer, needed, programs) == said == scratch_bytes(scene, needed, programs)
