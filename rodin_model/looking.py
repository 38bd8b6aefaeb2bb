"""Looking at what was drawn: of several avatars the one that shows what was asked for, and what one misses, said again.

`z` [B, 512] is what was asked for, and `look` says what the conditioner sees in the front pictures of planes
[B, 3, C, R, R]: z again. `alike` says of what is seen how much that is what was asked for: [B], more is better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.triplane import Avatar

Look = Callable[[Tensor], Tensor]
#: Row by row, the attributes that were asked for by name.
Names = Sequence[Collection[str]]


@torch.no_grad()
def likeness(conditioner: Conditioner, z: Tensor, names: Names, seen: Tensor) -> Tensor:
    """How much `seen` [B, 512] is what z [B, 512] asks for: [B], more is better.

    A conditioner that can read z is asked how likely what was seen has the values that z says, row by row for the
    attributes `names`, or for all of them where none are named:

        sum_a log p_a(v_a | seen),  v_a = argmax_v p_a(v | z)

    so that what words name is not outweighed by all that they leave open. For others it is the cosine, as DALL-E ranks
    by CLIP.
    """
    if not isinstance(conditioner, TowerConditioner):
        return F.cosine_similarity(seen, z, dim=-1)
    asked, shown = (conditioner.towers.heads(latents)[0] for latents in (z, seen))
    likely = {name: shown[name].log_softmax(-1).gather(-1, asked[name].argmax(-1, keepdim=True))[:, 0]
              for name in CHOICES}
    return torch.stack([torch.stack([likely[name][row] for name in sorted(named) or CHOICES]).sum()
                        for row, named in enumerate(names)])


def nearest(tried: Sequence[Tensor], look: Look, alike: Look) -> tuple[Tensor, list[int]]:
    """Row by row, of planes tried [B, 3, C, R, R] those that look most alike, and which they are.

    Where there is no choice, nothing is looked at.
    """
    if len(tried) == 1:
        return tried[0], [0] * len(tried[0])
    best = torch.stack([alike(look(planes)) for planes in tried]).argmax(0).tolist()
    return torch.stack([tried[chosen][row] for row, chosen in enumerate(best)]), best


def drawn_again(draw: Callable[[Tensor], Tensor], z: Tensor, look: Look, alike: Look, feedback: Sequence[float],
                ) -> tuple[Tensor, list[float]]:
    """Planes [B, 3, C, R, R] that `draw` makes of z once more, what it missed being said louder; and how much so.

        seen = look(draw(z)),  tried_f = draw(|z| normalize(z + f (z - seen)))

    for every f of `feedback`, of which the `nearest` is kept; 0 is the first drawing. One of them is returned a row.
    """
    first = draw(z)
    missed = z - look(first) if any(feedback) else torch.zeros_like(z)
    told = [F.normalize(z + f * missed, dim=-1) * z.norm(dim=-1, keepdim=True) for f in feedback]
    tried = [draw(words) if f else first for f, words in zip(feedback, told, strict=True)]
    planes, best = nearest(tried, look, alike)
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
