"""Captions are true, varied, repeatable, and never one of the hand-written descriptions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import rodin_model
from rodin_model.avatars.attributes import CHOICES, sample_attributes
from rodin_model.avatars.captions import SENSES, caption, caption_with_labels, phrase, tidy, visible_attributes
from rodin_model.avatars.subjects import NOUNS

PHRASINGS = json.loads((Path(rodin_model.__file__).parent / "evaluation" / "phrasings.json").read_text("utf-8"))


def draws(count: int, **options: float) -> list[tuple]:
    rng = np.random.default_rng(5)
    avatars = [sample_attributes(i) for i in range(60)]
    return [(avatars[i % 60], *caption_with_labels(avatars[i % 60], rng, **options)) for i in range(count)]


def test_labels_are_true_and_never_empty() -> None:
    for avatar, text, labels in draws(2000):
        assert text.strip()
        assert labels, text
        for name, accepted in labels.items():
            assert getattr(avatar, name) in accepted, (text, name, accepted)
            assert set(accepted) <= set(CHOICES[name])


def test_every_value_has_words_of_its_own() -> None:
    for name, values in CHOICES.items():
        for value in values:
            if name == "gender":
                assert len(NOUNS[value, ""]) >= 10
                continue
            own = [sense for sense in SENSES[name] if sense.accepts == (value,)]
            assert len(own) == 1
            phrases = own[0].adj + own[0].np + own[0].wear + own[0].state + own[0].tint
            assert len(phrases) >= 6, (name, value)


def test_full_captions_name_all_that_is_visible() -> None:
    for avatar, text, labels in draws(300, full=1.0):
        assert set(labels) == set(visible_attributes(avatar)), text


def test_zero_share_names_one_attribute_or_what_hangs_on_it() -> None:
    sizes = [len(labels) for _, _, labels in draws(300, full=0.0)]
    assert max(sizes) <= 2
    assert np.mean(sizes) < 1.2


def test_what_cannot_be_seen_is_not_named() -> None:
    shaded = sample_attributes(1, glasses="sunglasses", hair_style="bald", facial_hair="none")
    assert not {"eye_color", "eye_shape", "hair_color"} & set(visible_attributes(shaded))
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert not {"eye_color", "eye_shape", "hair_color"} & set(caption_with_labels(shaded, rng)[1])


def test_bald_beards_have_a_colour() -> None:
    avatar = sample_attributes(1, hair_style="bald", facial_hair="full beard", gender="man", age="young",
                               hair_color="red")
    rng = np.random.default_rng(0)
    assert all("hair_color" in caption_with_labels(avatar, rng, full=1.0)[1] for _ in range(50))


def test_the_generator_decides_everything() -> None:
    avatar = sample_attributes(7)
    assert [caption(avatar, np.random.default_rng(i)) for i in range(20)] == [
        caption(avatar, np.random.default_rng(i)) for i in range(20)]
    assert len({caption(avatar, np.random.default_rng(i)) for i in range(200)}) > 190


def test_wide_open_words_accept_several_values() -> None:
    avatar = sample_attributes(1, gender="man", facial_hair="full beard")
    rng = np.random.default_rng(1)
    found = [labels["facial_hair"] for text, labels in (caption_with_labels(avatar, rng, full=0.5) for _ in range(400))
             if re.search(r"\bbearded\b", text) and not re.search(r"(full|heavily|thickly).bearded", text)]
    # a misspelt "heavily bearded" may slip through the search above
    assert np.mean([accepted == ("short beard", "full beard", "goatee") for accepted in found]) > 0.6


@pytest.mark.parametrize(("text", "wanted"), [
    ("a  afro", "an afro"), ("an big hat", "a big hat"), ("a auburn bun", "an auburn bun")])
def test_articles(text: str, wanted: str) -> None:
    assert tidy(text) == wanted


@pytest.mark.parametrize("full", [-0.1, 1.5, float("nan")])
def test_impossible_shares_are_refused(full: float) -> None:
    with pytest.raises(ValueError, match="full is a share"):
        caption(sample_attributes(0), np.random.default_rng(0), full=full)


def test_phrasings_are_well_formed() -> None:
    assert len(PHRASINGS) >= 31
    assert len({entry["text"] for entry in PHRASINGS}) == len(PHRASINGS)
    for entry in PHRASINGS:
        assert set(entry) == {"text", "accepts"}
        assert entry["accepts"]
        for name, accepted in entry["accepts"].items():
            assert accepted
            assert set(accepted) <= set(CHOICES[name])


def test_phrasings_are_in_no_caption_and_hold_words_that_none_uses() -> None:
    vocabulary, triples, texts = set(), set(), set()
    for _, text, _ in draws(6000):
        words = re.findall(r"[a-z0-9']+", text.lower())
        vocabulary.update(words)
        triples.update(zip(words, words[1:], words[2:], strict=False))
        texts.add(" ".join(words))
    strangers, fresh, total = set(), 0, 0
    for entry in PHRASINGS:
        words = re.findall(r"[a-z0-9']+", entry["text"].lower())
        assert " ".join(words) not in texts
        strangers.update(set(words) - vocabulary)
        runs = list(zip(words, words[1:], words[2:], strict=False))
        fresh += sum(run not in triples for run in runs)
        total += len(runs)
    assert len(strangers) >= 40
    assert fresh / total > 0.8


def test_every_value_but_genders_has_plain_words() -> None:
    said = {name: [phrase(name, value) for value in CHOICES[name]] for name in SENSES}
    assert all(len(set(words)) == len(words) for words in said.values())
    assert said["hair_color"][0] == "black hair" and "a smile" in said["expression"]
    assert not any(mark in words for some in said.values() for words in some for mark in "{}|")
    with pytest.raises(ValueError, match="no words for gender 'man'"):
        phrase("gender", "man")
