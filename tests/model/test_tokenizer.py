"""Hashed letter groups: the same numbers everywhere, neighbours for misspelt words, fixed bounds."""

from __future__ import annotations

import pytest
import torch

from rodin_model.tokenizer import WordTokenizer, split_words


def groups(text: str) -> set[int]:
    return set(WordTokenizer(65536)([text]).flatten().tolist()) - {0}


def test_numbers_are_fixed_for_ever() -> None:
    assert WordTokenizer(5120)(["hat"])[0, 0, :7].tolist() == [2298, 3593, 680, 764, 3908, 2136, 0]


@pytest.mark.parametrize(("text", "words"), [
    ("A Dark-skinned man", ["a", "dark", "skinned", "man"]), ("café, naïve", ["cafe", ",", "naive"]),
    ("five o’clock", ["five", "o'clock"]), ("man with hair: 3d", ["man", "with", "hair", ":", "3d"]), ("🙂 👍", []),
    ("человек", ["человек"])])
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_misspelt_words_share_groups_and_strangers_do_not() -> None:
    def likeness(a: str, b: str) -> float:
        return len(groups(a) & groups(b)) / len(groups(a) | groups(b))
    assert likeness("moustache", "moustahce") > 0.3
    assert likeness("bespectacled", "bespectacld") > 0.4
    assert likeness("moustache", "glasses") < 0.05


def test_case_does_not_count_and_order_does() -> None:
    tokenizer = WordTokenizer()
    assert torch.equal(tokenizer(["BLACK Hair"]), tokenizer(["black hair"]))
    assert not torch.equal(tokenizer(["black hair"]), tokenizer(["hair black"]))


def test_shapes_padding_and_bounds() -> None:
    tokenizer = WordTokenizer(100, max_words=5, max_groups=6)
    ids = tokenizer(["one", "a b c d e f g h", "pneumonoultramicroscopicsilicovolcanoconiosis " * 3])
    assert ids.shape == (3, 5, 6)
    assert ids.dtype == torch.int64
    assert int(ids.max()) < 100
    assert (ids[0, 1:] == 0).all()
    assert (ids[1] != 0).any(-1).all()
    assert (ids[2, :3] > 0).all()
    assert tokenizer(["", "..."]).shape == (2, 3, 6)
    assert tokenizer([""]).shape == (1, 1, 6)


def test_a_text_reads_the_same_in_any_batch() -> None:
    tokenizer = WordTokenizer()
    alone, beside = tokenizer(["red hair"]), tokenizer(["red hair", "a much longer text with many words"])
    assert torch.equal(alone[0], beside[0, :2])
    assert (beside[0, 2:] == 0).all()


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="buckets must be at least 2; got 1"):
        WordTokenizer(1)
