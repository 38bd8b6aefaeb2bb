"""Red means no number: every contender is compared with float64 before it is timed.

Ours must keep the accuracy contract (`rodin_kernels.testing.assert_within_budget`), in the result and in every
gradient. A rival must compute the same function; how accurately is reported beside its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rodin_kernels.testing import assert_within_budget

from .case import OURS, Call, Case, Contender, Tensors, random

#: Root mean square error, relative to the exact result's, up to which a rival counts as the same function; low
#: precision may round more often than that: the larger of this and so many machine epsilons.
SAME_FUNCTION, SAME_FUNCTION_EPSILONS = 1e-3, 16
#: The same for gradients that jump; ours may err by this or by twice plain PyTorch's error, whichever is more.
JUMPING = 1e-2


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        error: root mean square error of the result relative to the exact one's, or nan if there is none.
        reason: why there will be no number; None if there will.
        psnr: decibels against the specification, for cases compared as pictures.
    """

    error: float
    reason: str | None = None
    psnr: float | None = None


class Budget(NamedTuple):
    """A plain result from whose error the budget follows, and the size of what was added up (None: of the result)."""

    plain: Tensor
    scale: float | None = None


def compiled(contender: Contender) -> Call:
    """The contender's call, under torch.compile if it asks for that."""
    return torch.compile(contender.call) if contender.compiled else contender.call


def evaluate(call: Call, tensors: Tensors, leaves: tuple[str, ...],
             cotangent: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The result and the gradient of every leaf; `cotangent` says what the result is multiplied by."""
    own = {name: t.detach().clone(memory_format=torch.preserve_format).requires_grad_(name in leaves)
           for name, t in tensors.items()}
    if not leaves:
        with torch.no_grad():
            return {"result": call(own)}
    out = call(own)
    grads = torch.autograd.grad(out, [own[name] for name in leaves], cotangent(out).to(out.dtype))
    return {"result": out.detach(), **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}


class Judge:
    """The exact and the plain result of one case on one device, and the comparison of contenders with them."""

    def __init__(self, case: Case, tensors: Tensors) -> None:
        self.case, self.tensors = case, tensors
        self._drawn: Tensor | None = None
        narrow, self.index = self._narrowed()
        self.coarsest = max(torch.finfo(t.dtype).eps for t in tensors.values() if t.is_floating_point())
        if case.least_psnr is not None:
            # a picture is compared with the specification in its own precision, which 45 dB do not ask to be exact
            self.exact = evaluate(case.reference, narrow, (), self._cotangent)
            return
        self._sizes: dict[str, Tensor] = {}
        self.double = {name: t.double() if t.is_floating_point() else t for name, t in narrow.items()}
        # float64 is not worth a search for the fastest way
        searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        self.exact = evaluate(case.reference, self.double, case.leaves, self._cotangent)
        torch.backends.cudnn.benchmark = searches
        self.plains = [evaluate(case.reference, narrow, case.leaves, self._cotangent)]
        self.narrow = narrow

    def _cotangent(self, result: Tensor) -> Tensor:
        if self._drawn is None or self._drawn.shape != result.shape:
            self._drawn = random(*result.shape, seed=99, dtype=self.case.dtype, device=result.device)
        return self._drawn

    def _full_cotangent(self, result: Tensor) -> Tensor:
        """The same numbers in the checked rows and zeros elsewhere, so that gradients are those of these rows."""
        if self.index is None:
            return self._cotangent(result)
        picked = self._cotangent(self.exact["result"]).to(result.dtype)
        return torch.zeros_like(result).index_copy_(1, self.index, picked)

    def _narrowed(self) -> tuple[Tensors, Tensor | None]:
        """The tensors with the checked rows alone, and which rows these are."""
        if not self.case.rows or self.case.checked is None:
            return self.tensors, None
        first = self.tensors[self.case.rows[0]]
        count = min(self.case.checked, first.shape[1])
        index = torch.linspace(0, first.shape[1] - 1, count, device=first.device).long()
        rows = {name: self.tensors[name][:, index] for name in self.case.rows}
        return {**self.tensors, **rows}, index

    def verdict(self, contender: Contender, call: Call) -> Verdict:
        """Whether the contender may be timed; an exception of the contender's own is let through."""
        if self.case.least_psnr is not None and call is self.case.reference and self.index is None:
            return Verdict(0.0, None, 999.0)
        got = self._evaluated(contender, call)
        if self.case.least_psnr is not None:
            return self._as_pictures(got["result"])
        worst = max(relative_error(got[name], exact) for name, exact in self.exact.items())
        reason = None
        if contender.name.startswith(OURS):
            reason = self._outside_budget(got)
        else:
            least = JUMPING if self.case.jumps else SAME_FUNCTION
            limit = max(least, SAME_FUNCTION_EPSILONS * self.coarsest)
            # not "worst > limit", which a result that is not a number would pass
            if not worst <= limit:
                reason = f"computes something else: relative error {worst:.1e}"
        return Verdict(worst, reason)

    def _outside_budget(self, got: dict[str, Tensor]) -> str | None:
        """What exceeds the budget, if anything does."""
        for name, exact in self.exact.items():
            reasons = []
            for budget in self._budgets(name):
                actual = got[name].to(budget.plain.dtype)
                reason = self._exceeds(name, actual, exact, budget)
                if reason is None:
                    break
                reasons.append(reason)
            else:
                return f"outside the error budget: {reasons[-1]}"
        return None

    def _budgets(self, name: str) -> Iterator[Budget]:
        """Errors of plain PyTorch, one after another, each computed only if those before did not suffice."""
        yield Budget(self.plains[0][name])
        if self.case.plain is not None:
            if len(self.plains) == 1:
                self.plains.append(evaluate(self.case.plain, self.narrow, self.case.leaves, self._cotangent))
            yield Budget(self.plains[1][name])
        # a few numbers may have come out of plain PyTorch exact by luck: the size of what was added up says how much
        # rounding there had to be
        size = self._uncancelled()[name].abs().max().item()
        yield from [Budget(plain[name], size) for plain in self.plains]

    def _exceeds(self, name: str, actual: Tensor, exact: Tensor, budget: Budget) -> str | None:
        if self.case.jumps and name != "result":
            have = relative_error(actual, exact)
            allowed = max(self.case.factor * relative_error(budget.plain, exact), JUMPING)
            return None if have <= allowed else f"{name}: relative error {have:.1e}, allowed {allowed:.1e}"
        try:
            assert_within_budget(actual, exact, budget.plain, factor=self.case.factor, scale=budget.scale, what=name)
        except AssertionError as error:
            return str(error)
        return None

    def _uncancelled(self) -> dict[str, Tensor]:
        """The result, and gradients under a cotangent without changes of sign: how large what they add up is."""
        if not self._sizes:
            self._sizes = evaluate(self.case.reference, self.double, self.case.leaves,
                                   lambda result: self._cotangent(result).abs())
        return self._sizes

    def _evaluated(self, contender: Contender, call: Call) -> dict[str, Tensor]:
        found = evaluate(call, contender.prepare(self.tensors), self.case.leaves, self._full_cotangent)
        if self.index is None:
            return found
        per_row = {"result", *(f"gradient of {name}" for name in self.case.rows)}
        return {name: t[:, self.index] if name in per_row else t for name, t in found.items()}

    def _as_pictures(self, got: Tensor) -> Verdict:
        exact = self.exact["result"]
        mse = (got.double() - exact.double()).square().mean().item()
        psnr = math.inf if mse == 0 else -10 * math.log10(mse) if mse == mse else math.nan
        assert self.case.least_psnr is not None
        fine = psnr >= self.case.least_psnr
        reason = None if fine else f"another picture: {psnr:.1f} dB, needs {self.case.least_psnr:.0f}"
        return Verdict(relative_error(got, exact), reason, min(psnr, 999.0))


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Root mean square error of `got` over the root mean square of `exact`; nan if it is not a number."""
    if got.shape != exact.shape:
        return math.nan
    size = exact.double().square().mean().sqrt().item()
    return (got.double() - exact.double()).square().mean().sqrt().item() / max(size, 1e-30)
