"""The frozen word tower's z of very many captions, in several processes: writing and splitting words is what costs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rodin_model.avatars.attributes import Attributes, sample_attributes
from rodin_model.avatars.captions import caption
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.train.towers import encode_sorted

#: Avatars that one process encodes at a time.
CHUNK = 64
#: What a worker process keeps between its jobs.
_own: dict[str, Conditioner] = {}


def encode_words(towers: str | Path, avatars: Sequence[Attributes | int], kinds: Sequence[float | None], *,
                 seed: Sequence[int] = (0,), device: str = "cpu", workers: int = 1) -> Tensor:
    """z float16 [N, len(kinds), 512] of a caption of each kind of every avatar, the same for any number of workers.

    Args:
        towers: folder of the frozen towers.
        avatars: what they are, or the seeds that `sample_attributes` draws them from.
        kinds: the share of what can be seen that a caption names (`captions.caption`), None for any.
        seed: with an avatar's position it decides its captions.
        workers: processes, each with towers of its own on `device`.
    """
    jobs = [(first, list(avatars[first:first + CHUNK]), tuple(kinds), tuple(seed))
            for first in range(0, len(avatars), CHUNK)]
    if not jobs:
        return torch.zeros(0, len(kinds), 512, dtype=torch.float16)
    parts = [torch.from_numpy(part) for part in tqdm(_encoded(jobs, str(towers), device, workers), total=len(jobs),
                                                     desc="captions", disable=None)]
    return torch.cat(parts)


def _encoded(jobs: list[tuple], towers: str, device: str, workers: int) -> Iterator[np.ndarray]:
    if workers == 1:
        _begin(towers, device, threads=0)
        yield from map(_encode, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), _begin, (towers, device)) as pool:
        yield from pool.imap(_encode, jobs)


def _begin(towers: str, device: str, threads: int = 1) -> None:
    """Read the towers once a process."""
    if threads:
        torch.set_num_threads(threads)
    _own["conditioner"] = TowerConditioner.from_folder(towers).to(device)


def _encode(job: tuple[int, list[Attributes | int], tuple[float | None, ...], tuple[int, ...]]) -> np.ndarray:
    """z float16 [n, kinds, 512] of one chunk; numpy, since that is what travels between processes."""
    first, avatars, kinds, seed = job
    texts = []
    for number, avatar in enumerate(avatars, first):
        known = sample_attributes(avatar) if isinstance(avatar, int) else avatar
        rng = np.random.default_rng([*seed, number])
        texts += [caption(known, rng, full=kind) for kind in kinds]
    z = encode_sorted(_own["conditioner"], texts)
    return z.unflatten(0, (len(avatars), len(kinds))).half().cpu().numpy()
