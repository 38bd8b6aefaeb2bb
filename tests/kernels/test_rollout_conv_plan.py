"""Plans of the 3D-aware convolution, and the short way of calls that are known: what runs again is what ran before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rodin_kernels import EG3D_FIXED, configs, rollout_conv, rollout_conv_reference
from rodin_kernels.rollout_conv import quick, triton_path
from rodin_kernels.rollout_conv.plan import Plan
from rodin_kernels.testing import assert_within_budget, poisoned, random_planes, random_tensor
from tests.interpreter import assert_passes_interpreted

interpret = pytest.mark.interpret


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """Every test starts without plans and leaves none."""
    for forget in (triton_path.forget, quick.forget):
        forget()
    yield
    for forget in (triton_path.forget, quick.forget):
        forget()


class Compiled:
    """Stands for what a launch of Triton returns: launched again, it takes every argument by position."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert grid == (2, 1, 1)
        return lambda *args, stream: self.calls.append(args)


class Kernel:
    """Stands for a kernel of Triton."""

    arg_names = ("x", "size", "out", "TILE")

    def __init__(self) -> None:
        self.compiled, self.calls = Compiled(), list[tuple[Any, ...]]()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Compiled]:
        def launch(*args: Any, **options: Any) -> Compiled:
            self.calls.append((args, options))
            return self.compiled
        return launch


def test_a_plan_gives_tensors_the_first_time_and_pointers_from_then_on() -> None:
    kernel, first = Kernel(), torch.arange(12.0).view(3, 4)
    plan = Plan([first], torch.device("cpu"))
    between, out = plan.buffer(5, dtype=torch.float16), plan.result(2, 3, dtype=torch.float32, show=Tensor.t)
    plan.add(kernel, (2,), plan.inputs[0][1:, 2:], 7, between[1:], constants={"TILE": 16}, options={"num_warps": 4})
    plan.add(kernel, (2,), between, 8, out, constants={"TILE": 16}, options={"num_warps": 4})
    (result,) = plan.run([first])
    assert result.shape == (3, 2) and result.stride() == (1, 3)
    (x, seven, view), options = kernel.calls[0]
    assert torch.equal(x, first[1:, 2:]) and seven == 7 and view.shape == (4,) and view.dtype == torch.float16
    assert options == {"TILE": 16, "num_warps": 4}
    second = torch.zeros(3, 4)
    memory: list[Tensor] = plan.memory([second])
    for step in plan.steps:
        step(plan, memory, [tensor.data_ptr() for tensor in memory], None)
    assert len(kernel.calls) == 2
    assert kernel.compiled.calls == [
        (second.data_ptr() + 4 * 6, 7, memory[1].data_ptr() + 2, 16),
        (memory[1].data_ptr(), 8, memory[2].data_ptr(), 16),
    ]


def test_a_plan_takes_what_a_function_returns_and_keeps_its_memory_apart() -> None:
    x = torch.ones(4)
    plan = Plan([x], torch.device("cpu"))
    parts = [plan.buffer(size, dtype=torch.float32) for size in (3, 1, 70)]
    for value, part in enumerate(parts):
        plan.call(lambda part, value=value: part.fill_(value), part)
    twice = plan.called(lambda x: 2 * x, plan.inputs[0], shape=(4,), dtype=torch.float32, show=lambda t: t[None])
    result = plan.result(3, dtype=torch.float32)
    plan.call(lambda out, a, b, c, d: out.copy_(a + b + c[:3] + d[1:]), result, *parts, twice)
    first, second = plan.run([x])
    assert plan.calls and first.tolist() == [[2.0] * 4] and second.tolist() == [5.0] * 3
    assert len({plan.place(part)[1] for part in parts}) == 3


HERE: dict[str, Any] = {"backend": "triton", "padding": 0}


def arguments(separate: bool, per_plane: bool) -> list[Tensor]:
    """Planes, a weight of one tap and a bias."""
    lead = (3, 3) if per_plane else (3,)
    planes = [random_tensor(2, 2, 4, 4, seed=i) for i in range(3)] if separate else [random_planes(2, 2, 4)]
    tensors = [*planes, random_tensor(*lead, 6, 1, 1, seed=5), random_tensor(*lead, seed=6)]
    return [tensor.requires_grad_() for tensor in tensors]


def outcome(function: Any, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """The convolution and all of its gradients."""
    *planes, weight, bias = tensors
    out = function(planes[0] if len(planes) == 1 else planes, weight, bias, layout=EG3D_FIXED, **options)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    cotangents = [random_tensor(*y.shape, seed=3, dtype=y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, cotangents)]


@interpret
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("per_plane", [False, True])
def test_a_known_call_is_the_first_one_again(separate: bool, per_plane: bool) -> None:
    tensors = arguments(separate, per_plane)
    first = outcome(rollout_conv, tensors, **HERE)
    assert len(quick._known) == 1
    with poisoned(around=64):
        again = outcome(rollout_conv, tensors, **HERE)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact, plain = (outcome(rollout_conv_reference, given, padding=0) for given in (doubles, tensors))
    for have, before, want, other in zip(again, first, exact, plain, strict=True):
        assert torch.equal(have, before) and have.stride() == before.stride()
        assert_within_budget(have, want, other)


class Seen(TorchDispatchMode):
    """Names of the operators that ran inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation as it is, noted."""
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@interpret
def test_who_watches_operators_sees_them() -> None:
    tensors = arguments(False, False)
    outcome(rollout_conv, tensors, **HERE)
    with Seen() as seen:
        outcome(rollout_conv, tensors, **HERE)
    assert {"rodin.rollout_conv.default", "rodin.rollout_conv_backward.default"} <= set(seen.names)
    with torch.no_grad(), Seen() as seen:
        rollout_conv(tensors[0], *tensors[1:], **HERE)
    assert "rodin.rollout_conv.default" in seen.names


@interpret
def test_a_known_call_differs_from_others_in_what_it_needs() -> None:
    planes, weight, bias = arguments(False, False)
    first = rollout_conv(planes, weight, bias, **HERE)
    # the same shapes with other strides, other needs, other options
    turned = planes.detach().movedim(-3, -1).contiguous().movedim(-1, -3)
    for _ in range(2):
        assert torch.allclose(rollout_conv(turned, weight, bias, **HERE), first, atol=1e-5)
        assert torch.equal(rollout_conv(planes, weight, None, **HERE),
                           rollout_conv(planes, weight, torch.zeros(3), **HERE))
        assert rollout_conv(planes, weight, bias, padding=1, backend="triton").shape[-1] == 6
        for wanted in ([planes], [weight], [bias], [weight, bias]):
            out = rollout_conv(planes, weight, bias, **HERE)
            found = torch.autograd.grad(out.sum(), wanted)
            plain = torch.autograd.grad(rollout_conv_reference(planes, weight, bias, padding=0).sum(), wanted)
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, plain, strict=True))
    with pytest.raises(ValueError, match="bias must be"):
        rollout_conv(planes, weight, bias[:2], **HERE)
    with pytest.raises(TypeError, match="one dtype"):
        rollout_conv(planes, weight.half(), bias, **HERE)


@interpret
def test_parameters_that_are_forced_are_not_remembered() -> None:
    planes, weight, bias = arguments(False, False)
    rollout_conv(planes, weight, bias, **HERE)
    with configs.overheard() as questions:
        rollout_conv(planes, weight, bias, **HERE)
    assert {question.kernel for question in questions} >= {"own_plane", "line_conv", "pool"}
    with configs.forced("rollout_conv", "own_plane", {"warps": 3}), pytest.raises(ValueError, match="warps=3"):
        rollout_conv(planes, weight, bias, **HERE)


@interpret
def test_a_known_call_can_be_differentiated_again_and_compiled() -> None:
    planes, weight, bias = arguments(False, False)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return rollout_conv(x, w, bias, **HERE)

    def second(function: Any) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(planes, weight).square().sum(), [planes, weight], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [planes, weight])

    call(planes, weight)
    plain = second(lambda x, w: rollout_conv_reference(x, w, bias, padding=0))
    for have, want in zip(second(call), plain, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-1)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(planes, weight), call(planes, weight))


@interpret
def test_the_backward_keeps_planes_weight_and_short_lines() -> None:
    planes, weight, bias = arguments(False, False)
    rollout_conv(planes, weight, bias, **HERE)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rollout_conv(planes, weight, bias, **HERE)
    assert sorted(t.numel() for t in saved) == sorted([planes.numel(), weight.numel(), 2 * 3 * 2 * (4 + 4)])


def test_known_calls_pass_under_the_interpreter() -> None:
    assert_passes_interpreted(__file__, "-x", timeout=900)
