"""Everything that one call launches, worked out once for its shapes and repeated with other memory.

Launch parameters, grids and offsets depend on shapes, strides and dtypes alone. A plan is written with tensors on the
meta device in place of the arguments and of the memory between the launches; to run it takes one allocation for all of
that memory, one for each result, and an integer a pointer for each launch of a kernel that Triton compiled before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Bytes to which the parts of a plan's memory are aligned.
_ALIGNED = 256
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

#: Where memory lies: the number of the tensor that holds it, and an offset in bytes.
Place = tuple[int, int]


class Plan:
    """A list of launches on one device, written by `add` and `call`, run by `run`.

    Tensors given to and made by the methods hold no data; views of them stand for the same views of the memory.
    """

    def __init__(self, inputs: Sequence[Tensor], device: torch.device) -> None:
        self.device = device
        #: Whether functions of PyTorch are among the steps.
        self.calls = False
        #: The launches and calls, each a function of the plan, its memory, the pointers to it and a stream.
        self.steps: list[Any] = []
        self._places: dict[int, Place] = {}
        self._kept: list[Tensor] = []
        self._aligned = [tensor.data_ptr() % 16 == 0 for tensor in inputs]
        #: Tensors of their own: how they are shown, whether `run` allocates them, whether it returns them.
        self._own: list[tuple[Tensor, bool, bool]] = []
        self._bytes = 0
        #: The arguments, in their order.
        self.inputs = [self._known(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), (i, 0))
                       for i, t in enumerate(inputs)]  # fmt: skip

    def _known(self, tensor: Tensor, place: Place) -> Tensor:
        self._kept.append(tensor)
        self._places[tensor.untyped_storage()._cdata] = place
        return tensor

    def place(self, tensor: Tensor) -> Place:
        """Where the first element of a tensor of this plan lies."""
        slot, offset = self._places[tensor.untyped_storage()._cdata]
        return slot, offset + int(tensor.storage_offset()) * tensor.element_size()

    def aligned(self, tensor: Tensor) -> bool:
        """Whether the first element lies at a multiple of 16 bytes."""
        slot, offset = self.place(tensor)
        return offset % 16 == 0 and (slot >= len(self._aligned) or self._aligned[slot])

    def buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory between two launches of the plan."""
        tensor = self._known(torch.empty(shape, dtype=dtype, device="meta"), (len(self._aligned), self._bytes))
        self._bytes += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        return tensor

    def result(self, *shape: int, dtype: torch.dtype, show: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """A tensor of its own that `run` returns, as the view that `show` makes; results keep their sequence."""
        return self._separate(shape, dtype, show, True, True)

    def called(self, function: Callable[..., Tensor], *tensors: Tensor, shape: Sequence[int], dtype: torch.dtype,
               show: Callable[[Tensor], Tensor] | None = None) -> Tensor:  # fmt: skip
        """What a function of PyTorch returns, made contiguous; with `show` it is a result of the plan."""
        self.calls = True
        found = self._separate(shape, dtype, show, False, show is not None)
        self.steps.append(_Call(function, tensors, self.place(found)[0], show))
        return found

    def _separate(self, shape: Sequence[int], dtype: torch.dtype, show: Callable[[Tensor], Tensor] | None,
                  allocated: bool, result: bool) -> Tensor:  # fmt: skip
        slot = len(self._aligned) + 1 + len(self._own)
        tensor = self._known(torch.empty(tuple(shape), dtype=dtype, device="meta"), (slot, 0))
        self._own.append((show(tensor) if show else tensor, allocated, result))
        return tensor

    def add(self, kernel: Any, grid: tuple[int, ...], *args: Any, constants: Mapping[str, Any],
            options: Mapping[str, Any]) -> None:
        """A launch of a Triton kernel: arguments in its order, compile-time constants and launch options by name."""
        self.steps.append(_Launch(self, kernel, grid, args, dict(constants), dict(options)))

    def call(self, function: Callable[..., Any], *tensors: Tensor) -> None:
        """A function of PyTorch that writes into some of its tensors."""
        self.calls = True
        self.steps.append(_Call(function, tensors))

    def view(self, tensors: Sequence[Tensor], like: Tensor) -> Tensor:
        """The memory for which a tensor of the plan stands, given what holds it."""
        slot, offset = self.place(like)
        whole, reach = tensors[slot], _reach(like)
        if slot == len(self._aligned):
            part = whole[offset : offset + reach * like.element_size()].view(like.dtype)
            return part.as_strided(like.shape, like.stride())
        first = int(whole.storage_offset()) + offset // like.element_size()
        return whole.as_strided(like.shape, like.stride(), first)

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """All launches on the current stream; the results in their sequence."""
        tensors = self.memory(inputs)
        pointers = [tensor.data_ptr() for tensor in tensors]
        stream = _current_stream(self.device.index or 0) if _current_stream and self.device.type == "cuda" else None
        for step in self.steps:
            step(self, tensors, pointers, stream)
        return [tensor for tensor, (_, _, wanted) in zip(tensors[len(inputs) + 1:], self._own, strict=True) if wanted]

    def memory(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the steps work on: the arguments, the memory between them, and a tensor for each of the plan's own."""
        between = torch.empty(self._bytes, dtype=torch.uint8, device=self.device)
        own = [torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self.device)
               if allocated else between for like, allocated, _ in self._own]  # fmt: skip
        return [*inputs, between, *own]


class _Launch:
    """A kernel with its arguments; pointers are filled in at every call."""

    def __init__(self, plan: Plan, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...],
                 constants: dict[str, Any], options: dict[str, Any]) -> None:  # fmt: skip
        self.kernel, self.grid, self.first = kernel, (*grid, 1, 1)[:3], args
        self.constants, self.options = constants, options
        self.pointers = [(at, *plan.place(arg)) for at, arg in enumerate(args) if isinstance(arg, Tensor)]
        self.runner: Any = None
        self.args: list[Any] = []

    def __call__(self, plan: Plan, tensors: list[Tensor], pointers: list[int], stream: int | None) -> None:
        """Launch; the first time by way of Triton, which compiles it."""
        if self.runner is None:
            given = [plan.view(tensors, arg) if isinstance(arg, Tensor) else arg for arg in self.first]
            compiled = self.kernel[self.grid](*given, **self.constants, **self.options)
            if not hasattr(type(compiled), "__getitem__"):
                # the interpreter has nothing to keep
                return
            # a compiled kernel takes all arguments by position, an integer where it wants a pointer
            named = dict(zip(self.kernel.arg_names, self.first, strict=False)) | self.constants
            self.args = [named[name] for name in self.kernel.arg_names]
            self.runner = compiled[self.grid]
            return
        args = self.args.copy()
        for at, slot, offset in self.pointers:
            args[at] = pointers[slot] + offset
        self.runner(*args, stream=stream)


class _Call:
    """A function of PyTorch with its tensors; what it returns takes the slot `into` where that is a number."""

    def __init__(self, function: Callable[..., Any], tensors: tuple[Tensor, ...], into: int | None = None,
                 show: Callable[[Tensor], Tensor] | None = None) -> None:  # fmt: skip
        self.function, self.tensors, self.into, self.show = function, tensors, into, show

    def __call__(self, plan: Plan, tensors: list[Tensor], pointers: list[int], stream: int | None) -> None:
        found = self.function(*(plan.view(tensors, like) for like in self.tensors))
        if self.into is not None:
            # on a GPU torch's convolutions answer in the memory order of what they are given
            found = found.contiguous()
            tensors[self.into] = self.show(found) if self.show else found
            pointers[self.into] = found.data_ptr()


def _reach(tensor: Tensor) -> int:
    """Elements from the first to the last of a tensor in memory."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
