"""Looking at what was drawn: of several avatars the one that shows what was asked for, and what one misses, said again.

`z` [B, 512] is what was asked for, and `look` says what the conditioner sees in the front pictures of planes
[B, 3, C, R, R]: z again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.triplane import Avatar

Look = Callable[[Tensor], Tensor]


def nearest(tried: Sequence[Tensor], z: Tensor, look: Look) -> tuple[Tensor, list[int]]:
    """Row by row, of planes tried [B, 3, C, R, R] those that look most like z, and which they are.

    As DALL-E ranks by CLIP: argmax_i <look(tried_i), z>. Where there is no choice, nothing is looked at.
    """
    if len(tried) == 1:
        return tried[0], [0] * len(z)
    best = torch.stack([(look(planes) * z).sum(-1) for planes in tried]).argmax(0).tolist()
    return torch.stack([tried[chosen][row] for row, chosen in enumerate(best)]), best


def drawn_again(draw: Callable[[Tensor], Tensor], z: Tensor, look: Look, feedback: Sequence[float],
                ) -> tuple[Tensor, list[float]]:
    """Planes [B, 3, C, R, R] that `draw` makes of z once more, what it missed being said louder; and how much so.

        seen = look(draw(z)),  tried_f = draw(|z| normalize(z + f (z - seen)))

    for every f of `feedback`, of which the `nearest` is kept; 0 is the first drawing. One of them is returned a row.
    """
    first = draw(z)
    missed = z - look(first) if any(feedback) else torch.zeros_like(z)
    told = [F.normalize(z + f * missed, dim=-1) * z.norm(dim=-1, keepdim=True) for f in feedback]
    planes, best = nearest([draw(words) if f else first for f, words in zip(feedback, told, strict=True)], z, look)
    return planes, [feedback[chosen] for chosen in best]


def drawings(feedback: Sequence[float]) -> int:
    """How often `drawn_again` draws."""
    return 1 + sum(f != 0 for f in feedback)


def feedback_of(avatar: Avatar, choices: Sequence[float]) -> Sequence[float]:
    """With which feedback an avatar was drawn, as a choice of one; all `choices` if it does not know that.

    ValueError if what it holds cannot be one.
    """
    value = avatar.metadata.get("feedback")
    if value is None:
        return choices
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 4:
        raise ValueError(f"the avatar's feedback must be a number from 0 to 4; got {value!r:.80}")
    return (float(value),)
