"""Calls of the 3D-aware convolution whose like has been checked before: from the arguments straight to the launches.

PyTorch's dispatcher and the checks of arguments take longer than a GPU needs for a small convolution. What they find
out depends on shapes, strides, dtypes, devices and options alone, so it is remembered by these. Only plain tensors
outside of tracing, compilation and every mode that wants to see operators come here; all else goes through
`registered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import configs
from ..launch import device_guard, exact_float32
from . import registered, triton_path
from .choice import forced_method
from .plan import Plan
from .torch_path import Step

Result = Tensor | tuple[Tensor, Tensor, Tensor]
_PLAIN = (Tensor, Parameter)
#: Kinds of calls that are remembered; beyond it everything is forgotten.
_MOST = 1024
_known: dict[tuple[Any, ...], Known] = {}


class Known:
    """The options of calls that are alike, and the plans that they have come to."""

    def __init__(self, layout: str, step: Step, method: str, stacked: bool) -> None:
        self.layout, self.step, self.method, self.stacked = layout, step, method, stacked
        self._names = tuple(layout.split())
        self._plans: dict[Any, Plan] = {}

    def __call__(self, planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Result:
        """The convolution, differentiable."""
        if torch.is_grad_enabled() and (
            weight.requires_grad or any(plane.requires_grad for plane in planes)
            or (bias is not None and bias.requires_grad)
        ):  # fmt: skip
            found = _Convolution.apply(self, weight, bias, *planes)
        else:
            found = tuple(self.forward(planes, weight, bias, keep=False))
        return cast(Result, found[0] if self.stacked else found)

    def forward(self, planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, *, keep: bool) -> list[Tensor]:
        """What `registered.forward` returns, after the lines with `keep`."""
        inputs = [*planes, weight] if bias is None else [*planes, weight, bias]
        plan = self._plans.get(keep)
        if plan is None:
            plan = triton_path.forward_plan(inputs, bias is not None, self._names, self.step, self.method, keep=keep)
            self._plans[keep] = plan
        return _run(plan, inputs)

    def backward(self, grads: Sequence[Tensor], planes: Sequence[Tensor], weight: Tensor, lines: Tensor | None,
                 needs: tuple[bool, bool, bool]) -> list[Tensor]:  # fmt: skip
        """What `registered.backward` returns."""
        inputs = [*grads, *planes, weight] if lines is None else [*grads, *planes, weight, lines]
        key = (needs, lines is None, *(fact for grad in grads for fact in triton_path.signature(grad)))
        plan = self._plans.get(key)
        if plan is None:
            plan = triton_path.backward_plan(inputs, lines is not None, self._names, self.step, needs, self.method)
            self._plans[key] = plan
        return _run(plan, inputs)


class _Convolution(torch.autograd.Function):
    """The convolution as autograd sees it; a gradient that is to be differentiated comes from the operators."""

    @staticmethod
    def forward(ctx: Any, known: Known, weight: Tensor, bias: Tensor | None, *planes: Tensor) -> tuple[Tensor, ...]:
        keep = ctx.needs_input_grad[1]
        results = known.forward(planes, weight, bias, keep=keep)
        ctx.known = known
        ctx.save_for_backward(results.pop(0) if keep else None, weight, *planes)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        lines, weight, *planes = ctx.saved_tensors
        known, needed = ctx.known, ctx.needs_input_grad
        needs = (any(needed[3:]), needed[1], needed[2])
        if torch.is_grad_enabled() or not _plain(grads):
            results = registered.backward(list(grads), planes, weight, known.layout, *known.step, known.method, *needs)
        else:
            results = known.backward(grads, planes, weight, lines, needs)
        found = [results.pop(0) for _ in planes] if needs[0] else [None] * len(planes)
        grad_weight = results.pop(0) if needs[1] else None
        return None, grad_weight, results.pop(0) if needs[2] else None, *found


def find(
    planes: Any, weight: Any, bias: Any, layout: Any, stride: Any, padding: Any, transposed: Any, backend: Any
) -> tuple[Known, list[Tensor], Tensor, Tensor | None] | None:
    """A call that is known, with its tensors in their dtype under autocast; None for every other."""
    if not _known:
        return None
    parts = [planes] if isinstance(planes, Tensor) else planes
    if type(parts) not in (list, tuple) or type(weight) not in _PLAIN or type(layout) is not tuple:
        return None
    given = [*parts, weight] if bias is None else [*parts, weight, bias]
    if not _plain(given):
        return None
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        given = [tensor.to(dtype) for tensor in given]
    known = _known.get(_key(given, parts is planes, bias is None, layout, stride, padding, transposed, backend))
    if known is None:
        return None
    count = len(parts)
    return known, given[:count], given[count], None if bias is None else given[-1]


def learn(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, layout: Sequence[str], step: Step, backend: str,
    stacked: bool,
) -> None:  # fmt: skip
    """Remember a call that was checked and runs by kernels; tensors in their final dtype."""
    given = [*planes, weight] if bias is None else [*planes, weight, bias]
    if not _plain(given) or planes[0].numel() == 0 or weight.dtype == torch.float64 or configs.version() is None:
        return
    if len(_known) >= _MOST:
        forget()
    key = _key(given, not stacked, bias is None, tuple(layout), *step, backend)
    _known[key] = Known(" ".join(layout), step, forced_method(), stacked)


def forget() -> None:
    """Check and work out everything again."""
    _known.clear()


def _key(given: Sequence[Tensor], separate: bool, unbiased: bool, *options: Any) -> tuple[Any, ...]:
    facts = [separate, unbiased, options, forced_method(), configs.version()]
    for x in given:
        facts += (x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16 == 0)
    if given[0].dtype == torch.float32:
        facts.append(torch.get_float32_matmul_precision())
    return tuple(facts)


def _plain(tensors: Sequence[Any]) -> bool:
    """Whether these are ordinary tensors and nobody watches the operators that they go through."""
    return (
        all(type(tensor) in _PLAIN for tensor in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def _run(plan: Plan, inputs: Sequence[Tensor]) -> list[Tensor]:
    device = plan.device
    if device.type != "cuda" or (device.index == torch.cuda.current_device() and not plan.calls):
        return plan.run(inputs)
    with device_guard(inputs[0]), exact_float32(inputs[0]), torch.autocast(device.type, enabled=False):
        return plan.run(inputs)
