"""The distance field of the avatars: signs, slopes, size, and that every word and number does something."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES, SHAPE, Attributes, sample_attributes
from rodin_model.avatars.geometry import GRID, AvatarField

PLAIN = Attributes(gender="person", age="young", skin_tone="fair", face_shape="oval", eye_color="blue",
                   eye_shape="round", nose="average", lips="average", expression="neutral", hair_style="short",
                   hair_color="dark brown", facial_hair="none", glasses="none", hat="none", earrings="none",
                   headphones="none", makeup="none", clothing="t-shirt", clothing_color="blue",
                   shape=(0.0,) * len(SHAPE))


def random_points(count: int, seed: int = 0) -> Tensor:
    """`count` points in the box [-1, 1]^3."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def with_shape(a: Attributes, **numbers: float) -> Attributes:
    """`a` with some continuous parameters replaced."""
    shape = list(a.shape)
    for name, value in numbers.items():
        shape[SHAPE.index(name)] = value
    return a.replace(shape=tuple(shape))


def shell(bound: float, count: int) -> Tensor:
    """A grid of count^2 points on each face of the cube of half width `bound`."""
    line = torch.linspace(-bound, bound, count)
    u, v = (t.reshape(-1) for t in torch.meshgrid(line, line, indexing="ij"))
    side = torch.full_like(u, bound)
    faces = [torch.stack(order, -1) for s in (side, -side) for order in ((s, u, v), (u, s, v), (u, v, s))]
    return torch.cat(faces)


def test_negative_inside_and_positive_outside() -> None:
    for seed in range(6):
        field = AvatarField(sample_attributes(seed))
        points = [[0.0, 0.2, -0.05], [0.0, -0.7, -0.1], [0.95, 0.95, 0.95], [0.9, -0.9, 0.9]]
        distance = field.distance(torch.tensor(points))
        assert distance[0] < -0.2 and distance[1] < -0.05
        assert (distance[2:] > 0.2).all()


def test_no_avatar_reaches_the_walls_of_the_box() -> None:
    rng = np.random.default_rng(5)
    points = shell(0.935, 22)
    for seed in range(40):
        a = sample_attributes(seed).replace(shape=tuple(float(v) for v in rng.choice([-2.0, 2.0], len(SHAPE))))
        assert AvatarField(a).distance(points).min() > 0, a


@pytest.mark.parametrize("hat, style", [("beanie", "afro"), ("fedora", "curly"), ("cap", "bun"), ("none", "afro"),
                                        ("none", "bun"), ("none", "mohawk"), ("none", "ponytail")])
def test_the_tallest_heads_fit(hat: str, style: str) -> None:
    tall = PLAIN.replace(face_shape="long", hat=hat, hair_style=style, shape=(2.0,) * len(SHAPE))
    assert AvatarField(tall).distance(shell(0.935, 40)).min() > 0


def test_the_slope_of_the_distance_is_safe_to_step_by() -> None:
    slopes, h = [], 1e-3
    for seed in range(16):
        field = AvatarField(sample_attributes(900 + seed))
        points = random_points(4000, seed)
        distance = field.distance(points)
        near = points[(distance > -0.02) & (distance < 0.1)]
        moved = [field.distance(near + h * axis) - field.distance(near - h * axis) for axis in torch.eye(3)]
        slopes.append(torch.stack(moved, -1).norm(dim=-1) / (2 * h))
    slope = torch.cat(slopes)
    assert slope.quantile(0.98) <= 1.1
    assert slope.quantile(0.5) > 0.8


def test_baked_distances_agree_with_the_field() -> None:
    field = AvatarField(sample_attributes(3))
    assert field.grid.shape == (GRID, GRID, GRID)
    points = random_points(20_000) * 0.98
    distance, baked = field.distance(points), field.lookup(points)
    near = distance.abs() < 0.05
    error = (distance - baked).abs()
    assert error[near].mean() < 0.001 and error[near].quantile(0.99) < 0.008
    assert (torch.sign(distance) == torch.sign(baked))[distance.abs() > 0.02].float().mean() > 0.999


def test_normals_are_unit_and_point_outwards() -> None:
    field = AvatarField(sample_attributes(8))
    points = random_points(20_000)
    distance = field.distance(points)
    near = points[(distance > 0.0) & (distance < 0.03)]
    normal = field.normal(near)
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(len(near)))
    closer = field.distance(near - 0.01 * normal) < field.distance(near)
    assert closer.float().mean() > 0.97


def test_colors_lie_in_range_and_answer_for_no_points() -> None:
    field = AvatarField(sample_attributes(1))
    color = field.color(random_points(500))
    assert color.shape == (500, 3) and color.min() >= 0 and color.max() <= 1 and color.isfinite().all()
    none = torch.zeros(0, 3)
    assert field.distance(none).shape == (0,) and field.color(none).shape == (0, 3)


def test_chunks_do_not_change_the_result() -> None:
    field = AvatarField(sample_attributes(4))
    points = random_points(300)
    whole = field.distance(points)
    field._chunk = 64
    torch.testing.assert_close(field.distance(points), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 5, 3)])
def test_points_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"points must have shape \[N, 3\]"):
        AvatarField(PLAIN).distance(torch.zeros(shape))


def wearing(name: str) -> Attributes:
    """An avatar on which the continuous parameter `name` has something to act on."""
    extra = {"beard_length": {"facial_hair": "full beard"}, "hair_phase": {"hair_style": "long wavy"},
             "hair_length": {"hair_style": "bob"}, "accessory_size": {"glasses": "glasses"},
             "accessory_color": {"glasses": "glasses"}, "expression_strength": {"expression": "smiling"}}
    return PLAIN.replace(**extra.get(name, {}))


@pytest.mark.parametrize("name", SHAPE)
def test_every_number_does_something_continuous(name: str) -> None:
    base = wearing(name)
    fields = [AvatarField(with_shape(base, **{name: value})) for value in (0.0, 0.05, 1.5)]
    points = random_points(25_000, 1) * torch.tensor([0.6, 0.95, 0.6])
    distances = [field.distance(points) for field in fields]
    small, large = ((d - distances[0]).abs().max() for d in distances[1:])
    if large == 0:
        near = points[distances[0].abs() < 0.02]
        colors = [field.color(near) for field in fields]
        small, large = ((c - colors[0]).abs().max() for c in colors[1:])
        assert large > 0.005
    else:
        assert large > 0.002
    assert 0 < small < 0.35 * large


def test_shape_numbers_and_words_give_different_fields() -> None:
    points = random_points(2000)
    seen = [AvatarField(sample_attributes(seed)).distance(points) for seed in range(6)]
    for a, b in itertools.combinations(seen, 2):
        assert (a - b).abs().max() > 0.01


def test_every_choice_can_be_built() -> None:
    points = random_points(50)
    for name, values in CHOICES.items():
        for value in values:
            assert AvatarField(PLAIN.replace(**{name: value})).distance(points).isfinite().all()
