"""The variational bound that lets the base model learn its variance (Improved DDPM, Nichol and Dhariwal 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def variational_bound(bars: Tensor, clean: Tensor, noisy: Tensor, t: Tensor, output: Tensor,
                      weight: float = 1e-3) -> Tensor:
    """`weight` times the bound in bits a number, for an eps-prediction whose gradient is stopped (eq. 15 and 16).

        log var = v log beta_t + (1 - v) log beta~_t,    L_t = KL( q(x_{t-1} | x_t, x_0) || N(mean_theta, var) )

    Args:
        bars: [T] alpha_bar.
        clean, noisy: [B, 3, C, R, R] x_0 and x_t.
        t: [B], 0 .. T - 1.
        output: [B, 3, 2C, R, R]; the first half predicts eps, the second (v in [-1, 1]) the variance.

    Differentiable in the variance half of `output` only. At t = 0 the term is the Gaussian negative log-likelihood.
    """
    eps, v = output.chunk(2, 2)
    eps, share = eps.detach(), (v + 1) / 2
    bars = bars.double()
    previous = torch.cat([torch.ones_like(bars[:1]), bars[:-1]])
    beta = 1 - bars / previous
    posterior = beta * (1 - previous) / (1 - bars)
    # the first one is 0: its logarithm is cut, as in the paper's code
    posterior = torch.cat([posterior[1:2], posterior[1:]])

    def at(values: Tensor) -> Tensor:
        return values[t].float().view(-1, 1, 1, 1, 1)

    log_variance = share * at(beta.log()) + (1 - share) * at(posterior.log())
    guess = (noisy - at((1 - bars).sqrt()) * eps) / at(bars.sqrt()).clamp_min(1e-4)
    # the noisy parts of both means are equal and cancel
    to_clean = at(beta * previous.sqrt() / (1 - bars))
    difference = (to_clean * (clean - guess)) ** 2
    log_true = at(posterior.log())
    kl = 0.5 * (log_variance - log_true - 1 + (log_true - log_variance).exp() + difference * (-log_variance).exp())
    first = 0.5 * (math.log(2 * math.pi) + log_variance + (clean - guess) ** 2 * (-log_variance).exp())
    return weight * torch.where((t == 0).view(-1, 1, 1, 1, 1), first, kl).mean() / math.log(2.0)
