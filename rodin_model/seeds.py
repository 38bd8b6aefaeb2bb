"""Where randomness comes from: one number for each avatar, one generator for each of its stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def noise_seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """One 63-bit number for every avatar; a generator of its own gives an avatar the same number in any batch."""
    if generator is None or isinstance(generator, torch.Generator):
        generators = [generator] * count
    else:
        generators = list(generator)
        if len(generators) != count:
            raise ValueError(f"generator must be one, or one for each of {count} avatars; got {len(generators)}")
    return [int(torch.randint(2**63 - 1, (1,), generator=g, device=g.device if g else "cpu")) for g in generators]


def candidate_seed(seed: int, index: int) -> int:
    """The noise of one of several candidates for an avatar: its own seed for the first, numbers drawn from it after."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/candidate {index}".encode()).digest()[:8], "little") >> 1


def stage_generator(seed: int, stage: str) -> torch.Generator:
    """The generator on the CPU for one stage of one avatar: stages draw independently, and alike on every device."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
