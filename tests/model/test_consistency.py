"""Consistency between views: exact on scenes whose answer is known, and worse where it must be."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rodin_model.avatars.attributes import sample_attributes
from rodin_model.cameras import Camera, box_near_far
from rodin_model.evaluation.consistency import (
    Consistency,
    View,
    avatar_consistency,
    mean,
    project,
    true_consistency,
    view_consistency,
)


def ball(yaw: float, size: int = 64, frequency: float = 3.0) -> View:
    """A ball of radius 0.6 whose colour is a smooth function of the place on it."""
    camera = Camera.orbit(yaw, 5.0, size)
    origins, directions = camera.rays()
    along = -(origins * directions).sum(-1)
    inside = 0.6 ** 2 - (origins.square().sum(-1) - along ** 2)
    distance = along - inside.clamp_min(0).sqrt()
    points = origins + distance[:, None] * directions
    hit = (inside > 0)[:, None]
    rgb = torch.where(hit, 0.5 + 0.4 * torch.sin(frequency * points), torch.ones_like(points))
    return View(rgb.view(size, size, 3), torch.where(hit[:, 0], distance, 0.0).view(size, size),
                hit[:, 0].float().view(size, size), camera)


def test_projection_undoes_the_rays() -> None:
    camera = Camera.orbit(40, 10, 32)
    origins, directions = camera.rays()
    near, far = box_near_far(origins, directions)
    t = near + 0.3 * (far - near)
    where, distance = project(origins + t[:, None] * directions, camera)
    pixels = (torch.arange(32) + 0.5) / 32 * 2 - 1
    assert torch.allclose(where.view(32, 32, 2)[..., 0], pixels.expand(32, 32), atol=1e-5)
    assert torch.allclose(where.view(32, 32, 2)[..., 1], pixels[:, None].expand(32, 32), atol=1e-5)
    assert torch.allclose(distance, t, atol=1e-5)
    behind, _ = project(camera.cam2world[:3, 3] * 2 + torch.zeros(1, 3), camera)
    assert bool((behind > 1).all())


def test_equal_views_do_not_differ() -> None:
    found = view_consistency(ball(0), ball(0))
    assert found.difference < 1e-4 and found.psnr > 70 and 0.8 < found.share <= 1


@pytest.mark.parametrize("yaw", [0.0, 100.0])
def test_the_same_ball_agrees_with_itself_and_not_with_another(yaw: float) -> None:
    same = view_consistency(ball(yaw), ball(yaw + 5))
    assert same.difference < 0.004 and same.share > 0.8
    moved = view_consistency(ball(yaw), dataclasses.replace(ball(yaw + 5), rgb=ball(yaw).rgb))
    assert moved.difference > 5 * same.difference and moved.psnr < same.psnr - 10


def test_a_known_change_is_measured_as_it_is() -> None:
    second = ball(5)
    found = view_consistency(ball(0), dataclasses.replace(second, rgb=second.rgb + 0.1))
    assert found.difference == pytest.approx(0.1, abs=0.004)
    assert found.psnr == pytest.approx(20.0, abs=0.3)


def test_what_is_hidden_does_not_count() -> None:
    aside = view_consistency(ball(0), ball(80))
    assert 0.2 < aside.share < 0.8
    assert aside.difference < 0.01
    opposite = view_consistency(ball(0), ball(180))
    assert opposite.share < 0.05
    nothing = view_consistency(dataclasses.replace(ball(0), opacity=torch.zeros(64, 64)), ball(0))
    assert nothing.share == 0 and math.isnan(nothing.difference)


def test_means_and_sizes() -> None:
    assert mean([Consistency(0.1, 20.0, 1.0), Consistency(0.3, 30.0, 0.5)]) == Consistency(0.2, 25.0, 0.75)
    with pytest.raises(ValueError, match=r"the camera's size \(64, 64\)"):
        view_consistency(ball(0), dataclasses.replace(ball(0), opacity=torch.ones(8, 8)))


def test_true_pictures_agree() -> None:
    found = true_consistency(sample_attributes(3), yaws=(10.0,), size=96)
    assert found.difference < 0.03 and found.share > 0.6


def test_a_refiner_that_disagrees_with_itself_is_seen(tiny_model_dir) -> None:
    from rodin_model.config import RefinerConfig
    from rodin_model.pipeline import RodinPipeline
    from rodin_model.refiner import Refiner

    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    pipe.set_progress_bar_config(disable=True)
    avatar = pipe("a man", generator=torch.Generator().manual_seed(1)).avatars[0]
    refiner = Refiner(RefinerConfig(features=0, width=8, growth=4, dense=1, detail=4)).eval()
    options = {"yaws": (0.0,), "size": 64}
    plain, enlarged = avatar_consistency(avatar, **options), avatar_consistency(avatar, refiner, **options)
    # a pattern that is fixed to the picture and not to the head
    refiner.head.bias.data[[0, 4, 8]] = 0.3
    patterned = avatar_consistency(avatar, refiner, **options)
    assert plain.share > 0.5
    assert patterned.difference > 1.2 * max(plain.difference, enlarged.difference)
