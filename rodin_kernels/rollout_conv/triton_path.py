"""The 3D-aware convolution by Triton kernels: averages, line convolutions, and the own plane that adds them at its end.

The same collapse as in `torch_path`. Forward, for all planes at once where they are stacked: both averages in one read
of the planes, the line convolutions, and one implicit matrix product whose epilogue adds bias and lines. Backward: the
gradient is summed over rows and columns in one read, which is all that the lines ask for; the planes' gradient adds the
lines' in its epilogue. Everything is accumulated in float32, nothing by atomics: results are the same on every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import configs
from .choice import METHODS, Shape, architecture, method_for
from .launches import (
    Lines,
    add_lines,
    average,
    line_gradients,
    line_places,
    line_vectors,
    own_plane,
    routes,
    tap_sums,
)
from .library import convolve, convolve_backward
from .torch_path import Step
from .weight_gradient import weight_part


def forward(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, layout: Sequence[str], step: Step, method: str
) -> list[Tensor]:
    """What `torch_path.forward` computes, in as many tensors, in channels-last memory; method of `choice.METHODS`."""
    sets, packed = _sets(planes), _packed(weight)
    results = []
    for index, (x, lines) in enumerate(zip(sets, average(sets, layout), strict=True)):
        kernels, shifts = _of_set(packed, index, len(sets)), bias
        if bias is not None and bias.ndim == 2 and len(sets) > 1:
            shifts = bias[index]
        size = _size(x, weight, step)
        vectors = line_vectors(x, lines, kernels, size, step)
        if _method(method, x, weight, "forward") == "gemm":
            y = own_plane(x, kernels, shifts, vectors, size, step, backward=False)
        else:
            y = _library_forward(x, kernels, shifts, step)
            add_lines(y, vectors, _area(x), weight.shape[-1], step, backward=False)
        results.append(y)
    return _as_planes(results, len(planes))


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
    need_planes, need_weight, need_bias = needs
    sets, given, packed = _sets(planes), _sets(grads), _packed(weight)
    kernel = weight.shape[-1]
    totals = [
        torch.empty(grad.shape[0], grad.shape[1], grad.shape[4], grad.shape[2], dtype=torch.float32, device=grad.device)
        for grad in given
    ]
    sums = [
        tap_sums(grad, _area(x), kernel, step, total if need_bias else None)
        for grad, x, total in zip(given, sets, totals, strict=True)
    ]
    results = []
    if need_planes:
        results += _planes_gradient(given, sets, sums, packed, layout, step, method)
    if need_weight:
        results.append(_weight_gradient(given, sets, sums, weight, layout, step, method))
    if need_bias:
        whole = torch.cat([total.sum((0, 2)) for total in totals])
        results.append((whole if weight.ndim == 5 else whole.sum(0)).to(weight.dtype))
    return results


def _planes_gradient(
    grads: Sequence[Tensor], sets: Sequence[Tensor], sums: Sequence[Lines], packed: Tensor, layout: Sequence[str],
    step: Step, method: str,
) -> list[Tensor]:  # fmt: skip
    places, length = line_places(sets, sets[0].shape[2])
    buffer = torch.empty(length, dtype=torch.float32, device=packed.device)
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
        line_gradients(x, vectors, kernels, Lines(buffer, at[0], at[1], scales), _area(grads[index]), step, route)
    results = []
    opposite = Step(step.stride, step.padding, not step.transposed)
    for index, (grad, x) in enumerate(zip(grads, sets, strict=True)):
        kernels, lines = _of_set(packed, index, len(sets)), Lines(buffer, *places[index])
        if _method(method, x, packed[0], "planes_gradient") == "gemm":
            y = own_plane(grad, kernels, None, lines, _area(x), opposite, backward=True)
        else:
            y = _library_planes_gradient(grad, x, kernels, step)
            add_lines(y, lines, _area(grad), packed.shape[-1], opposite, backward=True)
        results.append(y)
    return _as_planes(results, 1 if len(sets) == 1 else 3)


def _weight_gradient(
    grads: Sequence[Tensor], sets: Sequence[Tensor], sums: Sequence[Lines], weight: Tensor, layout: Sequence[str],
    step: Step, method: str,
) -> Tensor:  # fmt: skip
    averages = average(sets, layout)
    whole = weight if weight.ndim == 5 else weight.unsqueeze(0)
    # three sets that share a weight are added up in float32 before they are rounded
    dtype = torch.float32 if weight.ndim == 4 and len(sets) > 1 else weight.dtype
    parts = []
    for index, (grad, x) in enumerate(zip(grads, sets, strict=True)):
        kernels, own = _of_set(whole, index, len(sets)), None
        if _method(method, x, weight, "weight_gradient") == "library":
            own = _library_weight_gradient(grad, x, kernels, step)
        parts.append(weight_part(grad, x, sums[index], averages[index], kernels, own, step, dtype))
    if weight.ndim == 4:
        return parts[0][0] if len(parts) == 1 else torch.cat(parts).sum(0).to(weight.dtype)
    return torch.cat(parts)


def _library_forward(x: Tensor, weight: Tensor, bias: Tensor | None, step: Step) -> Tensor:
    """The own plane by torch's convolution: x [B, P, C, H, W] and [weights, O, 3C, k, k] to dense [B, P, H', W', O]."""
    own = weight[:, :, : x.shape[2]]
    if len(own) == 1:
        y = convolve(x.flatten(0, 1), own[0], bias, step)
        return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
    shifts = [None] * len(own) if bias is None else bias.unbind()
    parts = [convolve(x[:, p], own[p], shifts[p], step).permute(0, 2, 3, 1) for p in range(len(own))]
    return torch.stack(parts, 1)


def _library_planes_gradient(grad: Tensor, x: Tensor, weight: Tensor, step: Step) -> Tensor:
    """The gradient of the own plane by torch's convolution, dense [B, P, H, W, C]."""
    own, mask = weight[:, :, : x.shape[2]], (True, False)
    if len(own) == 1:
        y, _ = convolve_backward(grad.flatten(0, 1), x.flatten(0, 1), own[0], step, mask)
        return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
    parts = [convolve_backward(grad[:, p], x[:, p], own[p], step, mask)[0] for p in range(len(own))]
    return torch.stack([part.permute(0, 2, 3, 1) for part in parts], 1)


def _library_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, step: Step) -> Tensor:
    """The gradient of the own plane's weight by torch's convolution, [weights, O, C, k, k]."""
    own, mask = weight[:, :, : x.shape[2]], (False, True)
    if len(own) == 1:
        pairs = [(grad.flatten(0, 1), x.flatten(0, 1))]
    else:
        pairs = [(grad[:, p], x[:, p]) for p in range(len(own))]
    parts = [convolve_backward(*pair, w, step, mask)[1] for pair, w in zip(pairs, own, strict=True)]
    return torch.stack(parts)


def _sets(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One set [B, 3, C, H, W] of stacked planes, or three [B, 1, C, H_p, W_p] of separate ones."""
    return [_readable(tensor if len(tensors) == 1 else tensor.unsqueeze(1)) for tensor in tensors]


def _readable(x: Tensor) -> Tensor:
    """The set itself where its channels lie together and whole vectors of them can be loaded, else a copy that does.

    Every element is read once for each tap, k^2 times in all: in the order [C, H, W] a tap's neighbours start at any
    element, so that no load is wider than one. Turning it once costs 2 transfers.
    """
    vector = 16 // x.element_size()
    pixels = [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1 and stride != x.stride(2)]
    apart = x.shape[2] > 1 and x.stride(2) != 1
    ragged = x.shape[2] % vector == 0 and (x.data_ptr() % 16 != 0 or any(stride % vector for stride in pixels))
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if apart or ragged else x


def _as_planes(results: Sequence[Tensor], count: int) -> list[Tensor]:
    """Dense [B, P, H, W, C] as the tensors that the operator returns, the opposite of `_sets`."""
    turned = [result.permute(0, 1, 4, 2, 3) for result in results]
    return turned if count == 1 else [result.squeeze(1) for result in turned]


def _packed(weight: Tensor) -> Tensor:
    """[weights, O, 3C, k, k] with unit stride along 3C, so that the kernels load whole vectors of channels."""
    whole = weight if weight.ndim == 5 else weight.unsqueeze(0)
    return whole if whole.stride(2) == 1 else whole.movedim(2, -1).contiguous().movedim(-1, 2)


def _of_set(packed: Tensor, index: int, sets: int) -> Tensor:
    """The weights of one set, [weights, O, 3C, k, k]."""
    return packed if sets == 1 or len(packed) == 1 else packed[index : index + 1]


def _size(x: Tensor, weight: Tensor, step: Step) -> tuple[int, int]:
    height, width = (step.output_size(size, weight.shape[-1]) for size in x.shape[3:])
    return height, width


def _area(x: Tensor) -> tuple[int, int]:
    return x.shape[3], x.shape[4]


def _method(method: str, x: Tensor, weight: Tensor, purpose: str) -> str:
    """ "gemm" or "library": what the caller forces, else what was tuned on this device, else the shipped rules'."""
    if method != "auto":
        return method
    shape = Shape(8 * x.element_size(), x.shape[2], weight.shape[-4], max(x.shape[3:]))
    shipped = {"method": method_for(method, architecture(x.device), purpose, shape)}
    found = configs.choose("rollout_conv", f"{purpose}_method", shape._asdict(), shipped, x.device,
                           space={"method": METHODS[1:]})
    return str(found["method"])
