"""Avatars of the shipped model are the same pictures through the fast renderer and through its specification."""

from __future__ import annotations

import pytest
import torch

from rodin_kernels import render_triplane, render_triplane_reference
from rodin_model.cameras import Camera, box_near_far
from rodin_model.metrics import psnr
from rodin_model.pipeline import RodinPipeline
from rodin_model.triplane import Avatar

LEAST_PSNR = 45.0


def assert_same_pictures(avatar: Avatar, side: int, yaws: tuple[int, ...]) -> None:
    """Every view, through the occupancy grid with rays ended early, is the specification's of every sample."""
    for yaw in yaws:
        origins, directions = Camera.orbit(yaw=yaw, pitch=5, size=side).rays(avatar.device)
        near, far = box_near_far(origins, directions)
        inputs = avatar.planes[None], origins[None], directions[None], avatar.decoder
        shared = {"near": near[None], "far": far[None], "num_samples": 48, "background": 1.0, **avatar.conventions}
        with torch.no_grad():
            fast = render_triplane(*inputs, occupancy=avatar.occupancy(), stop_below=1e-4, **shared)
            expected = render_triplane_reference(*inputs, **shared)
        assert expected.opacity.mean() > 0.1 and expected.rgb.std() > 0.1
        assert psnr(fast.rgb, expected.rgb) >= LEAST_PSNR, yaw


def test_the_average_head_is_the_same_picture_through_both() -> None:
    pipe = RodinPipeline.from_pretrained()
    conventions = {name: pipe.conventions[name] for name in ("reduce", "align_corners", "padding_mode")}
    avatar = Avatar(pipe.mean, pipe.decoder, tuple(pipe.conventions["layout"]), **conventions)
    assert_same_pictures(avatar, 48, (20, 160))


@pytest.mark.slow
def test_a_made_avatar_is_the_same_picture_through_both() -> None:
    pipe = RodinPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    out = pipe("an old woman with a gray bun and glasses", generator=torch.Generator().manual_seed(5))
    assert_same_pictures(out.avatars[0], 96, (0, 70, 200))
