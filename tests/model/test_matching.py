"""Matching: an avatar comes closer to its portrait, where the portrait shows it and nowhere else."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rodin_model import matching
from rodin_model.cameras import Camera
from rodin_model.fit_data import widened
from rodin_model.matching import SIZE, locate, match
from rodin_model.pipeline import RodinPipeline
from rodin_model.triplane import Avatar
from tests.model.test_clearing import average


def picture(avatar: Avatar, yaw: float = 0.0, size: int = SIZE) -> Tensor:
    return avatar.picture(Camera.orbit(yaw, 5.0, size)).permute(2, 0, 1)


def painted(yaw: float = 0.0) -> Tensor:
    """The average avatar with its colours turned, red for green, which leaves white as it is."""
    return picture(average(), yaw)[[1, 0, 2]]


@cache
def matched(steps: int = 30) -> Avatar:
    return match(average(), painted(), steps=steps)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


def test_its_picture_becomes_the_portrait() -> None:
    before, after = error(picture(average()), painted()), error(picture(matched()), painted())
    assert before > 3e-3 and after < 0.15 * before
    assert matched().metadata["matched"] == {"yaw": 0.0, "steps": 30}


def careless(monkeypatch: pytest.MonkeyPatch) -> Avatar:
    """Matched with no regard for anything but the portrait."""
    monkeypatch.setattr(matching, "KEEP", 0.0)
    monkeypatch.setattr(matching, "FREE", 0.0)
    return match(average(), painted(), steps=30)


def test_what_the_portrait_does_not_show_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    behind, other = (error(picture(made, 180), picture(average(), 180)) for made in (matched(), careless(monkeypatch)))
    assert behind < 0.8 * other
    seen, now = (made.render(Camera.orbit(90.0, 5.0, SIZE), outputs=("opacity",)).opacity
                 for made in (average(), matched()))
    assert seen is not None and now is not None and float((seen - now).abs().mean()) < 0.0125


def test_nothing_hangs_in_the_air(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    air = points[average().density(points) < 0.05]
    grown, other = (float((made.density(air) > 1).float().mean()) for made in (matched(), careless(monkeypatch)))
    assert len(air) > 30_000 and grown < 2e-4 < 2 * other


def test_a_portrait_from_the_side_says_something_of_the_other_side() -> None:
    made = match(average(), painted(50), 50.0, steps=30)
    for yaw, share in ((50, 0.2), (-50, 0.6)):
        assert error(picture(made, yaw), painted(yaw)) < share * error(picture(average(), yaw), painted(yaw))


def test_before_another_background_only_the_avatar_is_matched() -> None:
    camera = Camera.orbit(0.0, 5.0, SIZE)
    opacity = average().render(camera, outputs=("opacity",)).opacity
    assert opacity is not None
    on_blue = painted() - (1 - opacity) * torch.tensor([0.8, 0.8, 0.0]).view(3, 1, 1)
    made = match(average(), on_blue.clamp(0, 1), steps=20)
    around = (torch.nn.functional.max_pool2d(opacity[None], 9, 1, 4)[0] < 0.02).expand(3, -1, -1)
    assert around.sum() > 9000 and float((1 - picture(made)[around]).mean()) < 2e-3
    inside = (opacity > 0.99).expand(3, -1, -1)
    assert error(picture(made)[inside], painted()[inside]) < 0.3 * error(picture(average())[inside], painted()[inside])


@pytest.mark.parametrize("yaw", [0.0, -37.5, 60.0])
def test_the_camera_is_found(yaw: float) -> None:
    found, apart = locate(average(), picture(average(), yaw, 96))
    assert found == pytest.approx(yaw, abs=2.5) and apart < 2e-3
    assert locate(average(), torch.rand(3, 96, 96))[1] > 0.1


def test_the_seed_decides_and_the_given_avatar_stays() -> None:
    planes = average().planes.clone()
    first, again = (match(average(), painted(), steps=2, seed=5) for _ in range(2))
    assert torch.equal(first.planes, again.planes) and torch.equal(average().planes, planes)
    assert not torch.equal(match(average(), painted(), steps=2, seed=6).planes, first.planes)
    told: list[tuple[int, int]] = []
    half = Avatar(average().planes.half(), average().decoder, metadata={"prompt": "x"}, **average().conventions)
    made = match(half, painted(), steps=2, seed=5, progress=lambda done, total: told.append((done, total)))
    assert made.planes.dtype == torch.float16 and made.metadata["prompt"] == "x" and told == [(1, 2), (2, 2)]
    assert not made.planes.requires_grad and torch.is_grad_enabled()


def test_without_an_avatar_there_is_nothing_to_match() -> None:
    empty = Avatar(torch.full_like(average().planes, -40.0), average().decoder, **average().conventions)
    assert float(empty.density(torch.zeros(1, 3))) < 1e-3
    with pytest.raises(ValueError, match="nothing of it is to be seen"):
        match(empty, torch.rand(3, 64, 64))


def test_depths_are_widened_by_two_pixels() -> None:
    depth = torch.zeros(2, 3, 9, 9)
    depth[0, 1, 4, 4], depth[1, 0, 4, 4] = 3.0, 2.0
    wide = widened(depth)
    assert wide.shape == depth.shape and int((wide > 0).sum()) == 50
    assert float(wide[0, 1, 2, 6]) == 3.0 and float(wide[1, 0].max()) == 2.0 and not wide[0, 0].any()


def test_the_pipeline_matches_what_resembles(tiny_model_dir: Path) -> None:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    pipe.set_progress_bar_config(disable=True)

    def made(portrait: Tensor, match_portrait: bool | None = None) -> Avatar:
        return pipe(image=portrait, match_portrait=match_portrait,
                    generator=torch.Generator().manual_seed(3)).avatars[0]

    strange = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    drawn = made(strange, False)
    assert torch.equal(made(strange).planes, drawn.planes) and "matched" not in drawn.metadata
    assert "matched" in made(strange, True).metadata
    alike = made(picture(drawn, size=64), False)
    portrait = picture(alike, size=64)
    portrait = portrait[[1, 2, 0]] * 0.2 + portrait * 0.8
    near, plain = made(portrait), made(portrait, False)
    assert "matched" in near.metadata and torch.equal(near.metadata["z"], plain.metadata["z"])
    assert not torch.equal(near.planes, plain.planes)
    ends = pipe.interpolate(near, plain, 3)
    torch.testing.assert_close(ends[0].planes, near.planes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ends[-1].planes, plain.planes, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="match_portrait needs an image"):
        pipe("a man", match_portrait=True)
