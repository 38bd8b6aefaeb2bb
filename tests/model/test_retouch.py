"""Retouching: planes say at points what is wanted there, in front one thing and behind another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rodin_model import retouch
from rodin_model.retouch import Said, Wanted, above, opaque, points_of, retouched, said, smooth, wanted_of
from rodin_model.triplane import Avatar
from tests.model.test_clearing import average, drawn


def recolored() -> Avatar:
    """The average avatar in other colours."""
    change = torch.randn(average().planes.shape, generator=torch.Generator().manual_seed(3))
    return dataclasses.replace(average(), planes=average().planes + 0.5 * smooth(smooth(change)))


def evenly(some: Tensor) -> Tensor:
    """How often to draw points so that some are drawn as often as all others together."""
    return torch.where(some, 1.0 / some.sum(), 1.0 / (~some).sum())


def missed(avatar: Avatar, wanted: Wanted, where: Tensor) -> float:
    weight = (wanted.colored * opaque(wanted.density))[where]
    wrong = (avatar.color(wanted.points) - wanted.rgb)[where].square().mean(1)
    return float((wrong * weight).sum() / weight.sum())


def test_one_thing_in_front_and_another_behind() -> None:
    generator = torch.Generator().manual_seed(0)
    points, colored = points_of([drawn()], generator)
    density, rgb = drawn().density(points), drawn().color(points)
    front = points[:, 2] > 0
    wanted = Wanted(points, density, torch.where(front[:, None], rgb, rgb.flip(1)), colored, evenly(front))
    made = retouched(drawn(), wanted, 60, generator)
    assert missed(drawn(), wanted, ~front) > 0.01
    assert missed(made, wanted, ~front) < 0.1 * missed(drawn(), wanted, ~front)
    assert missed(made, wanted, front) < 0.1 * missed(drawn(), wanted, ~front)
    solid = opaque(density) - opaque(made.density(points))
    assert solid.square().mean() < 2e-3


def test_points_are_drawn_as_often_as_they_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    points, colored = points_of([average()], generator)
    few = (points - torch.tensor([0.0, -0.1, 0.45])).norm(dim=1) < 0.1
    density, rgb = average().density(points), average().color(points)
    wanted = Wanted(points, density, torch.where(few[:, None], 1 - rgb, rgb), colored, evenly(few))
    monkeypatch.setattr(retouch, "POINTS", 1024)
    alike = retouched(average(), wanted, 12, torch.Generator().manual_seed(1))
    outvoted = retouched(average(), wanted._replace(often=torch.ones(len(points))), 12,
                         torch.Generator().manual_seed(1))
    assert few.float().mean() < 0.05 and missed(alike, wanted, few) < 0.7 * missed(outvoted, wanted, few)


def test_what_is_wanted_is_between_two_avatars() -> None:
    points = torch.tensor([[0.0, 0.1, 0.3], [0.1, 0.2, 0.2], [0.0, 0.9, 0.9]])
    first, second = average(), recolored()
    share = torch.tensor([0.0, 1.0, 0.25])
    wanted = wanted_of(said(first, points).toward(said(second, points), share), points, torch.ones(3), share)
    assert torch.equal(wanted.density[0], first.density(points)[0])
    torch.testing.assert_close(wanted.rgb[1], second.color(points)[1])
    torch.testing.assert_close(wanted.rgb[2], 0.75 * first.color(points)[2] + 0.25 * second.color(points)[2])


def test_every_kind_of_point_is_as_frequent_and_a_face_that_stays_twice() -> None:
    points = torch.tensor([[0.0, 0.1, 0.45]] * 3 + [[0.0, 0.1, -0.4]] * 4 + [[0.0, 0.9, 0.9]] * 2)
    what = Said(torch.tensor([9.0] * 7 + [0.0] * 2), torch.zeros(9, 3))
    back = (points[:, 2] < 0).float()
    often = wanted_of(what, points, torch.ones(9), back).often
    torch.testing.assert_close(often, torch.tensor([2 / 3] * 3 + [1 / 4] * 4 + [1 / 2] * 2))
    front = wanted_of(what, points, torch.ones(9), 1 - back).often
    torch.testing.assert_close(front, torch.tensor([1 / 3] * 3 + [1 / 4] * 4 + [1 / 2] * 2))


def test_points_lie_about_surfaces_in_the_air_and_inside() -> None:
    points, colored = points_of([average(), recolored()], torch.Generator().manual_seed(0))
    again, _ = points_of([average(), recolored()], torch.Generator().manual_seed(0))
    assert torch.equal(points, again) and (points.abs() <= 1).all() and len(points) == len(colored)
    density = average().density(points)
    assert colored.mean() > 0.4 and (density[colored == 1] > 1).float().mean() > 0.3
    rest = density[colored == 0]
    assert (rest < 0.5).float().mean() > 0.5 and (rest > retouch.INSIDE).float().mean() > 0.1


def test_an_empty_avatar_can_be_retouched() -> None:
    empty = dataclasses.replace(average(), planes=torch.full_like(average().planes, -40.0))
    points, colored = points_of([empty], torch.Generator().manual_seed(0))
    assert len(points) > 500 and not colored.any()
    made = retouched(empty, wanted_of(said(empty, points), points, colored, torch.zeros(len(points))), 2,
                     torch.Generator().manual_seed(0))
    assert float(made.density(points).max()) < 1e-3


def test_what_lies_above_a_texel() -> None:
    planes = torch.zeros(3, 1, 8, 16)
    points = torch.tensor([[0.9, 0.1, -0.9], [0.9, 0.1, 0.9]])
    found = above(planes, ("xy", "xz", "zy"), points, torch.tensor([0.0, 1.0]))
    assert found.shape == (3, 1, 8, 16)
    assert found[0, 0, 4, 15] == 0.5  # both are above it
    assert found[1, 0, 0, 15] == 0 and found[1, 0, 7, 15] == 1  # z is the row
    assert found[2, 0, 4, 0] == 0 and found[2, 0, 4, 15] == 1  # z is the column
    assert found[0, 0, 0, 0] == 0


def test_smoothing_keeps_sums_and_spreads() -> None:
    spot = torch.zeros(3, 1, 5, 5)
    spot[:, :, 2, 2] = 16.0
    assert smooth(spot)[0, 0].tolist()[1:4] == [[0, 1, 2, 1, 0], [0, 2, 4, 2, 0], [0, 1, 2, 1, 0]]
    assert torch.equal(smooth(torch.ones(3, 2, 4, 4)), torch.ones(3, 2, 4, 4))
