"""How many rays a program of the fused kernels marches, on how many warps, and where it keeps what it adds up."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..configs import choose

#: Rays of a tile that a search may try.
RAYS = (16, 32, 64, 128)


class Tile(NamedTuple):
    """Launch parameters of a fused kernel.

    rays: of a tile, each a row of the decoder's products. warps: of a program. width: of the box of pixels that a
    picture's tile is. keep: the decoder's gradient stays in
    registers until a program ends, instead of memory that no other program touches. fresh: weights are read again at
    every product, for those whose operands lie in registers, of which the loop would be full.
    """

    rays: int
    warps: int
    width: int = 8
    keep: bool = True
    fresh: bool = False


def forward_tile(arch: str, itemsize: int, hidden: int) -> Tile:
    """Tile of the forward pass for planes of `itemsize` bytes an element: 64 rays fill a Hopper warp group's product.

    Chosen by registers: none spills for hidden layers up to 64 wide (gfx942: none of the vector registers). For the
    same reason some boxes are no squares.
    """
    if itemsize == 2:
        return Tile(64, 4 if hidden <= 64 else 8)
    return Tile(32 if hidden <= 64 else 16, 4 if arch == "gfx942" else 8)


def backward_tile(arch: str, itemsize: int, hidden: int) -> Tile:
    """Tile of the backward pass, likewise. Exact float32 products run without tensor cores, on few rays at a time."""
    if itemsize == 4:
        return Tile(16, 4 if arch == "gfx942" else 8, keep=False)
    if arch == "sm_80":
        return Tile(32, 4 if hidden <= 64 else 8, width=4, fresh=True)
    width = 16 if arch == "sm_100" else 8
    return Tile(64, 4, width) if hidden <= 64 else Tile(64, 8, width, keep=False)


def architecture_tiles(arch: str, itemsize: int, hidden: int) -> tuple[Tile, Tile]:
    """Both."""
    return forward_tile(arch, itemsize, hidden), backward_tile(arch, itemsize, hidden)


def launches(tile: Tile, planes: bool, decoder: bool, rays: bool) -> list[tuple[bool, bool, bool]]:
    """Which gradients each launch of the backward kernel computes: registers do not hold every combination."""
    if not decoder or not (rays or (planes and not tile.keep)):
        return [(planes, decoder, rays)]
    if tile.keep:
        return [(planes, True, False), (False, False, True)]
    return [(False, True, False), (planes, False, rays)]


def tuned(tile: Tile, kernel: str, device: torch.device, **shape: int) -> Tile:
    """The tile with the rays and warps that were found best on this device, if someone searched."""
    found = choose("render_triplane", kernel, shape, {"rays": tile.rays, "num_warps": tile.warps}, device,
                   space={"rays": RAYS})
    return tile._replace(rays=int(found["rays"]), warps=int(found["num_warps"]))


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> str:
    """Which of the architectures that the tiles know: sm_80 up to Ada, sm_90 (and elsewhere), sm_100 and on, gfx942."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"
