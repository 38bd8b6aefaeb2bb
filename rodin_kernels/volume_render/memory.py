"""How much memory the fused renderer takes beyond its inputs, its results and the gradients that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .triton_path import Scene, layer_sizes


def scratch_bytes(scene: Scene, needed: Sequence[bool], programs: int) -> int:
    """An upper bound in bytes for forward and backward: every allocation of `triton_path`, none of them given back.

        4 R (7 F + 10)                    scaled cotangents, what finds their scale, products of sums and cotangents
        4 |planes|                        their gradient in float32, where the planes' own type or storage is another
        32 R, 4 R S                       the gradients of rays and of explicit places, where only some are wanted
        4 (programs + 2) |decoder|        each program's share of the decoder's gradient, and their sum
        |planes| itemsize                 planes whose channels are not innermost, copied once for each pass
        10 |cells|                        the occupancy on its way to bits, for each pass

    with R the rays of all scenes and F the numbers of a colour. Independent of the number of samples.

    Args:
        scene: what is rendered; only shapes, strides and types are read. needed: as for `triton_path.backward`.
        programs: of the backward pass, `triton_path.PROGRAMS_EACH` for each multiprocessor.
    """
    planes, config = scene.planes, scene.config
    rays, size = scene.rays[2].numel(), planes.element_size()
    decoder = sum(inputs * outputs + outputs for *_, inputs, outputs in layer_sizes(config))
    total = 4 * rays * (7 * config.out_features + 10) + 2 * decoder * (size + 4) + 1024
    turned = planes.stride(2) != 1 and planes.shape[2] > 1
    if needed[0] and (size != 4 or turned or not planes.is_contiguous()):
        total += 4 * planes.numel()
    if any(needed[1:6]) and not all(needed[1:5]):
        total += 4 * rays * 8 + (0 if scene.t is None else 4 * scene.t.numel())
    if any(needed[6:]):
        total += 4 * (programs + 2) * decoder
    total += 2 * size * planes.numel() if turned else 0
    return total + (0 if scene.cells is None else 2 * 10 * prod(scene.cells.shape))
