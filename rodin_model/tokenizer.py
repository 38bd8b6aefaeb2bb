"""Words as hashed letter groups: no vocabulary file, and a misspelt or unknown word falls near the words it resembles.

A word is the set of its 3-, 4- and 5-letter groups, its ends marked ("<hat>" gives "<ha", "hat", "at>", "<hat", "hat>"
and "<hat>"), as in fastText (Bojanowski et al. 2017, section 3.2); a group becomes a number by CRC-32, which is the
same on every machine.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_WORDS = re.compile(r"[a-z0-9']+|[^\W_a-z0-9]+|[,.;:!?/|+=]")


def split_words(text: str) -> list[str]:
    """Lower-case words and the punctuation that separates phrases; accents are dropped, hyphens part words."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return _WORDS.findall(plain)


class WordTokenizer:
    """Texts to an integer tensor [B, words, groups]; 0 pads, all other numbers are 1 .. `buckets` - 1.

    `max_words` cuts longer texts, `max_groups` longer words. Raises ValueError for sizes below 2.
    """

    def __init__(self, buckets: int = 5120, max_words: int = 96, max_groups: int = 28) -> None:
        for name, size in (("buckets", buckets), ("max_words", max_words), ("max_groups", max_groups)):
            if size < 2:
                raise ValueError(f"{name} must be at least 2; got {size}")
        self.buckets, self.max_words, self.max_groups = buckets, max_words, max_groups
        self._groups = lru_cache(maxsize=20_000)(self._hash_word)

    def _hash_word(self, word: str) -> tuple[int, ...]:
        marked = f"<{word[:64]}>"
        groups = [marked[i:i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)] or [marked]
        if len(groups) > self.max_groups:  # long words keep groups from their whole length
            groups = [groups[i * len(groups) // self.max_groups] for i in range(self.max_groups)]
        return tuple(1 + zlib.crc32(group.encode()) % (self.buckets - 1) for group in groups)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [B, L, max_groups], L the most words in a text of this batch, at least 1."""
        words = [[self._groups(word) for word in split_words(text)[:self.max_words]] for text in texts]
        length = max([1, *map(len, words)])
        ids = torch.zeros(len(texts), length, self.max_groups, dtype=torch.int64)
        rows = ids.numpy()
        for b, row in enumerate(words):
            for w, groups in enumerate(row):
                rows[b, w, :len(groups)] = groups
        return ids
