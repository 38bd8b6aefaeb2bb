"""The layers of the decoder: plain torch, and on a CPU in float32 a fused form that stays in the cache.

Measured for 16 -> 64 -> 64 -> 4 on one core: `linear` and `relu` over 65,536 rows at once 64 GFLOP/s, in pieces of
4,096 rows 84 (no fresh pages), and with oneDNN's linear, which adds the bias as it writes, 140.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Activations of hidden layers.
ACTIVATIONS = ("relu", "silu", "softplus", "leaky_relu")
#: Rows that go through all layers together. oneDNN compiles and keeps a program for every number of rows that it sees,
#: so it sees only these two; what is left over goes through plain layers.
ROWS = (4096, 512)

_ACTIVATE: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "silu": F.silu, "softplus": F.softplus, "leaky_relu": F.leaky_relu,
}
_FUSED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def mlp(x: Tensor, parameters: Sequence[Tensor], activation: str, bias: bool) -> Tensor:
    """Linear layers from a flat list of weights [and biases], an activation between them.

    Args:
        x: [..., D]. parameters: weight [E, D], bias [E] (if `bias`), and so on, in the dtype of x.
        activation: one of `ACTIVATIONS`.

    Returns:
        [..., width of the last layer]. Differentiable any number of times in x and parameters.
    """
    if not _fits(x, parameters):
        return plain_mlp(x, parameters, activation, bias)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        out = _Perceptron.apply(rows, activation, bias, *parameters)
    else:
        out, _ = _forward(rows, parameters, activation, bias, keep=False)
    return out.view(*x.shape[:-1], -1)


def activated(x: Tensor, activation: str) -> Tensor:
    """x after a hidden activation."""
    return _ACTIVATE[activation](x)


def plain_mlp(x: Tensor, parameters: Sequence[Tensor], activation: str, bias: bool) -> Tensor:
    """`mlp` as plain torch: what it means."""
    step = 2 if bias else 1
    count = len(parameters) // step
    for i in range(count):
        x = F.linear(x, parameters[i * step], parameters[i * step + 1] if bias else None)
        if i < count - 1:
            x = _ACTIVATE[activation](x)
    return x


def _fits(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    if not _FUSED or torch.compiler.is_compiling() or x.numel() < 64 * max(x.shape[-1], 1):
        return False
    return all(type(p) in (Tensor, nn.Parameter) and p.device.type == "cpu" and p.dtype == torch.float32
               for p in (x, *parameters))


def _pieces(rows: int) -> Iterator[slice]:
    """Slices that cover `rows` rows: as many of each of `ROWS` as fit, then the rest."""
    first = 0
    for size in ROWS:
        while rows - first >= size:
            yield slice(first, first + size)
            first += size
    if first < rows:
        yield slice(first, rows)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    fused = x.shape[0] in ROWS
    out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "") if fused else F.linear(x, weight, bias)
    if activation == "relu":
        # not oneDNN's own, which turns what is not a number into 0
        return out.relu_()
    return out if activation is None else _ACTIVATE[activation](out)


def _forward(x: Tensor, parameters: Sequence[Tensor], activation: str, bias: bool,
             keep: bool) -> tuple[Tensor, list[list[Tensor]]]:
    """The last layer's output, and for each piece of rows the hidden layers' outputs if they are to be kept."""
    step = 2 if bias else 1
    layers = [(parameters[i], parameters[i + 1] if bias else None) for i in range(0, len(parameters), step)]
    out = x.new_empty(x.shape[0], layers[-1][0].shape[0])
    kept: list[list[Tensor]] = []
    for piece in _pieces(x.shape[0]):
        hidden = x[piece]
        own = []
        for weight, shift in layers[:-1]:
            hidden = _linear(hidden, weight, shift, activation)
            own.append(hidden)
        out[piece] = _linear(hidden, *layers[-1], None)
        if keep:
            kept.append(own)
    return out, kept


def _through(grad: Tensor, hidden: Tensor, activation: str) -> Tensor:
    """Gradient before an activation, from the gradient after it and the activation's output."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, hidden, 0)
    if activation == "leaky_relu":
        return torch.where(hidden > 0, grad, 0.01 * grad)
    return grad * -torch.expm1(-hidden)


class _Perceptron(torch.autograd.Function):
    """The fused layers, backward in the same pieces; a backward that is itself differentiated runs plain torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, bias: bool, *parameters: Tensor) -> Tensor:
        ctx.activation, ctx.bias = activation, bias
        ctx.save_for_backward(x, *parameters)
        # the output of silu does not determine its slope: such layers are computed again
        out, ctx.kept = _forward(x, parameters, activation, bias, keep=activation != "silu")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        if torch.is_grad_enabled() or ctx.activation == "silu":
            found = _plain_gradients(x, parameters, grad, needed, ctx.activation, ctx.bias)
        else:
            found = _gradients(x, parameters, grad, needed, ctx.kept, ctx.activation, ctx.bias)
        return (found[0], None, None, *found[1:])


def _plain_gradients(x: Tensor, parameters: Sequence[Tensor], grad: Tensor, needed: Sequence[bool], activation: str,
                     bias: bool) -> list[Tensor | None]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [y if again else y.detach().requires_grad_(n) for y, n in zip((x, *parameters), needed, strict=True)]
        out = plain_mlp(inputs[0], inputs[1:], activation, bias)
        wanted = [y for y, n in zip(inputs, needed, strict=True) if n]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again))
    return [next(found) if n else None for n in needed]


def _gradients(x: Tensor, parameters: Sequence[Tensor], grad: Tensor, needed: Sequence[bool], kept: list[list[Tensor]],
               activation: str, bias: bool) -> list[Tensor | None]:
    step = 2 if bias else 1
    weights = parameters[::step]
    transposed = [w.t().contiguous() for w in weights]
    totals = [torch.zeros_like(p) if n else None for p, n in zip(parameters, needed[1:], strict=True)]
    grad_x = torch.empty_like(x) if needed[0] else None
    for rows, hidden in zip(_pieces(x.shape[0]), kept, strict=True):
        inputs, flowing = [x[rows], *hidden], grad[rows].contiguous()
        for layer in reversed(range(len(weights))):
            if (total := totals[layer * step]) is not None:
                total.addmm_(flowing.t(), inputs[layer])
            if bias and (shift := totals[layer * step + 1]) is not None:
                shift.add_(flowing.sum(0))
            if layer > 0:
                flowing = _through(_linear(flowing, transposed[layer], None, None), hidden[layer - 1], activation)
            elif grad_x is not None:
                grad_x[rows] = _linear(flowing, transposed[0], None, None)
    return [grad_x, *totals]
