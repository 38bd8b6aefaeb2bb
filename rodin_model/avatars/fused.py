"""A field's formulas recorded once and run by one kernel each: the GPU's way through `AvatarField`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rodin_kernels.launch import device_guard, launch_options
from rodin_model.avatars import sdf
from rodin_model.avatars.sdf import Place
from rodin_model.avatars.tape import Program, Tape, channels

if TYPE_CHECKING:
    from rodin_model.avatars.geometry import Part

#: Threads of a program, and programs in flight for each multiprocessor; their registers should fit its first cache.
THREADS, RESIDENT = 128, 16
#: Threads that run in step.
WAVE = 64 if torch.version.hip else 32
#: Rays of a program of `march`.
RAYS = 64
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=16)
def can_run(device: torch.device) -> bool:
    """Whether Triton is installed, compiles for `device`, and computes there what torch computes; tried once."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        fault = _fault(device)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        warnings.warn(f"avatars are made without fused kernels, many times slower: {fault}", stacklevel=2)
    return not fault


def _fault(device: torch.device) -> str:
    """What the kernel gets wrong in a short program, empty if nothing."""
    tape = Tape()
    x, y, z = (cast(Any, tape.input(i)) for i in range(3))
    value = torch.where(sdf.length(x, y, z) < 1, torch.atan2(x, y) * 0.3, torch.sin(4 * z).clamp(-0.5, 0.9))
    tape.output(sdf.union(value, torch.exp(-y * y) / (x.abs() + 0.5), 0.4))
    program = tape.finish().to(device)
    points = torch.linspace(-1.1, 1.2, 3 * 4099, device=device).reshape(4099, 3).T.contiguous()
    wrong = ~((run(program, points) - program.play(points)).abs() <= 1e-4)
    if wrong.float().mean() <= 0.01:
        return ""
    return f"{int(wrong.sum())} of {points.shape[1]} results of a trial are wrong"


class FusedField:
    """Programs of one avatar: `nearest` and `albedo` of its `parts`, whose constants must be on the CPU.

    `place` turns the three coordinates in the box into a `Place`; `nearest_at` finds distance and number of a part.
    """

    def __init__(self, parts: list[Part], place: Callable[[Any, Any, Any], Place],
                 nearest_at: Callable[[list[Part], Place], tuple[Any, Any]], device: torch.device) -> None:
        self._parts, self._place, self._nearest_at, self._device = parts, place, nearest_at, device

    @cached_property
    def nearest_program(self) -> Program:
        """Inputs x, y, z in the box; outputs the signed distance and the number of the part."""
        tape = Tape()
        for found in self._nearest_at(self._parts, self._place(*(tape.input(i) for i in range(3)))):
            tape.output(found)
        return tape.finish().to(self._device)

    @cached_property
    def albedo_program(self) -> Program:
        """Inputs x, y, z and the number of the part; outputs its colour in 0..1, its gloss and its shadow's tint."""
        tape = Tape()
        place, which = self._place(*(tape.input(i) for i in range(3))), tape.input(3)
        albedo: list[Any] = [0.0] * 3
        for i, part in enumerate(self._parts):
            here = cast(Any, (which - i).abs() < 0.5)
            albedo = [torch.where(here, one, other)
                      for one, other in zip(channels(part.color(place)), albedo, strict=True)]
        for channel in albedo:
            tape.output(channel.clamp(0, 1))
        tape.output(tape.gather(which, [part.gloss for part in self._parts]))
        for channel in range(3):
            tape.output(tape.gather(which, [part.shadow[channel] for part in self._parts]))
        return tape.finish().to(self._device)

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """`AvatarField.nearest` of points [N, 3]."""
        distance, which = run(self.nearest_program, points.T.contiguous()).unbind(0)
        return distance, which.long()

    def albedo(self, points: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Colour [N, 3] in 0..1, gloss [N] and tint of the shadow [N, 3] of the part `which` [N] at points [N, 3]."""
        found = run(self.albedo_program, torch.cat([points.T, which[None].to(points.dtype)]))
        return found[:3].T, found[3], found[4:].T


def runs_on(tensor: Tensor) -> bool:
    """Whether the kernels take this tensor: on a GPU, or anywhere in Triton's interpreter."""
    return tensor.is_cuda or _INTERPRETED


def run(program: Program, inputs: Tensor) -> Tensor:
    """Outputs [O, N] of `program` for contiguous float32 `inputs` [I, N] on the program's device."""
    count = inputs.shape[1]
    outputs = inputs.new_empty(program.outputs, count)
    if not count:
        return outputs
    if not runs_on(inputs):
        return program.play(inputs)
    from rodin_model.avatars import kernels

    threads = THREADS if inputs.is_cuda else 1 << max(count - 1, 1).bit_length()
    programs = min(-(-count // threads), RESIDENT * _processors(inputs))
    scratch = inputs.new_empty(programs * program.registers * threads)
    with device_guard(inputs):
        kernels.play[(programs,)](program.code, program.constants, program.table, inputs, outputs, scratch,
                                  program.code.shape[0], count, program.registers, BLOCK=threads,
                                  **launch_options(THREADS // WAVE, 1))
    return outputs


def march(grid: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, steps: int, close: float,
          stride: float) -> Tensor:
    """Where rays [N, 3] from `near` to `far` [N] land in the baked `grid`: distances [N], -1 for those that miss."""
    from rodin_model.avatars import kernels

    landed = torch.empty_like(near)
    rays = RAYS if near.is_cuda else 4096
    if len(near):
        with device_guard(near):
            kernels.march[(-(-len(near) // rays),)](
                grid.contiguous(), origins.contiguous(), directions.contiguous(), near.contiguous(), far.contiguous(),
                landed, len(near), close, stride, STEPS=steps, SIZE=grid.shape[0], BLOCK=rays, **launch_options(1, 1))
    return landed


def _processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1
