"""What a benchmark is: tensors, a specification, our call and its rivals, the least work, and what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rodin_kernels.testing import random_tensor

Tensors = dict[str, Tensor]
Call = Callable[[Tensors], Tensor]

#: Sizes: tiny ones for tests, those of a run under three minutes on two cores, and everything.
LEVELS = ("smoke", "quick", "full")
#: What is timed: inference, the backward alone, and a whole training step of the operator.
PASSES = ("forward", "backward", "both")
#: The name of our own contender in every case.
OURS = "rodin_kernels"


def random(*shape: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A normally distributed tensor, drawn where it will be: a CPU takes seconds for what a GPU's benchmark needs."""
    if device.type == "cpu":
        return random_tensor(*shape, seed=seed, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def unchanged(tensors: Tensors) -> Tensors:
    """The tensors as they are."""
    return tensors


@dataclass(frozen=True)
class Contender:
    """One way to compute the case.

    Attributes:
        name: as the table shows it.
        call: named tensors -> one tensor, differentiable in the case's leaves.
        prepare: the same tensors in the memory order that suits this contender; runs outside the clock.
        compiled: wrap the call in torch.compile before it is used.
    """

    name: str
    call: Call
    prepare: Callable[[Tensors], Tensors] = unchanged
    compiled: bool = False


@dataclass(frozen=True)
class Work:
    """The least that any implementation must do: operations, bytes to and from memory, bytes read or added at random.

    Attributes:
        flops: floating-point operations, two for a multiply-add, after every exact simplification that we know.
        moved: bytes of inputs and outputs, each once.
        gathered: bytes read at random places; 0 where neighbouring reads share most of them.
        reduced: bytes added at random places in float32.
    """

    flops: float
    moved: float
    gathered: float = 0.0
    reduced: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.moved + other.moved, self.gathered + other.gathered,
                    self.reduced + other.reduced)


@dataclass(frozen=True)
class Target:
    """What is expected on a kind of device.

    Attributes:
        what: "forward", "backward", "both": how many times faster than the rival, or with no rival at most so many
            milliseconds; "memory", "saved": at most this share of the rival's peak or saved bytes; "peak": the
            forward holds at most so many MiB at once; "floor": at most this many times the floor of the forward.
        limit: the number.
        rival: the contender to compare with, or "".
        device: "cpu" or "cuda".
        cause: told if the target is missed.
    """

    what: str
    limit: float
    rival: str = ""
    device: str = "cpu"
    cause: str = ""


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        operator: "rollout_conv", "sample_triplane", "render_triplane", "unet_block" or "generate".
        name: shape, dtype and order in a few words; unique within the operator.
        size, size_name: place on the horizontal axis of the plots, and its unit.
        dtype: of the tensors.
        make: device -> named tensors.
        reference: the specification in plain torch, any dtype.
        plain: plain PyTorch in another memory order or precision than the specification runs in, ours' own; the budget
            follows from the error of either.
        contenders: ours first.
        work: least work of each pass.
        leaves: tensors with a gradient; none: the case is forward only.
        rows: tensors whose dimension 1 is that of the result; only `checked` of these rows are compared with float64.
        checked: how many rows are compared; None for all.
        least_psnr: compare forward results as pictures in [0, 1] by this many decibels instead of the error budget.
        factor: how many times plain PyTorch's error ours may have: 2, the accuracy contract's, for an operator; more
            for a chain of operators, where one rounding that differs early moves everything behind it.
        jumps: gradients jump, as those of ReLU do where a unit's input crosses zero: rounding puts some units on the
            other side in any implementation, so gradients are compared as a whole (`judge.JUMPING`).
        targets: what is expected.
        bound: what no implementation of this kind can go below, timed where a target is missed.
        graph: on a GPU also measured as a CUDA graph, without the cost of launches.
        arithmetic: the type whose matrix products bound it from below, where that is not `dtype`.
        memory: whether peak memory is measured.
        repeats: most repetitions, for cases of many seconds.
    """

    operator: str
    name: str
    size: float
    size_name: str
    dtype: torch.dtype
    make: Callable[[torch.device], Tensors]
    reference: Call
    contenders: tuple[Contender, ...]
    work: Mapping[str, Work]
    leaves: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    checked: int | None = None
    least_psnr: float | None = None
    factor: float = 2.0
    plain: Call | None = None
    jumps: bool = False
    targets: tuple[Target, ...] = ()
    bound: Contender | None = None
    graph: bool = False
    arithmetic: torch.dtype | None = None
    memory: bool = True
    repeats: int = 50
    passes: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", PASSES if self.leaves else PASSES[:1])
        if self.contenders[0].name != OURS:
            raise ValueError(f"the first contender of {self.name!r} must be {OURS!r}")

    @property
    def key(self) -> str:
        """Unique among all cases."""
        return f"{self.operator}: {self.name}"


def forward_backward(forward: Work, backward: Work) -> dict[str, Work]:
    """The works of all passes from those of two."""
    return {"forward": forward, "backward": backward, "both": forward + backward}


def short(dtype: torch.dtype) -> str:
    """`torch.float32` -> "float32"."""
    return str(dtype).removeprefix("torch.")


def channels_last(*names: str) -> Callable[[Tensors], Tensors]:
    """A `prepare` that stores the named tensors [..., C, H, W] as [..., H, W, C]."""
    def prepare(tensors: Tensors) -> Tensors:
        turned = {n: tensors[n].movedim(-3, -1).contiguous().movedim(-1, -3) for n in names}
        return {**tensors, **turned}
    return prepare


def contiguous(*names: str) -> Callable[[Tensors], Tensors]:
    """A `prepare` that stores the named tensors in the order of their dimensions."""
    def prepare(tensors: Tensors) -> Tensors:
        return {**tensors, **{n: tensors[n].contiguous() for n in names}}
    return prepare
