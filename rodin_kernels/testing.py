"""Tools to judge an operator: an error budget taken from data, poisoned memory, and input factories.

Public, and used by this project's own tests and benchmarks; a project with a further backend can use them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_EMPTIES = ("empty", "empty_like", "empty_strided", "empty_permuted")


def assert_within_budget(
    actual: Tensor,
    exact64: Tensor,
    plain_low: Tensor,
    *,
    factor: float = 2.0,
    scale: float | None = None,
    what: str = "",
) -> None:
    """The error of `actual` is at most `factor` times that of plain PyTorch in the same precision.

        max |actual - exact| <= factor (max |plain - exact| + eps scale),   the same for the root mean square

    Args:
        actual: result to judge, any shape.
        exact64: the same computed in float64, same shape.
        plain_low: the same computed by plain PyTorch in the precision of `actual`, same shape.
        factor: how many times plain PyTorch's error is allowed.
        scale: natural size of the result (1 for a transmittance); default the largest finite |exact|.
        what: name for the message.

    Raises:
        AssertionError: shape or dtype differ, a value is not finite where the exact one is (or the other way round), or
            the budget is exceeded; the message shows the worst element.
    """
    label = f"{what}: " if what else ""
    assert actual.shape == exact64.shape == plain_low.shape, (
        f"{label}shapes differ: actual {list(actual.shape)}, exact {list(exact64.shape)}, plain {list(plain_low.shape)}"
    )
    assert actual.dtype == plain_low.dtype, f"{label}dtypes differ: actual {actual.dtype}, plain {plain_low.dtype}"
    assert exact64.dtype == torch.float64, f"{label}exact64 must be float64; got {exact64.dtype}"
    if actual.numel() == 0:
        return
    got, exact, plain = (t.detach().to("cpu", torch.float64) for t in (actual, exact64, plain_low))
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{label}finite values in different places than in the exact result"
    error, allowed_error = (torch.where(finite, (t - exact).abs(), 0.0) for t in (got, plain))
    size = scale if scale is not None else torch.where(finite, exact.abs(), 0.0).max().item()
    slack = torch.finfo(actual.dtype).eps * size
    worst = error.argmax()
    measures: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("largest error", torch.max),
        ("root mean square error", lambda t: t.square().mean().sqrt()),
    )
    for name, measure in measures:
        have, allowed = measure(error).item(), factor * (measure(allowed_error).item() + slack)
        place = [int(i) for i in torch.unravel_index(worst, exact.shape)]
        assert have <= allowed, (
            f"{label}{name} {have:.3e} exceeds the budget {allowed:.3e} ({factor} x plain PyTorch's); "
            f"worst at {place}: {got.flatten()[worst].item():.9g} instead of {exact.flatten()[worst].item():.9g}"
        )


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what torch.empty and its sisters return with NaN (integers: the largest value) inside this context.

    An operator that leaves one element of its result unwritten then shows it, whatever the memory held before. Reaches
    calls made from Python; memory that PyTorch's own operators allocate inside is theirs to fill.
    """

    def spoil(tensor: Tensor) -> Tensor:
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
            tensor = function(*args, **kwargs)
            with torch.no_grad():
                return spoil(tensor)

        return poisoned_empty

    saved: dict[tuple[Any, str], Callable[..., Tensor]] = {(torch, name): getattr(torch, name) for name in _EMPTIES}
    saved |= {(Tensor, name): getattr(Tensor, name) for name in ("new_empty", "new_empty_strided")}
    try:
        for (owner, name), function in saved.items():
            setattr(owner, name, wrap(function))
        yield
    finally:
        for (owner, name), function in saved.items():
            setattr(owner, name, function)


def random_tensor(
    *shape: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """A normally distributed tensor that depends on `seed` and shape alone, not on dtype, device or global state."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(device=device, dtype=dtype).requires_grad_(requires_grad)


def random_planes(
    batch: int = 1,
    channels: int = 4,
    size: int = 8,
    *,
    seed: int = 0,
    storage: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Normally distributed planes [B, 3, C, size, size] in one of the `STORAGES`, on which the values do not depend."""
    planes = random_tensor(batch, 3, channels, size, size, seed=seed, dtype=dtype, device=device)
    return stored_as(planes, storage)


#: Ways in which the same set of planes may lie in memory.
STORAGES = ("contiguous", "channels_last", "rolled_out", "sliced", "expanded")


def stored_as(planes: Tensor, storage: str) -> Tensor:
    """The same values [B, 3, C, H, W] with other strides; "expanded" repeats the first sample over the batch."""
    if storage == "contiguous":
        return planes.contiguous()
    if storage == "channels_last":
        return planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    if storage == "rolled_out":
        return planes.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4)
    if storage == "sliced":
        padded = planes.new_zeros([size + 2 for size in planes.shape])
        inner = padded[tuple(slice(1, 1 + size) for size in planes.shape)]
        return inner.copy_(planes)
    if storage == "expanded":
        return planes[:1].expand(planes.shape)
    raise ValueError(f"storage must be one of {', '.join(STORAGES)}; got {storage!r}")


def gradients(output: Tensor, inputs: Sequence[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Gradients of `output` with a random cotangent that depends on `seed` and shape alone; zeros where unconnected."""
    cotangent = random_tensor(*output.shape, seed=seed, dtype=output.dtype, device=output.device)
    return torch.autograd.grad(output, inputs, cotangent, allow_unused=True, materialize_grads=True)
