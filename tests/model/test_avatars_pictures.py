"""Pictures and points of avatars: ranges, directions, agreement with the field, and that every word can be seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES, SHAPE, Attributes, sample_attributes
from rodin_model.avatars.geometry import AvatarField
from rodin_model.avatars.pictures import Picture, render_avatar, render_views, trace
from rodin_model.avatars.points import sample_points
from rodin_model.cameras import Camera

PLAIN = Attributes(gender="person", age="young", skin_tone="fair", face_shape="oval", eye_color="blue",
                   eye_shape="round", nose="average", lips="average", expression="neutral", hair_style="short",
                   hair_color="dark brown", facial_hair="none", glasses="none", hat="none", earrings="none",
                   headphones="none", makeup="none", clothing="t-shirt", clothing_color="blue",
                   shape=(0.0,) * len(SHAPE))
#: Where each word shows in the front view: top, bottom, left, right as fractions of the picture. The head is between
#: 0.14 and 0.63, the eyes near 0.43, the mouth near 0.59, the clothes below 0.66.
REGIONS = {"gender": (0.35, 0.9, 0.1, 0.9), "age": (0.2, 0.62, 0.25, 0.75), "skin_tone": (0.35, 0.6, 0.3, 0.7),
           "face_shape": (0.3, 0.7, 0.25, 0.75), "eye_color": (0.38, 0.49, 0.34, 0.66),
           "eye_shape": (0.37, 0.5, 0.33, 0.67), "nose": (0.44, 0.54, 0.42, 0.58), "lips": (0.5, 0.62, 0.4, 0.6),
           "expression": (0.3, 0.65, 0.3, 0.7), "hair_style": (0.02, 0.8, 0.1, 0.9),
           "hair_color": (0.1, 0.35, 0.28, 0.72),
           "facial_hair": (0.48, 0.7, 0.3, 0.7), "glasses": (0.36, 0.52, 0.28, 0.72), "hat": (0.02, 0.4, 0.15, 0.85),
           "earrings": (0.43, 0.6, 0.22, 0.78), "headphones": (0.05, 0.55, 0.2, 0.8),
           "makeup": (0.35, 0.6, 0.33, 0.67), "clothing": (0.6, 0.92, 0.1, 0.9),
           "clothing_color": (0.68, 0.9, 0.15, 0.85)}
#: Words that must leave the rest of the picture as it was.
LOCAL = ("eye_color", "lips", "makeup", "clothing_color", "glasses")


def front(a: Attributes | AvatarField, size: int = 64, yaw: float = 0.0) -> Picture:
    """A small picture."""
    return render_avatar(a, Camera.orbit(yaw, 5.0, size))


def crop(picture: Tensor, region: tuple[float, float, float, float]) -> Tensor:
    """The part of `picture` [H, W, ...] inside `region`."""
    (height, width), (top, bottom, left, right) = picture.shape[:2], region
    return picture[int(top * height):int(bottom * height) + 1, int(left * width):int(right * width) + 1]


@pytest.mark.parametrize("name", list(CHOICES))
def test_every_word_can_be_seen_where_it_belongs(name: str) -> None:
    pictures = {value: front(PLAIN.replace(**{name: value})).rgb for value in CHOICES[name]}
    for (a, one), (b, two) in itertools.combinations(pictures.items(), 2):
        difference = (one - two).abs().amax(-1)
        here = crop(difference, REGIONS[name])
        assert here.mean() > 0.006 and (here > 0.08).float().mean() > 0.008, f"{name}: {a} and {b} look alike"
        if name in LOCAL:
            assert here.sum() > 0.85 * difference.sum(), f"{name}: {a} or {b} changes other places"


def test_make_up_reaches_lips_and_lids() -> None:
    plain, lipstick, bold = (front(PLAIN.replace(makeup=name)).rgb for name in CHOICES["makeup"])
    lips, lids = (0.56, 0.62, 0.45, 0.55), (0.38, 0.43, 0.36, 0.64)
    assert (crop(plain, lips) - crop(lipstick, lips))[..., 1].max() > 0.15, "red lips"
    assert (crop(lipstick, lips) - crop(bold, lips)).abs().max() > 0.08, "another red"
    assert (crop(plain, lids) - crop(bold, lids)).abs().amax(-1).mean() > 0.05, "eye shadow"


def test_pictures_have_their_ranges() -> None:
    picture = render_avatar(sample_attributes(2), Camera.orbit(20, 5, 48).resized(40, 56), background=0.0)
    assert picture.rgb.shape == (56, 40, 3) and picture.depth.shape == picture.alpha.shape == (56, 40)
    assert picture.alpha.min() == 0 and picture.alpha.max() == 1
    assert ((picture.alpha > 0) & (picture.alpha < 1)).any()
    assert (picture.rgb <= picture.alpha[..., None] + 1e-6).all()
    assert ((picture.depth > 0) == (picture.alpha > 0)).all()
    assert picture.depth[picture.depth > 0].min() > 3.0 and picture.depth.max() < 5.4


def test_background_fills_what_alpha_leaves() -> None:
    field, camera = AvatarField(PLAIN), Camera.orbit(0, 5, 32)
    black, gray = render_avatar(field, camera, background=0.0), render_avatar(field, camera, background=0.5)
    torch.testing.assert_close(gray.rgb, black.rgb + 0.5 * (1 - black.alpha)[..., None])
    with pytest.raises(ValueError, match="background must lie in"):
        render_avatar(field, camera, background=2.0)


def test_views_together_equal_views_alone() -> None:
    field, cameras = AvatarField(sample_attributes(6)), [Camera.orbit(0, 5, 24), Camera.orbit(120, 10, 32)]
    for together, camera in zip(render_views(field, cameras), cameras, strict=True):
        alone = render_avatar(field, camera)
        torch.testing.assert_close(together.rgb, alone.rgb, rtol=0, atol=1e-5)
        torch.testing.assert_close(together.depth, alone.depth, rtol=0, atol=1e-5)


def test_the_front_is_in_front_and_up_is_up() -> None:
    bald = AvatarField(PLAIN.replace(hair_style="bald"))
    picture = front(bald, 96)
    torch.testing.assert_close(picture.alpha, picture.alpha.flip(1), rtol=0, atol=0.51)
    eyes = crop(picture.rgb, REGIONS["eye_color"])
    assert (eyes[..., 2] - eyes[..., 0]).max() > 0.2, "blue eyes show in front"
    back = crop(front(bald, 96, yaw=180).rgb, REGIONS["eye_color"])
    assert (back[..., 2] - back[..., 0]).max() < 0.05, "and not behind"
    shirt = picture.rgb[int(0.87 * 96), 48]
    assert shirt[2] > shirt[0] + 0.2, "the shirt is below"
    # seen from +x, the face looks to the left of the picture: the outline's leftmost point at nose height is far out
    rows = front(bald, 96, yaw=90).alpha[40:55]
    left, right = (rows > 0.5).int().argmax(1), 95 - (rows.flip(1) > 0.5).int().argmax(1)
    assert left.min() < 32 and (48 - left.min()) > (right.max() - 48) - 12


def test_depth_lands_on_the_surface() -> None:
    field, camera = AvatarField(sample_attributes(11)), Camera.orbit(30, 10, 64)
    origins, directions = camera.rays()
    depth, which = trace(field, origins, directions)
    hit = depth > 0
    distance, part = field.nearest(origins[hit] + depth[hit, None] * directions[hit])
    assert distance.abs().quantile(0.99) < 0.004
    assert (part == which[hit]).float().mean() > 0.95


def test_rays_do_not_step_through_the_surface() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(0.8, 4.4, 0.012)
    for seed in (950, 954, 957):
        field = AvatarField(sample_attributes(seed))
        away = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1)
        origins = (torch.rand(300, 3, generator=generator) - 0.5) * 1.4 + 2.5 * away
        depth, _ = trace(field, origins, -away)
        inside = field.distance((origins[:, None] - steps[:, None] * away[:, None]).reshape(-1, 3)).reshape(300, -1) < 0
        hit, first = inside.any(1), steps[inside.int().argmax(1)]
        assert (hit == (depth > 0)).float().mean() > 0.985
        both = hit & (depth > 0)
        assert ((depth - first)[both] < 0.014).float().mean() > 0.99


def test_points_carry_their_distance_and_color() -> None:
    field = AvatarField(sample_attributes(12))
    points, distance, color = sample_points(field, 300, 900, seed=4)
    assert points.shape == color.shape == (1200, 3) and distance.shape == (1200,)
    assert points.abs().max() <= 1 and color.min() >= 0 and color.max() <= 1
    torch.testing.assert_close(distance, field.distance(points))
    assert points[:300].abs().max() > 0.95, "the first points fill the box"
    near = distance[300:]
    assert near.abs().quantile(0.98) < 0.12 and near.abs().median() < 0.02
    assert 0.3 < (near < 0).float().mean() < 0.7
    again = sample_points(field, 300, 900, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(again, (points, distance, color), strict=True))
    assert not torch.equal(sample_points(field, 300, 900, seed=5)[0], points)


def test_points_see_the_colors_that_pictures_see() -> None:
    field = AvatarField(PLAIN.replace(clothing="hoodie", clothing_color="green"))
    points, _, color = sample_points(field, 0, 4000, seed=1)
    cloth = color[(points[:, 1] < -0.65)]
    assert len(cloth) > 100 and ((cloth[:, 1] > cloth[:, 0]) & (cloth[:, 1] > cloth[:, 2])).float().mean() > 0.8


def test_point_counts_may_be_zero_and_not_negative() -> None:
    points, distance, color = sample_points(PLAIN, 5, 0)
    assert points.shape == (5, 3) and distance.shape == (5,) and color.shape == (5, 3)
    with pytest.raises(ValueError, match="must not be negative"):
        sample_points(PLAIN, -1, 0)
