"""Of several drawings the one that looks most as asked is kept, row by row, and what one misses is said louder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES
from rodin_model.conditioning import TowerConditioner
from rodin_model.looking import drawings, drawn_again, likeness, nearest
from rodin_model.pipeline import RodinPipeline
from rodin_model.regions import named_attributes
from rodin_model.seeds import candidate_seed, stage_generator
from rodin_model.triplane import Avatar

WORDS = ["a bearded man", "a woman with red hair", "someone in a hat"]

pytestmark = pytest.mark.usefixtures("hasty")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def looked_at(planes: Tensor) -> Tensor:
    """A look that sees the first two numbers of the planes."""
    return planes.flatten(1)[:, :2]


def test_every_row_keeps_its_own() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    tried = [torch.randn(3, 3, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for planes, row in zip(tried, ([0.9, 0.0], [0.0, 0.5]), strict=True):
        planes.flatten(1)[:, :2] = torch.tensor(row)
    tried[0].flatten(1)[2, :2] = torch.tensor([-0.2, 9.0])
    planes, best = nearest(tried, looked_at, lambda seen: (seen * z).sum(-1))
    assert best == [0, 1, 0]
    assert torch.equal(planes, torch.stack([tried[0][0], tried[1][1], tried[0][2]]))


def test_one_is_not_looked_at() -> None:
    planes = torch.ones(2, 3, 1, 2, 2)
    kept, best = nearest([planes], lambda _: pytest.fail("looked"), lambda _: pytest.fail("compared"))
    assert kept is planes and best == [0, 0]


def test_likeness_is_of_what_is_named(pipe: RodinPipeline) -> None:
    """Row by row, by a count of its own: the logarithm of how likely each value is that z says."""
    z, seen = (F.normalize(torch.randn(3, 512, generator=torch.Generator().manual_seed(i)), dim=1) for i in range(2))
    names = [frozenset({"hat", "glasses"}), frozenset({"age"}), frozenset()]
    assert isinstance(pipe.conditioner, TowerConditioner)
    heads, found = pipe.conditioner.towers.heads, likeness(pipe.conditioner, z, names, seen)
    for row, named in enumerate(names):
        said, total = pipe.conditioner.read_attributes(z[row:row + 1])[0], 0.0
        for name in named or CHOICES:
            shares = heads(seen[row:row + 1])[0][name].double().softmax(-1)[0]
            total += math.log(shares[CHOICES[name].index(said[name])])
        assert float(found[row]) == pytest.approx(total, rel=1e-5)
    assert bool((likeness(pipe.conditioner, z, names, z) > found).all())


def test_likeness_that_cannot_be_read_is_the_cosine() -> None:
    class Blind:
        def encode_text(self, texts: Sequence[str]) -> Tensor:
            return torch.zeros(len(texts), 512)

        def encode_image(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 512)

    z, seen = 2 * F.normalize(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=1), torch.tensor([[5.0, 0.0], [-3.0, -4.0]])
    found = likeness(Blind(), z, [frozenset({"hat"}), ()], seen)
    torch.testing.assert_close(found, torch.tensor([0.2 ** 0.5, -1.0]))


@pytest.mark.parametrize(("feedback", "looks"), [((0.0,), 0), ((0.5,), 1), ((0.0, 0.5), 3), ((0.4, 0.8, 1.2), 4)])
def test_what_is_missed_is_said_louder(feedback: tuple[float, ...], looks: int) -> None:
    """A drawing turned by 20 degrees, in the second row one that takes what is said beside z threefold."""
    z = 2 * F.normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0]]), dim=1)
    along = z[:, :, None] * z[:, None] / 4
    answer = along + torch.tensor([1.0, 3.0])[:, None, None] * (torch.eye(2) - along)
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
    turn = torch.tensor([[cos, -sin], [sin, cos]]) @ answer
    said: list[Tensor] = []
    seen = 0

    def draw(told: Tensor) -> Tensor:
        said.append(told)
        return (turn @ told[..., None])[..., 0].view(-1, 1, 1, 1, 2).expand(-1, 3, 1, 1, 2)

    def look(planes: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return 2 * F.normalize(looked_at(planes), dim=1)

    planes, used = drawn_again(draw, z, look, lambda seen: F.cosine_similarity(seen, z), feedback)
    assert seen == looks and len(said) == drawings(feedback)
    assert torch.equal(said[0], z)
    missed = z - (turn @ z[..., None])[..., 0]
    tried = [F.normalize(z + f * missed, dim=1) * 2 for f in feedback]
    for told, expected in zip(said[1:], [t for t, f in zip(tried, feedback, strict=True) if f], strict=True):
        torch.testing.assert_close(told, expected)
    for row in range(2):
        likeness = [float(F.cosine_similarity(turn[row] @ told[row], z[row], dim=0)) for told in tried]
        assert used[row] == feedback[likeness.index(max(likeness))]
        expected = (turn[row] @ tried[feedback.index(used[row])][row]).expand(3, 1, 1, 2)
        torch.testing.assert_close(planes[row], expected)
    if len(feedback) == 3:
        assert used == [1.2, 0.4]


def shows(pipe: RodinPipeline, avatar: Avatar, z: Tensor, names: Iterable[str]) -> float:
    """How likely an avatar's front picture shows what z [512] says of the attributes `names`."""
    front = pipe.conditioner.encode_image(avatar.turntable(1, 128).permute(0, 3, 1, 2))
    assert isinstance(pipe.conditioner, TowerConditioner)
    logits = [pipe.conditioner.towers.heads(latent)[0] for latent in (z[None], front)]
    return sum(float(logits[1][name].log_softmax(-1)[0, logits[0][name].argmax()]) for name in names)


@pytest.mark.parametrize(("batch", "draws"), [(8, 1), (2, 2), (1, 3)])
def test_candidates_are_drawn_together_and_each_from_its_own_noise(pipe: RodinPipeline, batch: int, draws: int,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pipe(WORDS[1], generator=seeded(6), candidates=3).avatars[0]
    monkeypatch.setattr("rodin_model.pipeline.BATCH", batch)
    seen: list[tuple[int, str]] = []
    found = pipe(WORDS[1], generator=seeded(6), candidates=3,
                 callback_on_step_end=lambda _, step, stage, kw: seen.append((step, stage))).avatars[0]
    assert [step for step, stage in seen if stage == "base"] == draws * [1, 2, 3]
    assert found.metadata["noise_seed"] == expected.metadata["noise_seed"]
    torch.testing.assert_close(found.planes, expected.planes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("text", "names"), [(WORDS[1], ["hair_color"]), ("whoever", CHOICES)])
def test_the_candidate_that_shows_most_of_what_words_name_is_kept(pipe: RodinPipeline, text: str,
                                                                  names: Iterable[str]) -> None:
    chosen = pipe(text, generator=seeded(6), candidates=3).avatars[0]
    first = pipe(text, generator=seeded(6)).avatars[0]
    z, named, whole = first.metadata["z"], [], []
    for index in range(3):
        seed = candidate_seed(first.metadata["noise_seed"], index)
        avatar = pipe._avatar(pipe.base.sample(z[None], generators=[stage_generator(seed, "base")], steps=3)[0], {})
        named.append((shows(pipe, avatar, z, names), seed))
        whole.append((shows(pipe, avatar, z, CHOICES), seed))
    assert len({seed for _, seed in named}) == 3
    assert chosen.metadata["noise_seed"] == max(named)[1]
    assert (max(named)[1] == max(whole)[1]) == (names is CHOICES)
    # the chosen noise is the avatar's own from here on: an edit that changes nothing gives the same planes
    torch.testing.assert_close(pipe.edit(chosen, "a hat", strength=0.0).planes, chosen.planes)
    with pytest.raises(ValueError, match="candidates must be a whole number from 1 to 64; got 0"):
        pipe(WORDS[1], candidates=0)


def test_what_a_look_misses_is_said_again(pipe: RodinPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pipe(WORDS[1], generator=seeded(3)).avatars[0]
    z, seed = plain.metadata["z"], plain.metadata["noise_seed"]
    seen = pipe.conditioner.encode_image(plain.turntable(1, 128).permute(0, 3, 1, 2))[0]
    monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, feedback=(0.5,)))
    steps: list[str] = []
    looked = pipe(WORDS[1], generator=seeded(3), callback_on_step_end=lambda _, __, stage, ___: steps.append(stage))
    told = torch.nn.functional.normalize(z + 0.5 * (z - seen), dim=0)
    coarse = pipe.base.sample(z[None], generators=[stage_generator(seed, "base")], steps=3)
    wanted = pipe.upsampler.sample(coarse, told[None], generators=[stage_generator(seed, "upsampler")], steps=2)[0]
    again = looked.avatars[0]
    torch.testing.assert_close(again.planes, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(again.planes, plain.planes, atol=1e-3)
    assert torch.equal(again.metadata["z"], z) and steps.count("upsampler") == 4  # two steps, twice
    ends = pipe.interpolate(again, pipe(WORDS[0], generator=seeded(4)).avatars[0], 2)
    torch.testing.assert_close(ends[0].planes, again.planes, rtol=1e-4, atol=1e-4)
    for wrong in ((-1.0,), ()):
        with pytest.raises(ValueError, match="feedback must be 1 to 64 numbers between 0 and 4; got"):
            dataclasses.replace(pipe.index, feedback=wrong)


def test_the_feedback_that_looks_most_as_asked_is_kept(pipe: RodinPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*feedback: float, row: int) -> Avatar:
        monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, feedback=feedback))
        return pipe(WORDS[row], generator=seeded(row)).avatars[0]

    choices, kept = (3.0, 0.0, 0.5), []
    for row in range(len(WORDS)):
        chosen = made(*choices, row=row)
        names = named_attributes(WORDS[row])
        best = max((made(f, row=row) for f in choices), key=lambda a: shows(pipe, a, a.metadata["z"], names))
        assert chosen.metadata["feedback"] == best.metadata["feedback"]
        assert torch.equal(chosen.planes, best.planes)
        kept.append(chosen.metadata["feedback"])
    assert set(kept) != {3.0}
    monkeypatch.setattr(pipe, "batch_size", len(WORDS))
    made(*choices, row=0)
    together = pipe(WORDS, generator=seeded(*range(len(WORDS)))).avatars
    assert [avatar.metadata["feedback"] for avatar in together] == kept


def test_an_avatar_keeps_its_feedback(pipe: RodinPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, feedback=(3.0,)))
    a = pipe(WORDS[0], generator=seeded(0)).avatars[0]
    monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, feedback=(1.0,)))
    b = pipe(WORDS[1], generator=seeded(1)).avatars[0]
    monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, feedback=(0.0, 2.0)))
    steps: list[str] = []
    edited = pipe.edit(a, "something quite different", strength=0.5,
                       callback_on_step_end=lambda _, __, stage, ___: steps.append(stage))
    assert edited.metadata["feedback"] == 3.0 and steps.count("upsampler") == 4  # two steps, twice
    assert not torch.equal(edited.planes, a.planes)
    assert [avatar.metadata["feedback"] for avatar in pipe.interpolate(a, b, 3)] == [3.0, 2.0, 1.0]
    stranger = dataclasses.replace(a, metadata={k: v for k, v in a.metadata.items() if k != "feedback"})
    assert pipe.edit(stranger, "something quite different", strength=0.5).metadata["feedback"] in (0.0, 2.0)
    assert [avatar.metadata["feedback"] for avatar in pipe.interpolate(stranger, b, 2)] == [2.0, 1.0]
    for wrong in ("much", True, -1, float("nan")):
        with pytest.raises(ValueError, match="the avatar's feedback must be a number from 0 to 4; got"):
            pipe.edit(dataclasses.replace(a, metadata={**a.metadata, "feedback": wrong}), "blonde hair")
