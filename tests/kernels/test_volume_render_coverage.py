"""What the fused renderer's kernels cover, how they are launched, and for what they are compiled."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from rodin_kernels import TinyDecoder
from rodin_kernels.volume_render import triton_path
from rodin_kernels.volume_render.coverage import covers, covers_gradient, covers_normals
from rodin_kernels.volume_render.decoder import DecoderConfig
from rodin_kernels.volume_render.torch_path import March

compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")


@pytest.mark.parametrize(("changes", "inside"), [
    ({}, True), ({"reduce": "mean"}, True), ({"reduce": "concat"}, False), ({"reduce": "product"}, False),
    ({"quadrature": "midpoint"}, False), ({"rays": 0}, False),
    ({"planes": torch.ones(1, 3, 4, 2, 2, dtype=torch.float64)}, False),
    ({"planes": torch.ones(1, 3, 4, 0, 2)}, False),
    ({"planes": torch.ones(1).expand(1, 3, 4, 2**15, 2**15)}, False),
    ({"config": DecoderConfig(4, (128, 7), 63)}, True), ({"config": DecoderConfig(4, (129,))}, False),
    ({"config": DecoderConfig(4, (8, 8, 8))}, False), ({"config": DecoderConfig(4, ())}, False),
    ({"config": DecoderConfig(4, (8,), 64)}, False), ({"config": DecoderConfig(4, feature_frequencies=1)}, False),
    ({"config": DecoderConfig(4, view_directions="concat")}, False),
    ({"config": DecoderConfig(4, density_features=2)}, False),
])  # fmt: skip
def test_coverage_is_what_its_docstring_says(changes: dict[str, Any], inside: bool) -> None:
    given = {"planes": torch.ones(1, 3, 4, 2, 2, dtype=torch.float16), "cells": None, "rays": 7,
             "config": DecoderConfig(4), "reduce": "sum", "quadrature": "left", **changes}
    assert covers(**given) is inside and covers_gradient(**given, with_more=False) is inside
    assert not covers_gradient(**given, with_more=True)


@pytest.mark.parametrize(("dtype", "config", "inside"), [
    (torch.float16, DecoderConfig(64, (128, 128), 63), True), (torch.float16, DecoderConfig(65, (8,)), False),
    (torch.float32, DecoderConfig(32, (64, 64), 15), True), (torch.float32, DecoderConfig(33, (64,)), False),
    (torch.float32, DecoderConfig(32, (64,), 16), False),
])  # fmt: skip
def test_wide_gradients_take_the_composed_path(dtype: torch.dtype, config: DecoderConfig, inside: bool) -> None:
    given = (torch.ones(1, 3, 4, 2, 2, dtype=dtype), None, 7, config, "sum", "left")
    assert covers(*given) and covers_gradient(*given, False) is inside
    beyond = 129 if dtype == torch.float16 else 65
    for wide in (DecoderConfig(beyond, (8,)), DecoderConfig(4, (beyond,))):
        asked = (*given[:3], wide, *given[4:])
        assert not covers(*asked) and not covers_gradient(*asked, False)


@pytest.mark.parametrize(("dtype", "config", "inside"), [
    (torch.float16, DecoderConfig(64, (64, 64), 63), True), (torch.float16, DecoderConfig(4, (65,)), False),
    (torch.float16, DecoderConfig(65, (8,)), False), (torch.float32, DecoderConfig(4, (8,)), False),
])  # fmt: skip
def test_normals_of_wide_decoders_take_the_composed_path(dtype: torch.dtype, config: DecoderConfig,
                                                         inside: bool) -> None:
    assert covers_normals(torch.ones(1, 3, 4, 2, 2, dtype=dtype), config) is inside


def test_gradients_that_must_repeat_take_the_composed_path() -> None:
    given = (torch.ones(1, 3, 4, 2, 2), None, 7, DecoderConfig(4), "sum", "left")
    torch.use_deterministic_algorithms(True)
    try:
        assert covers(*given) and not covers_gradient(*given, False)
    finally:
        torch.use_deterministic_algorithms(False)


@compiled
def test_no_kernel_is_compiled_anew_for_counts_scales_or_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton would compile for, of every launch: the types and properties of arguments, and the constants."""
    jit = pytest.importorskip("triton.runtime.jit")
    compiler = pytest.importorskip("triton.compiler.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    seen: dict[str, set[str]] = {}

    def launched(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        bind = jit.create_function_from_signature(self.signature, self.params, compiler.make_backend(target))
        _, specialization, options = bind(*arguments, **named)
        kind = [name for name in ("GRAD_DECODER", "GRAD_RAYS", "EXPLICIT") if named.get(name)]
        kind.append("list" if named["TILE_W"] == named["BLOCK"] else "picture")
        seen.setdefault(" ".join([self.__name__, *kind]), set()).add(f"{specialization} {options}")

    monkeypatch.setattr(jit.JITFunction, "run", launched)
    decoder = TinyDecoder(6, (8,))
    for rays, samples, size, side, near, stop, first in ((1, 1, 1, 1, 0.0, 0.0, 0), (16, 16, 16, 4, 1.0, 1.0, 16),
                                                         (37, 6, 7, 0, 1.2, 0.3, 5), (4096, 96, 33, 64, 0.5, 1e-4, 1),
                                                         (48, 16, 1, 0, 1.0, 0.0, 0), (1, 1, 16, 0, 0.0, 1.0, 16)):
        planes = torch.zeros(1, 3, size, size, 16)[..., :6].permute(0, 1, 4, 2, 3).half()
        origins = torch.zeros(1, rays, 3)
        for t in (None, torch.rand(1, rays, samples).sort(-1).values):
            scene = triton_scene(planes, origins, near, t, decoder, samples, stop, first, side)
            with torch.no_grad():
                results = triton_path.forward(scene)
                triton_path.backward(scene, results[:3], results[:3], [True] * 5 + [t is not None] + [True] * 4)
    assert len(seen) == 12 and all(len(kinds) == 1 for kinds in seen.values()), {k: len(v) for k, v in seen.items()}


def triton_scene(planes: Tensor, origins: Tensor, near: float, t: Tensor | None, decoder: TinyDecoder, samples: int,
                 stop: float, first: int, side: int) -> triton_path.Scene:
    """What the registered operator hands to the launch code."""
    bounds = [torch.full(origins.shape[:2], x) for x in (near, 4.0)]
    cells = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    how = March(samples, stop_below=stop)
    return triton_path.Scene(planes, (origins, origins, *bounds), t, cells, None, list(decoder.parameters()),
                             decoder.choices, ("xy,zx,yz", "sum", False, "zeros"), how, first, side)


@compiled
def test_every_tile_that_a_launch_may_choose_is_a_case() -> None:
    pytest.importorskip("triton")
    from rodin_kernels.aot import ARCHS
    from rodin_kernels.volume_render.cases import cases
    from rodin_kernels.volume_render.coverage import fits_gradient
    from rodin_kernels.volume_render.tiles import Tile, Widths, forward_tile, launches, normals_tile

    found = cases()
    assert len({case.name for case in found}) == len(found) and all(len(case.archs) == 1 for case in found)
    names = ("BLOCK", "KEEP", "FRESH", "WINDOWS", "NORMALS")
    known = {(case.archs[0], case.kernel.__name__, case.num_warps, *(case.constants.get(name) for name in names),
              case.signature["planes"] == "*fp32") for case in found}

    def asked(arch: str, kernel: str, tile: Tile, size: int, *more: Any) -> bool:
        own = (tile.keep, tile.fresh, tile.windows) if kernel == "backward_kernel" else (None,) * 3
        return (arch, kernel, tile.warps, tile.rays, *own, *(more or (None,)), size == 4) in known

    sizes = (16, 32, 64, 128)
    for arch in ARCHS:
        for widths in (Widths(c, h, o) for c in sizes for h in sizes for o in sizes[:3]):
            for size in (2, 4):
                if size == 4 and max(widths.features, widths.hidden) > 64:
                    continue
                assert asked(arch, "forward_kernel", forward_tile(arch, size, widths), size, False)
                if size == 2 and max(widths.features, widths.hidden) <= 64:
                    assert asked(arch, "forward_kernel", normals_tile(arch, widths), size, True)
                if widths.features > 64 or (size == 4 and not widths.narrow) or not fits_gradient(arch, widths):
                    continue
                for launch in launches(arch, size, widths, True, True, True):
                    assert asked(arch, "backward_kernel", launch.tile, size), (widths, launch)
