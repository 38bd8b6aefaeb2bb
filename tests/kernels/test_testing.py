"""The tools that judge operators can fail: the budget sees errors, poisoned memory shows."""

from __future__ import annotations

import pytest
import torch

from rodin_kernels.testing import (
    STORAGES,
    amid_poison,
    assert_within_budget,
    gradients,
    poisoned,
    random_planes,
    random_tensor,
)


def rounded(exact: torch.Tensor, noise: float) -> torch.Tensor:
    return (exact + noise * random_tensor(*exact.shape, seed=7, dtype=torch.float64)).float()


def test_the_budget_is_twice_plain_torch_s_error() -> None:
    exact = random_tensor(50, dtype=torch.float64)
    assert_within_budget(rounded(exact, 1e-4), exact, rounded(exact, 1e-4))
    assert_within_budget(rounded(exact, 1.9e-4), exact, rounded(exact, 1e-4))
    with pytest.raises(AssertionError, match="planes: largest error .* worst at"):
        assert_within_budget(rounded(exact, 2.1e-4), exact, rounded(exact, 1e-4), what="planes")
    assert_within_budget(rounded(exact, 2.1e-4), exact, rounded(exact, 1e-4), factor=3)


def test_many_small_errors_exceed_it_as_one_large_one_does() -> None:
    exact = torch.zeros(1000, dtype=torch.float64)
    plain, bad = torch.zeros(1000), torch.full((1000,), 1e-4)
    plain[0] = 1e-4
    with pytest.raises(AssertionError, match="root mean square"):
        assert_within_budget(bad, exact, plain)


def test_an_exact_plain_result_still_leaves_one_rounding() -> None:
    exact = torch.full((3,), 1.0, dtype=torch.float64)
    assert_within_budget(torch.full((3,), 1 + 2**-23), exact, exact.float())
    with pytest.raises(AssertionError):
        assert_within_budget(torch.full((3,), 1 + 2**-21), exact, exact.float())
    assert_within_budget(torch.full((3,), 1e-8), torch.zeros(3, dtype=torch.float64), torch.zeros(3), scale=1.0)


def test_shape_dtype_and_places_of_nan_count() -> None:
    exact = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    assert_within_budget(exact.float(), exact, exact.float())
    for bad in (torch.tensor([1.0, 1.0]), torch.tensor([float("inf"), float("nan")]), exact.float()[:1], exact.half()):
        with pytest.raises(AssertionError):
            assert_within_budget(bad, exact, exact.float())
    assert_within_budget(torch.zeros(0), torch.zeros(0, dtype=torch.float64), torch.zeros(0))


def test_fresh_memory_is_poisoned_inside_and_only_inside() -> None:
    like = torch.ones(3)
    with poisoned():
        made = [torch.empty(2), torch.empty_like(like), torch.empty_strided((2,), (1,)), like.new_empty(2)]
        assert all(tensor.isnan().all() for tensor in made)
        assert torch.empty(2, dtype=torch.int64).eq(2**63 - 1).all()
        assert torch.equal(torch.zeros(2), torch.tensor([0.0, 0.0]))
    assert not hasattr(torch.empty, "__wrapped__") and torch.empty.__name__ == "empty"


def test_memory_around_tensors_is_poisoned_and_watched() -> None:
    with poisoned(around=16):
        for made in (torch.empty(2, 3), torch.zeros(2, 3), torch.ones(1).new_empty(6).view(2, 3)):
            beside = made.as_strided((38,), (1,), 0)
            assert beside[:16].isnan().all() and beside[22:].isnan().all() and made.is_contiguous()
            assert made.data_ptr() % 16 == 0
        turned = torch.ones(3, 2).t()
        assert turned.contiguous().as_strided((6,), (1,), 22).isnan().all() and torch.equal(turned.contiguous(), turned)
        assert torch.zeros(2, 3).eq(0).all() and torch.empty(0).shape == (0,)
    with pytest.raises(AssertionError, match="was written to"), poisoned(around=16):
        torch.zeros(4).as_strided((1,), (1,), 20).fill_(1.0)
    with pytest.raises(AssertionError, match="was written to"), poisoned(around=16):
        torch.empty(4, dtype=torch.int64).as_strided((1,), (1,), 15).fill_(1)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_tensor_amid_poison_is_the_same_otherwise(storage: str) -> None:
    planes = random_planes(2, 3, 4, storage=storage).requires_grad_()
    amid = amid_poison(planes, 8)
    assert torch.equal(amid, planes) and amid.stride() == planes.stride() and amid.requires_grad and amid.is_leaf
    last = amid.untyped_storage().size() // 4 - 8
    assert all(amid.detach().as_strided((8,), (1,), first).isnan().all() for first in (0, last))
    with poisoned(around=16):
        assert torch.equal(amid_poison(planes, 8), planes)


def test_factories_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = random_planes(2, 3, 4, seed=5)
    torch.manual_seed(2)
    for storage in STORAGES[:-1]:
        assert torch.equal(random_planes(2, 3, 4, seed=5, storage=storage), first)
    assert torch.equal(random_planes(2, 3, 4, seed=5, storage="expanded")[1], first[0])
    strides = {random_planes(2, 3, 4, storage=storage).stride() for storage in STORAGES}
    assert len(strides) == len(STORAGES)
    with pytest.raises(ValueError, match="storage must be one of"):
        random_planes(storage="fortran")


def test_gradients_use_a_random_cotangent_and_zeros_where_unconnected() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    grad_x, grad_y = gradients(2 * x, [x, y])
    assert torch.equal(grad_x, 2 * random_tensor(3, seed=1)) and torch.equal(grad_y, torch.zeros(2))
