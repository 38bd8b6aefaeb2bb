"""Clearing: the face is gone from the back of the head, and nothing else is."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.cameras import Camera
from rodin_model.clearing import FACE, behind, cleared, faceless
from rodin_model.config import PRESETS
from rodin_model.decoder import load_decoder
from rodin_model.fit import conventions
from rodin_model.pipeline import RodinPipeline
from rodin_model.triplane import Avatar
from rodin_model.upsampler import Upsampler

SHIPPED = Path(__file__).parents[2] / "rodin_model" / "pretrained"


@cache
def average() -> Avatar:
    """The shipped model's average avatar."""
    decoder, _, _ = load_decoder(SHIPPED / "decoder")
    return Avatar(Upsampler.from_folder(SHIPPED / "upsampler").mean, decoder.requires_grad_(False),
                  **conventions(PRESETS["mini"].planes))


@cache
def drawn() -> Avatar:
    """An avatar of the shipped model as its upsampler leaves it: its face shines through at its back."""
    pipe = RodinPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.index = dataclasses.replace(pipe.index, clearing=0, feedback=(0.8,))
    return pipe("a laughing woman with long straight black hair", num_inference_steps=10, candidates=1,
                generator=torch.Generator().manual_seed(2)).avatars[0]


def picture(avatar: Avatar, yaw: float) -> Tensor:
    return avatar.picture(Camera.orbit(yaw, 5.0, 96)).permute(2, 0, 1)


def apart(a: Avatar, b: Avatar, yaw: float) -> float:
    return float((picture(a, yaw) - picture(b, yaw)).square().mean())


def fine(pictured: Tensor) -> Tensor:
    """What a picture shows of a face, without its shades."""
    return (pictured - F.avg_pool2d(pictured[None], 9, 1, 4, count_include_pad=False)[0])[:, 30:62, 30:62]


def test_a_face_is_taken_from_the_back_alone() -> None:
    given, hidden = drawn(), faceless(drawn())
    made = cleared(given, 60)
    shines, left = (fine(picture(avatar, 180.0) - picture(hidden, 180.0)) for avatar in (given, made))
    assert shines.square().mean().sqrt() > 0.02
    assert (left * shines).sum() < 0.5 * shines.square().sum()
    for angle in (0.0, 45.0):
        assert apart(made, given, angle) < 0.06 * apart(given, hidden, angle)


def test_without_steps_nothing_is_done_and_the_seed_decides_the_rest() -> None:
    half = dataclasses.replace(average(), planes=average().planes.half(), metadata={"prompt": "x"})
    assert cleared(half, 0) is half
    first, again, other = (cleared(half, 2, seed=seed, bar={"disable": True}) for seed in (1, 1, 2))
    assert torch.equal(first.planes, again.planes) and not torch.equal(first.planes, other.planes)
    assert first.planes.dtype == torch.float16 and first.metadata == {"prompt": "x"}
    assert not first.planes.requires_grad and not torch.equal(first.planes, half.planes)


def test_the_back_is_behind_the_face() -> None:
    points = torch.tensor([[0.0, 0.1, -0.4], [0.0, 0.1, 0.4], [0.0, 0.7, -0.4], [0.0, 0.1, 0.0], [-0.3, -0.2, -0.2]])
    assert behind(points).tolist() == [1.0, 0.0, 0.0, 0.5, 1.0]
    assert FACE(points).tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]


def test_a_blurred_plane_has_no_face() -> None:
    avatar = average()
    hidden = faceless(avatar)
    changed = [i for i in range(3) if not torch.equal(hidden.planes[i], avatar.planes[i])]
    assert changed == [avatar.conventions["layout"].index("xy")]
    off = torch.tensor([[0.6, 0.0, 0.3], [0.0, 0.7, -0.2], [0.1, -0.6, 0.1]])
    torch.testing.assert_close(hidden.features(off), avatar.features(off))
    turned = dataclasses.replace(avatar, planes=avatar.planes.transpose(-1, -2).contiguous(), layout=("yx", "xz", "zy"))
    torch.testing.assert_close(faceless(turned).planes.transpose(-1, -2), hidden.planes)

    def sharp(a: Avatar) -> float:
        return float(picture(a, 0.0)[:, 30:66, 30:66].diff(dim=-1).abs().mean())

    assert sharp(hidden) < 0.8 * sharp(avatar)
