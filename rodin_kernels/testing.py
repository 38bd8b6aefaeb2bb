"""Tools to judge an operator: an error budget taken from data, poisoned memory, and input factories.

Public, and used by this project's own tests and benchmarks; a project with a further backend can use them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# as PyTorch has it, whatever `poisoned` puts in its place
_empty = torch.empty
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
    # where the tensors are, if that is a place for float64
    place = exact64.device
    got, exact, plain = (t.detach().to(place, torch.float64) for t in (actual, exact64, plain_low))
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
        index = [int(i) for i in torch.unravel_index(worst, exact.shape)]
        assert have <= allowed, (
            f"{label}{name} {have:.3e} exceeds the budget {allowed:.3e} ({factor} x plain PyTorch's); "
            f"worst at {index}: {got.flatten()[worst].item():.9g} instead of {exact.flatten()[worst].item():.9g}"
        )


@contextmanager
def poisoned(around: int = 0) -> Iterator[None]:
    """Fill what torch.empty and its sisters return with NaN (integers: the largest value) inside this context.

    An operator that leaves one element of its result unwritten then shows it, whatever the memory held before. Reaches
    calls made from Python; memory that PyTorch's own operators allocate inside is theirs to fill.

    Args:
        around: so many poisoned elements lie before and after each of these tensors, of those from torch.zeros and of
            the copies that Tensor.contiguous makes, so that reading past an end shows as well, even where the value
            meets a zero. A multiple of 16 keeps tensors aligned for wide loads.

    Raises:
        AssertionError: at the end, if one of the elements around has been written to.
    """
    margins: list[Tensor] = []

    def wrap(function: Callable[..., Tensor], *, fill: bool = True) -> Callable[..., Tensor]:
        def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
            tensor = function(*args, **kwargs)
            with torch.no_grad():
                if fill:
                    _spoil(tensor)
                if around and tensor.device.type != "meta" and tensor.numel():
                    tensor, *ends = _amid(tensor, around)
                    margins.extend(ends)
                return tensor

        return poisoned_empty

    def copied(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tensor = saved[Tensor, "contiguous"](self, *args, **kwargs)
        fresh = tensor.data_ptr() != self.data_ptr() and not tensor.requires_grad and tensor.device.type != "meta"
        if fresh:
            tensor, *ends = _amid(tensor, around)
            margins.extend(ends)
        return tensor

    names = [(torch, name) for name in _EMPTIES] + [(Tensor, name) for name in ("new_empty", "new_empty_strided")]
    cleared = [(torch, name) for name in ("zeros", "zeros_like")] if around else []
    copies = [(Tensor, "contiguous")] if around else []
    saved: dict[tuple[Any, str], Callable[..., Tensor]] = {key: getattr(*key) for key in names + cleared + copies}
    try:
        for (owner, name), function in saved.items():
            setattr(owner, name, wrap(function, fill=(owner, name) not in cleared))
        for owner, name in copies:
            setattr(owner, name, copied)
        yield
    finally:
        for (owner, name), function in saved.items():
            setattr(owner, name, function)
    for margin in margins:
        clean = torch.equal(margin, _spoil(margin.clone())) if not margin.is_floating_point() else margin.isnan().all()
        assert clean, "memory before or after a tensor was written to"


def amid_poison(tensor: Tensor, around: int = 64) -> Tensor:
    """The same values and strides in memory whose `around` elements before and after are NaN (integers: the largest).

    What an operator reads outside of the tensor then shows, even where the value meets a zero.
    """
    with torch.no_grad():
        return _amid(tensor.detach(), around)[0].requires_grad_(tensor.requires_grad)


def _spoil(tensor: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return tensor.fill_(float("nan"))
    return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)


def _amid(tensor: Tensor, around: int) -> tuple[Tensor, Tensor, Tensor]:
    """A copy with the same strides inside a poisoned buffer, and the buffer's two ends."""
    if tensor.numel() == 0:
        return tensor, tensor, tensor
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = _spoil(_empty(length + 2 * around, dtype=tensor.dtype, device=tensor.device))
    buffer[around : around + length] = tensor.as_strided((length,), (1,), tensor.storage_offset())
    inner = buffer.as_strided(tensor.shape, tensor.stride(), around)
    return inner, buffer[:around], buffer[around + length :]


def random_tensor(
    *shape: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A normally distributed tensor that depends on `seed` and shape alone, not on dtype, device or global state.

    Without a device it is made on PyTorch's default one.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return values.to(device=device or torch.get_default_device(), dtype=dtype).requires_grad_(requires_grad)


def random_planes(
    batch: int = 1,
    channels: int = 4,
    size: int = 8,
    *,
    seed: int = 0,
    storage: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Normally distributed planes [B, 3, C, size, size] in one of the `STORAGES`, on which the values do not depend."""
    planes = random_tensor(batch, 3, channels, size, size, seed=seed, dtype=dtype, device=device)
    return stored_as(planes, storage)


#: Ways in which the same set of planes may lie in memory; "sliced" has NaN between its rows.
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
        padded = planes.new_full([size + 2 for size in planes.shape], float("nan"))
        inner = padded[tuple(slice(1, 1 + size) for size in planes.shape)]
        return inner.copy_(planes)
    if storage == "expanded":
        return planes[:1].expand(planes.shape)
    raise ValueError(f"storage must be one of {', '.join(STORAGES)}; got {storage!r}")


def gradients(output: Tensor, inputs: Sequence[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Gradients of `output` with a random cotangent that depends on `seed` and shape alone; zeros where unconnected."""
    cotangent = random_tensor(*output.shape, seed=seed, dtype=output.dtype, device=output.device)
    return torch.autograd.grad(output, inputs, cotangent, allow_unused=True, materialize_grads=True)
