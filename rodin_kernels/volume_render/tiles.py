"""How many rays a program of the fused kernels marches, on how many warps, and where it keeps what it adds up."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from ..configs import choose
from .decoder import DecoderConfig

#: Rays of a tile, and windows of its gradient on a plane, that a search may try.
RAYS = (16, 32, 64, 128)
WINDOWS = (0, 2, 4, 6, 9, 16)
#: Windows that ship. Of the tiles of 8 x 8 pixels on one step of a slanted view (512 x 512 pixels, 96 steps, planes of
#: 256 x 256), 98 % fit into 6 of 8 x 8 texels, 1.4 on average; texels written for each read fall to 1 / 7.8.
FEW_WINDOWS = 6


class Tile(NamedTuple):
    """Launch parameters of a fused kernel.

    rays: of a tile, each a row of the decoder's products. warps: of a program. keep: the decoder's gradient stays in
    registers until a program ends, instead of memory that no other program touches. fresh: weights are read again at
    every product, for those whose operands lie in registers, of which the loop would be full. windows: of a plane, in
    which a tile's gradient may be added up before it goes to memory; if it needs more, each sample adds for itself.
    """

    rays: int
    warps: int
    keep: bool = False
    fresh: bool = False
    windows: int = 0

    @property
    def across(self) -> int:
        """Columns of the box of pixels that a picture's tile is."""
        return {16: 4, 32: 8, 64: 8, 128: 16}[self.rays]


class Widths(NamedTuple):
    """Padded widths of a decoder: features, widest hidden layer, last layer."""

    features: int
    hidden: int
    outputs: int

    @classmethod
    def of(cls, config: DecoderConfig) -> Widths:
        """Those of a decoder."""
        return cls(padded(config.in_features), padded(*config.hidden), padded(1 + config.out_features))

    @property
    def narrow(self) -> bool:
        """Whether a tile of 64 rays and the decoder's gradient fit into the registers together."""
        return self.hidden <= 64 and self.features <= 32 and self.outputs <= 16


def padded(*widths: int) -> int:
    """The power of two, at least 16, that holds the widest."""
    return max(16, 1 << (max(widths) - 1).bit_length())


class Launch(NamedTuple):
    """One launch of the backward kernel: the gradients that it computes, and how."""

    planes: bool
    decoder: bool
    rays: bool
    tile: Tile


def forward_tile(arch: str, itemsize: int, widths: Widths) -> Tile:
    """Tile of the forward pass for planes of `itemsize` bytes an element: 64 rays fill a Hopper warp group's product.

    Chosen by registers, of which none spills.
    """
    wide = max(widths.hidden, widths.features) > 64
    if wide and itemsize == 2 and arch == "sm_100":
        return Tile(64, 8)
    if itemsize == 4 or wide:
        return Tile(32, 4 if arch == "gfx942" else 8)
    return Tile(64, 8 if arch == "sm_80" and widths.narrow else 4)


def normals_tile(arch: str, widths: Widths) -> Tile:
    """Tile of the forward pass with normals, for the widths of `coverage.covers_normals`."""
    if not widths.narrow:
        return Tile(32, 4 if arch == "gfx942" else 8)
    return Tile(16 if arch == "sm_80" else 64, 4)


@lru_cache(maxsize=1)
def _old_compiler() -> bool:
    """Whether this Triton is older than 3.9; True as well where there is none."""
    try:
        return tuple(map(int, version("triton").split(".")[:2])) < (3, 9)
    except (PackageNotFoundError, ValueError):
        return True


def few_windows(arch: str) -> int:
    """Windows of planes of 2 bytes an element: none on sm_100 for a Triton older than 3.9.

    Such a compiler fails at their product there, and 3.9 at the same kernel without windows. An H200 adds 16 bytes at a
    time in its L2 cache faster than windows and their products take, so its tuned launches (`configs/nvidia-h200.json`)
    have none: backward of 512 x 512 rays by 96 samples in 13 ms on 4 warps, with windows on 8 in 31 ms. Elsewhere the
    windows stay until somebody measures: without them Triton 3.9 keeps 8 bytes of the kernel in local memory.
    """
    return 0 if arch == "sm_100" and _old_compiler() else FEW_WINDOWS


def decoder_tile(arch: str, itemsize: int, widths: Widths) -> Tile:
    """Tile of the launch with the decoder's gradient, and the planes' where it is kept in registers."""
    if itemsize == 4:
        # exact float32 products run without tensor cores, on few rays at a time
        return Tile(16, 4) if arch == "gfx942" else Tile(16, 8, keep=True)
    if not widths.narrow:
        wide = widths.hidden > 64 or arch not in ("sm_90", "sm_100")
        return Tile(32, 4 if arch == "gfx942" else 8, fresh=True) if wide else Tile(64, 8)
    if arch == "sm_80":
        return Tile(16, 4, True, True)
    return Tile(64, 4 if arch == "gfx942" else 8, True, windows=few_windows(arch))


def field_tile(arch: str, itemsize: int, widths: Widths) -> Tile:
    """Tile of the launch with the gradients of rays and planes alone."""
    if itemsize == 4:
        # windows would take another exact product, for which only AMD's tensor cores leave registers
        return Tile(16, 4, windows=FEW_WINDOWS) if arch == "gfx942" else Tile(16, 8, fresh=True)
    if widths.narrow and arch != "sm_80":
        return Tile(64, 8 if arch == "sm_90" else 4, windows=few_windows(arch))
    rays = 16 if widths.hidden > 64 else 32
    return Tile(rays, 4 if arch == "gfx942" else 8, fresh=True, windows=few_windows(arch))


def launches(arch: str, itemsize: int, widths: Widths, planes: bool, decoder: bool, rays: bool) -> list[Launch]:
    """The launches of the backward pass: registers do not hold every combination of gradients.

    The planes' comes with the decoder's where both fit, windows included, and never with that of rays: to march twice
    takes less than to add every sample in memory by itself.
    """
    own, field = decoder_tile(arch, itemsize, widths), field_tile(arch, itemsize, widths)
    joint = decoder and planes and own.keep and itemsize == 2 and (own.windows > 0 or not field.windows)
    found = [Launch(joint, True, False, own if joint else own._replace(windows=0))] if decoder else []
    found += [Launch(True, False, False, field)] if planes and not joint else []
    return [*found, *([Launch(False, False, True, field._replace(windows=0))] if rays else [])]


def tuned(tile: Tile, kernel: str, device: torch.device, itemsize: int, widths: Widths, splats: bool = False) -> Tile:
    """The tile with the rays, warps and (if it `splats`) windows that were found best here, if someone searched."""
    shape = {"bits": 8 * itemsize, "channels": widths.features, "hidden": widths.hidden, "outputs": widths.outputs}
    default = {"rays": tile.rays, "num_warps": tile.warps, **({"windows": tile.windows} if splats else {})}
    found = choose("render_triplane", kernel, shape, default, device, space={"rays": RAYS, "windows": WINDOWS})
    return tile._replace(rays=int(found["rays"]), warps=int(found["num_warps"]), windows=int(found.get("windows", 0)))


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> str:
    """Which of the architectures that the tiles know: sm_80 up to Ada, sm_90 (and elsewhere), sm_100 and on, gfx942."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"
