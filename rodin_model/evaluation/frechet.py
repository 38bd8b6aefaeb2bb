"""How far two sets of pictures are from each other as distributions, in the eyes of the attribute reader."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between the normal distributions that fit features a [N, F] and b [M, F], N and M at least 2.

        |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)      (Heusel et al. 2017, eq. 6; A, B: covariances)

    Computed in float64 from the factors of the covariances, so that fewer samples than features are no trouble: the
    trace of the root is the nuclear norm of A_c B_c^T with centred rows divided by sqrt(n - 1). With few samples the
    distance of two sets from one distribution is not 0; it is the floor to compare with.
    """
    for name, features in (("a", a), ("b", b)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"{name} must be features [N, F] of two or more pictures; got {list(features.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have the same number of features; got {a.shape[1]} and {b.shape[1]}")
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    left, right = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    shared = torch.linalg.svdvals(left @ right.T).sum()
    spread = left.square().sum() + right.square().sum()
    return float(((mean_a - mean_b).square().sum() + spread - 2 * shared).clamp_min(0))
