"""Edits: words point to a part of the box, only that part changes, and noise is found again from planes alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rodin_model import editing
from rodin_model.clearing import faceless
from rodin_model.pipeline import RodinPipeline
from rodin_model.regions import EDGE, REGIONS, box, face, named_attributes, region
from rodin_model.retouch import opaque, points_of
from rodin_model.triplane import Avatar
from tests.model.test_clearing import average, drawn, fine, picture
from tests.model.test_retouch import recolored


@pytest.fixture(scope="module")
def avatar(pipe: RodinPipeline) -> Avatar:
    return pipe("a man", generator=torch.Generator().manual_seed(5)).avatars[0]


@pytest.mark.parametrize(("text", "names"), [
    ("blonde hair", "hair_color"), ("Short hair.", "hair_style"), ("smiling face", "expression"),
    ("sunglasses", "glasses"), ("a red dress", "clothing clothing_color"),
    ("long wavy pink hair", "hair_color hair_style"),
    ("a black leather jacket", "clothing clothing_color"), ("black skin", "skin_tone"), ("blue eyes", "eye_color"),
    ("clean shaven", "facial_hair"), ("something quite different", ""), ("", "")])
def test_words_name_attributes(text: str, names: str) -> None:
    assert named_attributes(text) == frozenset(names.split())


def test_regions_are_where_the_parts_of_a_head_are() -> None:
    places = {"mouth": (0.0, -0.11, 0.4), "eye": (-0.17, 0.13, 0.35), "hair": (0.0, 0.75, 0.0),
              "neck": (0.3, -0.7, 0.0)}
    points = torch.tensor(list(places.values()))
    found = {name: dict(zip(places, region([name], points).tolist(), strict=True)) for name in REGIONS}
    assert found["expression"]["mouth"] == found["expression"]["eye"] == 1 and found["expression"]["hair"] == 0
    assert found["hair_color"] == {"mouth": 0, "eye": 0, "hair": 1, "neck": 0}
    assert found["clothing"]["neck"] == 1 and found["clothing"]["mouth"] == 0
    assert found["glasses"]["eye"] == 1 and found["glasses"]["mouth"] == 0
    both = region(["clothing", "expression"], points)
    assert both.tolist() == [1, 1, 0, 1]


def test_unknown_words_and_whole_heads_may_change_everything() -> None:
    points = torch.rand(9, 3) * 2 - 1
    assert (region([], points) == 1).all() and (region(["age", "lips"], points) == 1).all()
    assert not (region(["lips"], points) == 1).all()


def test_edges_are_soft() -> None:
    inside = box((-2.0, 0.5), (-1.0, 1.0), (-1.0, 1.0))
    across = inside(torch.tensor([[x, 0.0, 0.0] for x in (0.5 - EDGE, -0.5, 0.5 + EDGE)]))
    assert across.tolist() == [1.0, 0.5, 0.0]
    assert float(face(torch.tensor([0.0, 0.0, 0.45]))) == 1 and float(face(torch.tensor([0.0, 0.0, -0.4]))) == 0


def differ(a: Avatar, b: Avatar, points: torch.Tensor) -> float:
    return float((a.color(points) - b.color(points)).square().mean())


def test_a_composition_is_one_avatar_here_and_the_other_there() -> None:
    avatar, other = average(), recolored()
    mixed = editing.composed(avatar, other, ["hair_color"])
    points, colored = points_of([avatar, other], torch.Generator().manual_seed(2))
    points = points[(colored > 0) & (avatar.density(points) > 5) & (other.density(points) > 5)]
    share = region(["hair_color"], points)
    for part, wanted, not_wanted in ((points[share == 0], avatar, other), (points[share == 1], other, avatar)):
        assert len(part) > 200 and differ(mixed, wanted, part) < 0.15 * differ(mixed, not_wanted, part)
    assert editing.composed(avatar, other, []) is other


def test_what_an_avatar_wears_stays_in_a_composition() -> None:
    crown, temple, cup, band, chin = ((0.0, 0.6, 0.2), (0.34, 0.28, 0.2), (0.48, 0.13, -0.04), (0.0, 0.7, -0.04),
                                      (0.0, -0.2, 0.4))
    points = torch.tensor([crown, temple, cup, band, chin])
    free = region(["hair_color"], points)
    assert free.tolist() == [1, 1, 1, 1, 0]
    assert region(["hair_color"], points, {"hat": "beanie"}).tolist() == [0, 1, 1, 0, 0]
    assert region(["hair_style"], points, {"headphones": "headphones", "hat": "none"}).tolist() == [1, 1, 0, 0, 0]
    assert region(["hair_style", "hat"], points, {"hat": "beanie"}).tolist() == [1, 1, 1, 1, 0]
    assert region(["clothing"], points, {"hat": "beanie"}).tolist() == [0, 0, 0, 0, 0]
    bearded = region(["hair_color"], points, {"facial_hair": "full beard"})
    assert bearded.tolist() == [1, 1, 1, 1, 1]
    assert region(["hair_color"], points, {"facial_hair": "none"}).tolist() == free.tolist()


def test_a_smile_is_in_the_mouth_and_anger_in_the_brows_too() -> None:
    brow, mouth, tip = torch.tensor([[0.17, 0.28, 0.35], [0.0, -0.11, 0.4], [0.0, 0.01, 0.5]])
    smile = {"shown": {"expression": "neutral"}, "asked": {"expression": "smiling"}}
    anger = {"shown": {"expression": "angry"}, "asked": {"expression": "smiling"}}
    points = torch.stack([brow, mouth, tip])
    assert region(["expression"], points, **smile).tolist() == [0, 1, 0]
    assert region(["expression"], points, **anger).tolist() == region(["expression"], points).tolist() == [1, 1, 0]
    # lenses end above the tip of the nose
    assert region(["glasses", "lips"], points).tolist()[2] == 0 and region(["nose"], points).tolist()[2] == 1


def test_an_edit_goes_as_far_as_it_takes(pipe: RodinPipeline, avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    real = pipe._changed

    def changed(*args: Any) -> Avatar:
        after = real(*args)
        tried.append(after.metadata["edit_strength"])
        return after

    monkeypatch.setattr(pipe, "_changed", changed)
    monkeypatch.setattr(editing, "COMPOSING", 1)
    monkeypatch.setattr(editing.Goal, "reached", lambda self, after, z: len(tried) == 3)
    monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, edit_strength=2.0))
    edited = pipe.edit(avatar, "blonde hair")
    assert tried == [1.5, 2.0, 2.5] and edited.metadata["edit_strength"] == 2.5
    tried.clear()
    assert pipe.edit(avatar, "something quite different").metadata["edit_strength"] == 2.0 and tried == [2.0]
    tried.clear()
    assert pipe.edit(avatar, "blonde hair", strength=0.3).metadata["edit_strength"] == 0.3 and tried == [0.3]


def test_a_goal_is_what_the_words_ask_for_or_something_new_that_z_says(
        pipe: RodinPipeline, avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(pipe.conditioner), "read_attributes", lambda self, z: [{"hair_style": said.pop(0)}])
    z = avatar.metadata["z"]

    def reached(*styles: str) -> bool:
        """Of styles: shown before, asked for; seen after, said by z."""
        said[:] = styles
        goal = editing.Goal.of(pipe.conditioner, avatar, ["hair_style"], z)
        assert (goal.shown, goal.asked) == tuple({"hair_style": style} for style in styles[:2])
        return goal.reached(avatar, z)

    assert reached("long", "short", "short", "bun") and reached("long", "short", "side part", "side part")
    assert not reached("long", "short", "long", "long") and not reached("long", "short", "bun", "side part")
    nothing = editing.Goal.of(pipe.conditioner, avatar, [], z)
    assert nothing.reached(avatar, z) and nothing.strengths(0.8) == [0.8]
    other = editing.Goal.of(object(), avatar, ["hair_style"], z)  # type: ignore[arg-type]
    assert other.strengths(1.0) == [1.0] and other.read(z) == {}


def test_what_is_the_same_stays_the_same_to_the_bit() -> None:
    assert torch.equal(editing.composed(average(), average(), ["hair_color"]).planes, average().planes)


def test_no_face_is_taken_over_from_the_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given, hidden = drawn(), faceless(drawn())
    monkeypatch.setattr(editing, "COMPOSING", 40)
    shines, open_, clear = (fine(picture(avatar, 180.0) - picture(hidden, 180.0)) for avatar in (
        given, *(editing.composed(hidden, given, ["hair_color"], clear=clear) for clear in (False, True))))
    assert (open_ * shines).sum() > 0.6 * shines.square().sum() > 1.5 * (clear * shines).sum()


def test_noise_is_found_again_from_planes(pipe: RodinPipeline, avatar: Avatar) -> None:
    z, base = avatar.metadata["z"][None], pipe.base
    noise = editing.noise_of(base, avatar, z[0], 3)
    clean = base.denoise(z, [], steps=50, noise=noise)
    found = editing.invert(base, clean, z, 50)
    again = base.denoise(z, [], steps=50, noise=found)
    assert (again - clean).square().mean() < 0.02 * clean.square().mean()
    coarse = editing.invert(base, clean, z, 4)
    assert (coarse - noise).square().mean() > (found - noise).square().mean()


def test_emphasis_multiplies_what_the_words_change(pipe: RodinPipeline, avatar: Avatar) -> None:
    base, z = pipe.base, avatar.metadata["z"][None]
    noise, moved = editing.noise_of(base, avatar, z[0], 3), torch.nn.functional.normalize(z + 0.3 * torch.randn(
        z.shape, generator=torch.Generator().manual_seed(4)), dim=-1)
    asked = {"steps": 3, "guidance_scale": 2.0, "guidance_stop": 0.5}
    none, own, full, twice = (editing.changed(base, noise, z, moved, emphasis=e, **asked) for e in (0, 0, 1, 2))
    plain = base.sample(z, generators=[], noise=noise, **asked)
    guided = base.sample(moved, generators=[], noise=noise, **asked)
    torch.testing.assert_close(none, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(full, guided, rtol=1e-4, atol=1e-4)
    assert (twice - own).norm() > 1.3 * (full - own).norm()


def test_an_edit_of_a_part_leaves_the_rest(pipe: RodinPipeline, avatar: Avatar) -> None:
    edited, whole = pipe.edit(avatar, "sunglasses", strength=1.0), pipe.edit(avatar, "elderly", strength=1.0)
    points, colored = points_of([avatar], torch.Generator().manual_seed(0))
    share = region(["glasses"], points)
    moved = (edited.color(points) - avatar.color(points)).square().mean(-1) * opaque(avatar.density(points)) * colored
    assert moved[share == 1].mean() > 8 * moved[share == 0].mean()
    assert edited.metadata["edits"] == ["sunglasses"] and whole.metadata["edits"] == ["elderly"]


def test_any_avatar_can_be_edited(pipe: RodinPipeline, avatar: Avatar, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """One from a file knows neither seed nor z; its decoder comes from the file, too."""
    monkeypatch.setattr(editing, "COMPOSING", 2)
    Avatar(avatar.planes, avatar.decoder).save(tmp_path / "stranger.safetensors")
    stranger = Avatar.load(tmp_path / "stranger.safetensors")
    edited = pipe.edit(stranger, "sunglasses", strength=1.0)
    assert "noise_seed" not in edited.metadata and edited.metadata["edits"] == ["sunglasses"]
    assert not torch.equal(edited.planes, avatar.planes)
    again = pipe.edit(edited, "blonde hair", strength=1.0)
    assert again.metadata["edits"] == ["sunglasses", "blonde hair"]
    with pytest.raises(ValueError, match="are not of the kind that this model makes"):
        pipe.edit(Avatar(torch.zeros(3, 4, 4, 4), avatar.decoder), "sunglasses")


def test_another_decoder_cannot_be_composed(avatar: Avatar) -> None:
    other = avatar.to("cpu")
    with torch.no_grad():
        next(iter(other.decoder.parameters())).add_(1)
    assert editing.comparable(avatar, avatar.to("cpu"))
    assert not editing.comparable(avatar, other)
    assert not editing.comparable(avatar, dataclasses.replace(avatar, padding_mode="border"))


def test_an_edit_may_name_what_it_starts_from(pipe: RodinPipeline, avatar: Avatar) -> None:
    edited = pipe.edit(avatar, "blonde hair", source="black hair", strength=1.0)
    told, source = (pipe.conditioner.encode_text([text])[0] for text in ("blonde hair", "black hair"))
    z = avatar.metadata["z"]
    moved = editing.disentangled(pipe.conditioner, told - source, ["hair_color"])
    torch.testing.assert_close(edited.metadata["z"], torch.nn.functional.normalize(z + moved, dim=0) * z.norm())


def test_what_an_edit_replaces_is_read_from_the_avatar(pipe: RodinPipeline) -> None:
    z = pipe.conditioner.encode_text(["a woman with long straight red hair and sunglasses"])[0]
    sources, target = editing.spoken(pipe.conditioner, z, "blonde hair")
    read = pipe.conditioner.read_attributes(z[None])[0]
    assert sources == ["a person", f"a person, {read['hair_color']} hair"] and target == "a person, blonde hair"
    assert editing.spoken(pipe.conditioner, z, "a blue hoodie")[0][1].count(",") == 2  # the garment and its colour
    assert editing.spoken(pipe.conditioner, z, "like my uncle") == (["a person"], "a person, like my uncle")

    class Deaf:  # a conditioner that cannot read z back, as a real CLIP
        encode_text = encode_image = None

    assert editing.spoken(Deaf(), z, "blonde hair") == (["a person"], "a person, blonde hair")


def test_a_direction_says_nothing_of_other_attributes() -> None:
    conditioner = RodinPipeline.from_pretrained().conditioner
    direction = conditioner.encode_text(["a person, short hair"])[0] - conditioner.encode_text(["a person"])[0]
    kept = editing.disentangled(conditioner, direction, ["hair_style"])

    def said(moved: torch.Tensor) -> dict[str, float]:
        """How far the heads' logits of each attribute move apart; what all of one have in common says nothing."""
        return {name: float((weight @ moved).norm()) for name, weight in conditioner.towers.heads.rows().items()}

    before, after = said(direction), said(kept)
    assert after["hair_style"] > 0.8 * before["hair_style"]
    others = [name for name in before if name != "hair_style"]
    assert sum(after[name] for name in others) < 0.2 * sum(before[name] for name in others)
    assert all(after[name] < before[name] for name in others)
    # the definition, solved another way: all rows stacked below the identity
    rows = conditioner.towers.heads.rows()
    stacked = torch.cat([rows[name] for name in others]).double()
    ridge = editing.RIDGE * stacked.square().sum(1).mean()
    system = torch.cat([torch.eye(512).double(), stacked / ridge.sqrt()])
    goal = torch.cat([direction.double(), torch.zeros(len(stacked)).double()])
    solved = torch.linalg.lstsq(system, goal[:, None]).solution[:, 0]
    torch.testing.assert_close(kept.double(), solved, rtol=0, atol=1e-6)


def test_nothing_is_taken_from_a_direction_that_cannot_be_read(pipe: RodinPipeline) -> None:
    direction = torch.randn(512, generator=torch.Generator().manual_seed(0))
    assert editing.disentangled(pipe.conditioner, direction, []) is direction

    class Deaf:
        encode_text = encode_image = None

    assert editing.disentangled(Deaf(), direction, ["hat"]) is direction  # type: ignore[arg-type]


def test_noise_between_two_seeds_is_as_normal_as_either(pipe: RodinPipeline) -> None:
    ends = [editing.noise_between(pipe.base, "base", (1, 2), share) for share in (0.0, 0.5, 1.0)]
    assert not torch.equal(ends[0], ends[2])
    assert float(ends[1].std()) == pytest.approx(float(ends[0].std()), rel=0.05)
    assert torch.equal(editing.noise_between(pipe.base, "base", (1, 1), 0.5), ends[0])
