"""The 3D-aware convolution by Triton kernels: averages, line convolutions, and the own plane that adds them at its end.

The same collapse as in `torch_path`. Forward, for all planes at once where they are stacked: both averages in one read
of the planes, the line convolutions, and one implicit matrix product whose epilogue adds bias and lines. Backward: the
gradient is summed over rows and columns in one read, which is all that the lines ask for; the planes' gradient adds the
lines' in its epilogue. Everything is accumulated in float32, nothing by atomics: results are the same on every run.
All of it is worked out once for every shape, and kept as a `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import configs
from .choice import METHODS, Shape, architecture, method_for
from .launches import (
    Lines,
    add_lines,
    as_planes,
    average,
    averages,
    line_gradients,
    line_places,
    line_vectors,
    own_plane,
    packed_weight,
    routes,
    tap_sums,
)
from .library import convolve, convolve_backward
from .plan import Plan
from .torch_path import Step
from .weight_gradient import bias_part, weight_part

#: Plans that are kept; more different calls than this in one process start again.
_MOST = 1024
_plans: dict[tuple[Any, ...], Plan] = {}


def forget() -> None:
    """Work out every plan again."""
    _plans.clear()


def forward(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, layout: Sequence[str], step: Step, method: str
) -> list[Tensor]:
    """What `torch_path.forward` computes, in as many tensors, in channels-last memory; method of `choice.METHODS`."""
    inputs = [*planes, weight, *([] if bias is None else [bias])]
    return forward_plan(inputs, bias is not None, layout, step, method).run(inputs)


def backward(
    grads: Sequence[Tensor],
    planes: Sequence[Tensor],
    weight: Tensor,
    layout: Sequence[str],
    step: Step,
    needs: tuple[bool, bool, bool],
    method: str,
) -> list[Tensor]:
    """What `torch_path.backward` computes: gradients of planes, weight and bias, those that `needs` names."""
    inputs = [*grads, *planes, weight]
    return backward_plan(inputs, False, layout, step, needs, method).run(inputs)


def forward_plan(
    inputs: Sequence[Tensor], biased: bool, layout: Sequence[str], step: Step, method: str, *, keep: bool = False
) -> Plan:
    """The plan that takes [*planes, weight, *bias]; with `keep` its first result are the lines, for the backward."""

    def make(plan: Plan) -> None:
        given = list(plan.inputs)
        bias = given.pop() if biased else None
        weight = given.pop()
        sets, packed = _sets(plan, given), packed_weight(plan, weight)
        for index, (x, lines) in enumerate(zip(sets, average(plan, sets, layout, keep=keep), strict=True)):
            kernels, shifts = _of_set(packed, index, len(sets)), bias
            if bias is not None and bias.ndim == 2 and len(sets) > 1:
                shifts = bias[index]
            size = _size(x, weight, step)
            vectors = line_vectors(plan, x, lines, kernels, size, step)
            if _method(method, x, weight, "forward", plan.device) == "gemm":
                own_plane(plan, x, kernels, shifts, vectors, size, step, backward=False)
            else:
                y = _library_forward(plan, x, kernels, shifts, size, step)
                add_lines(plan, y, vectors, _area(x), weight.shape[-1], step, backward=False)

    return _planned(("forward", biased, tuple(layout), step, method, keep), inputs, make)


def backward_plan(
    inputs: Sequence[Tensor], lined: bool, layout: Sequence[str], step: Step, needs: tuple[bool, bool, bool],
    method: str,
) -> Plan:  # fmt: skip
    """The plan that takes [*grads, *planes, weight, *lines], the last only if `lined`."""

    def make(plan: Plan) -> None:
        given = list(plan.inputs)
        kept = given.pop() if lined else None
        weight = given.pop()
        _write_backward(plan, given[: len(given) // 2], given[len(given) // 2 :], weight, kept, layout, step, needs,
                        method)  # fmt: skip

    return _planned(("backward", lined, tuple(layout), step, needs, method), inputs, make)


def _planned(what: tuple[Any, ...], inputs: Sequence[Tensor], make: Callable[[Plan], None]) -> Plan:
    """The plan of a call that differs from others in `what` and in everything about its tensors but their values."""
    device, version = inputs[-1].device, configs.version()
    exact = torch.get_float32_matmul_precision() if inputs[0].dtype == torch.float32 else ""
    key = (what, device, inputs[0].dtype, exact, version, *(fact for x in inputs for fact in signature(x)))
    found = _plans.get(key) if version is not None else None
    if found is None:
        found = Plan(inputs, device)
        make(found)
        if version is not None:
            if len(_plans) >= _MOST:
                forget()
            _plans[key] = found
    return found


def signature(x: Tensor) -> tuple[Any, ...]:
    """What a plan depends on in a tensor, besides its dtype and device."""
    return x.shape, x.stride(), x.data_ptr() % 16 == 0


def _write_backward(
    plan: Plan, grads: Sequence[Tensor], planes: Sequence[Tensor], weight: Tensor, kept: Tensor | None,
    layout: Sequence[str], step: Step, needs: tuple[bool, bool, bool], method: str,
) -> None:  # fmt: skip
    need_planes, need_weight, need_bias = needs
    sets, given = _sets(plan, planes), _sets(plan, grads)
    kernel = weight.shape[-1]
    rows = [grad.shape[0] * grad.shape[1] * grad.shape[4] for grad in given]
    totals = plan.buffer(sum(rows), given[0].shape[2], dtype=torch.float32) if need_bias else None
    parts = [None] * len(given) if totals is None else totals.split(rows)
    sums = [tap_sums(plan, grad, _area(x), kernel, step, total)
            for grad, x, total in zip(given, sets, parts, strict=True)]  # fmt: skip
    if need_planes:
        _planes_gradient(plan, given, sets, sums, packed_weight(plan, weight), layout, step, method)
    if need_weight:
        lines = average(plan, sets, layout) if kept is None else averages(sets, kept)
        _weight_gradient(plan, given, sets, sums, lines, weight, step, method)
    if totals is not None:
        _bias_gradient(plan, given, totals, weight)


def _bias_gradient(plan: Plan, grads: Sequence[Tensor], totals: Tensor, weight: Tensor) -> None:
    result = plan.result(*weight.shape[:-3], dtype=weight.dtype)
    if weight.ndim == 4:
        bias_part(plan, totals, result[None], 1, totals.shape[0], 0, 0)
        return
    first = 0
    for index, grad in enumerate(grads):
        batch, planes, width = grad.shape[0], grad.shape[1], grad.shape[4]
        part = result if len(grads) == 1 else result[index : index + 1]
        bias_part(plan, totals[first:], part, batch, width, planes * width, width)
        first += batch * planes * width


def _planes_gradient(
    plan: Plan, grads: Sequence[Tensor], sets: Sequence[Tensor], sums: Sequence[Lines], packed: Tensor,
    layout: Sequence[str], step: Step, method: str,
) -> None:  # fmt: skip
    places, length = line_places(sets, sets[0].shape[2])
    buffer = plan.buffer(length, dtype=torch.float32)
    found, _, back = routes(layout)
    sources = {target: source for source, target in found.items()}
    for index, (x, vectors) in enumerate(zip(sets, sums, strict=True)):
        sizes, at, route = [x.shape[3]] * 2, [0, 0], back
        if len(sets) > 1:
            pairs = [sources[index, kind] for kind in (0, 1)]
            sizes = [sets[source].shape[3 + kind] for source, kind in pairs]
            at, route = [places[source][kind] for source, kind in pairs], 0
        scales = (1 / (sizes[0] * vectors.scales[0]), 1 / (sizes[1] * vectors.scales[1]))
        kernels = _of_set(packed, index, len(sets))
        out = Lines(buffer, at[0], at[1], scales)
        line_gradients(plan, x, vectors, kernels, out, _area(grads[index]), step, route)
    opposite = Step(step.stride, step.padding, not step.transposed)
    for index, (grad, x) in enumerate(zip(grads, sets, strict=True)):
        kernels, lines = _of_set(packed, index, len(sets)), Lines(buffer, *places[index])
        if _method(method, x, packed[0], "planes_gradient", plan.device) == "gemm":
            own_plane(plan, grad, kernels, None, lines, _area(x), opposite, backward=True)
        else:
            y = _library_planes_gradient(plan, grad, x, kernels, step)
            add_lines(plan, y, lines, _area(grad), packed.shape[-1], opposite, backward=True)


def _weight_gradient(
    plan: Plan, grads: Sequence[Tensor], sets: Sequence[Tensor], sums: Sequence[Lines], lines: Sequence[Lines],
    weight: Tensor, step: Step, method: str,
) -> None:  # fmt: skip
    result = plan.result(*weight.shape, dtype=weight.dtype)
    whole = weight if weight.ndim == 5 else weight.unsqueeze(0)
    # three sets that share a weight are added up in float32 before they are rounded
    shared = weight.ndim == 4 and len(sets) > 1
    into = plan.buffer(len(sets), *weight.shape, dtype=torch.float32) if shared else result.view(whole.shape)
    for index, (grad, x) in enumerate(zip(grads, sets, strict=True)):
        kernels, own = _of_set(whole, index, len(sets)), None
        if _method(method, x, weight, "weight_gradient", plan.device) == "library":
            own = _library_weight_gradient(plan, grad, x, kernels, step)
        part = into if len(sets) == 1 else into[index : index + 1]
        weight_part(plan, grad, x, sums[index], lines[index], kernels, own, step, part)
    if shared:
        plan.call(lambda out, parts: out.copy_(parts.sum(0)), result, into)


def _library_forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int],
                     step: Step) -> Tensor:  # fmt: skip
    """The own plane by torch's convolution: x [B, P, C, H, W] and [weights, O, 3C, k, k] to dense [B, P, H', W', O]."""

    def run(x: Tensor, own: Tensor, *bias: Tensor) -> Tensor:
        shift = bias[0] if bias else None
        if len(own) == 1:
            y = convolve(x.flatten(0, 1), own[0], shift, step)
            return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
        shifts = [None] * len(own) if shift is None else shift.unbind()
        parts = [convolve(x[:, p], own[p], shifts[p], step).permute(0, 2, 3, 1) for p in range(len(own))]
        return torch.stack(parts, 1)

    shape = (*x.shape[:2], *size, weight.shape[1])
    given = (x, weight[:, :, : x.shape[2]], *([] if bias is None else [bias]))
    return plan.called(run, *given, shape=shape, dtype=x.dtype, show=as_planes)


def _library_planes_gradient(plan: Plan, grad: Tensor, x: Tensor, weight: Tensor, step: Step) -> Tensor:
    """The gradient of the own plane by torch's convolution, dense [B, P, H, W, C]."""

    def run(grad: Tensor, x: Tensor, own: Tensor) -> Tensor:
        mask = (True, False)
        if len(own) == 1:
            y, _ = convolve_backward(grad.flatten(0, 1), x.flatten(0, 1), own[0], step, mask)
            return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
        parts = [convolve_backward(grad[:, p], x[:, p], own[p], step, mask)[0] for p in range(len(own))]
        return torch.stack([part.permute(0, 2, 3, 1) for part in parts], 1)

    batch, planes, channels, height, width = x.shape
    shape = (batch, planes, height, width, channels)
    return plan.called(run, grad, x, weight[:, :, :channels], shape=shape, dtype=x.dtype, show=as_planes)


def _library_weight_gradient(plan: Plan, grad: Tensor, x: Tensor, weight: Tensor, step: Step) -> Tensor:
    """The gradient of the own plane's weight by torch's convolution, [weights, O, C, k, k]."""

    def run(grad: Tensor, x: Tensor, own: Tensor) -> Tensor:
        if len(own) == 1:
            pairs = [(grad.flatten(0, 1), x.flatten(0, 1))]
        else:
            pairs = [(grad[:, p], x[:, p]) for p in range(len(own))]
        return torch.stack([convolve_backward(*pair, w, step, (False, True))[1]
                            for pair, w in zip(pairs, own, strict=True)])  # fmt: skip

    own = weight[:, :, : x.shape[2]]
    return plan.called(run, grad, x, own, shape=own.shape, dtype=x.dtype)


def _sets(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor]:
    """One set [B, 3, C, H, W] of stacked planes, or three [B, 1, C, H_p, W_p] of separate ones."""
    return [_readable(plan, tensor if len(tensors) == 1 else tensor.unsqueeze(1)) for tensor in tensors]


def _readable(plan: Plan, x: Tensor) -> Tensor:
    """The set itself where its channels lie together and whole vectors of them can be loaded, else a copy that does.

    Every element is read once for each tap, k^2 times in all: in the order [C, H, W] a tap's neighbours start at any
    element, so that no load is wider than one. Turning it once costs 2 transfers.
    """
    vector = 16 // x.element_size()
    pixels = [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1 and stride != x.stride(2)]
    apart = x.shape[2] > 1 and x.stride(2) != 1
    ragged = x.shape[2] % vector == 0 and (not plan.aligned(x) or any(stride % vector for stride in pixels))
    if not (apart or ragged):
        return x
    turned = x.movedim(2, -1)
    copy = plan.buffer(*turned.shape, dtype=x.dtype)
    plan.call(Tensor.copy_, copy, turned)
    return copy.movedim(-1, 2)


def _of_set(packed: Tensor, index: int, sets: int) -> Tensor:
    """The weights of one set, [weights, O, 3C, k, k]."""
    return packed if sets == 1 or len(packed) == 1 else packed[index : index + 1]


def _size(x: Tensor, weight: Tensor, step: Step) -> tuple[int, int]:
    height, width = (step.output_size(size, weight.shape[-1]) for size in x.shape[3:])
    return height, width


def _area(x: Tensor) -> tuple[int, int]:
    return x.shape[3], x.shape[4]


def _method(method: str, x: Tensor, weight: Tensor, purpose: str, device: torch.device | None = None) -> str:
    """ "gemm" or "library": what the caller forces, else what was tuned on this device, else the shipped rules'."""
    if method != "auto":
        return method
    device = device or x.device
    shape = Shape(8 * x.element_size(), x.shape[2], weight.shape[-4], max(x.shape[3:]))
    shipped = {"method": method_for(method, architecture(device), purpose, shape)}
    found = configs.choose("rollout_conv", f"{purpose}_method", shape._asdict(), shipped, device,
                           space={"method": METHODS[1:]})
    return str(found["method"])
