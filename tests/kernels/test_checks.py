"""The argument checks name the argument, what came and what is needed."""

from __future__ import annotations

import math

import pytest
import torch

from rodin_kernels import checks

ONE = torch.zeros(2, 3)


def test_good_arguments_pass() -> None:
    assert checks.check_tensor("a", ONE, ndim=2) is ONE
    checks.check_tensor("a", torch.zeros(2, dtype=torch.int64), floating=False)
    checks.check_shape("a", ONE, (None, 3))
    checks.check_same_device(a=ONE, b=None, c=ONE)
    checks.check_same_dtype(a=ONE, b=None)
    checks.check_choice("a", "x", ("x", "y"))
    assert checks.check_integer("a", 3, least=3, most=3) == 3
    assert checks.check_number("a", 1) == 1.0
    assert checks.check_flag("a", False) is False


@pytest.mark.parametrize("call, error, message", [
    (lambda: checks.check_tensor("a", [1.0]), TypeError, "a must be a tensor; got list"),
    (lambda: checks.check_tensor("a", torch.zeros(2, dtype=torch.int64)), TypeError, "a must be float16.*torch.int64"),
    (lambda: checks.check_tensor("a", ONE, ndim=3), ValueError, r"a must have 3 dimensions; got 2: \[2, 3\]"),
    (lambda: checks.check_shape("a", ONE, (2, None, 3)), ValueError, r"a must be \[2, \*, 3\]; got \[2, 3\]"),
    (lambda: checks.check_shape("a", ONE, (2, 4), "[B, N]"), ValueError, r"a must be \[B, N\]; got \[2, 3\]"),
    (lambda: checks.check_same_device(a=ONE, b=ONE.to("meta")), ValueError, "a on cpu, b on meta"),
    (lambda: checks.check_same_dtype(a=ONE, b=ONE.double()), TypeError, "a torch.float32, b torch.float64"),
    (lambda: checks.check_choice("a", "z", ("x", "y")), ValueError, "a must be one of 'x', 'y'; got 'z'"),
    (lambda: checks.check_integer("a", 1.0), TypeError, "a must be an integer; got 1.0"),
    (lambda: checks.check_integer("a", True), TypeError, "a must be an integer; got True"),
    (lambda: checks.check_integer("a", 0, least=1), ValueError, "a must be at least 1; got 0"),
    (lambda: checks.check_integer("a", 9, least=1, most=8), ValueError, "a must be between 1 and 8; got 9"),
    (lambda: checks.check_number("a", "1"), TypeError, "a must be a number; got '1'"),
    (lambda: checks.check_number("a", math.nan), ValueError, "a must be finite; got nan"),
    (lambda: checks.check_number("a", math.inf, least=0), ValueError, "a must be at least 0; got inf"),
    (lambda: checks.check_number("a", 2, most=1), ValueError, "a must be at most 1; got 2"),
    (lambda: checks.check_flag("a", 1), TypeError, "a must be True or False; got 1"),
])  # fmt: skip
def test_bad_arguments_are_named(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]
