"""Photographs for training: repeatable, never mirrored, of every kind."""

from __future__ import annotations

import pytest
import torch

from rodin_model.train import photographs
from rodin_model.train.photographs import Draws, framed, lit, photographed


def heads(count: int, size: int = 32) -> torch.Tensor:
    """Premultiplied RGBA: a disc in the middle, red on the left half and blue on the right."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    disc = (axis[None] ** 2 + axis[:, None] ** 2 < 0.4).float()
    red = disc * (axis < 0)
    return torch.stack([red, 0 * disc, disc - red, disc]).expand(count, -1, -1, -1).contiguous()


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(count, torch.Generator().manual_seed(seed))


def test_the_same_generator_takes_the_same_photographs() -> None:
    first, again, other = (photographed(heads(6), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3, 32, 32) and 0 <= float(first.min()) <= float(first.max()) <= 1


def test_a_head_keeps_its_sides() -> None:
    moved = framed(heads(64), draws(64))
    columns = torch.arange(32.0)
    red, blue = ((moved[:, i].sum(1) * columns).sum(1) / moved[:, i].sum((1, 2)) for i in (0, 2))
    assert (red < blue).all()
    spread = moved[:, 3].sum((1, 2))
    assert spread.max() > 1.8 * spread.min()


def test_what_is_cut_off_below_goes_on_below() -> None:
    standing = torch.ones(64, 4, 32, 32)
    standing[:, :, :16] = 0
    moved = framed(standing, draws(64))
    # a head moved up by three pixels must not end three pixels above the edge
    assert (moved[:, 3, -1].mean(1) > 0.6).all()


def test_light_falls_from_one_side_and_leaves_the_outline() -> None:
    gray = heads(64)
    gray[:, :3] = 0.5 * gray[:, 3:]
    shaded = lit(gray, draws(64))
    assert torch.equal(shaded[:, 3], gray[:, 3])
    inside = gray[:, 3] == 1
    values = shaded[:, 0][inside].view(64, -1)
    assert ((values.amax(1) - values.amin(1)) < 2 * photographs.SHADE * 0.5).all()
    assert (values.amax(1) - values.amin(1)).max() > 0.1
    assert (values.mean(1) - 0.5).abs().max() < 0.01  # as much lighter on one side as darker on the other
    assert (shaded[:, :3] <= shaded[:, 3:]).all()


def test_backgrounds_are_of_every_kind() -> None:
    behind = photographs.background(16, draws(200))
    white = (behind == 1).all(-1).all(-1).all(-1)
    flat = (behind.flatten(2).std(2) < 1e-6).all(1)
    assert 0.15 < float(white.float().mean()) < 0.35
    assert 0.15 < float((flat & ~white).float().mean()) < 0.4
    assert float((~flat).float().mean()) > 0.35


@pytest.mark.parametrize("shape", [(4, 32, 32), (1, 3, 32, 32), (1, 4, 32, 16)])
def test_other_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rgba must be \[B, 4, S, S\]"):
        photographed(torch.zeros(shape), torch.Generator())
