"""Interval arithmetic through planes and decoder: what the density cannot exceed anywhere in a box of space.

An interval is a centre c and a radius r; it holds x if |x - c| <= r. Between lines of texels a plane is bilinear, so
over a rectangle its extremes lie on the rectangle's corners, where its sides cross lines of texels, and on texels. Then

    reduce   sums add c and r;  a product has c = a b,  r = |a| r_b + r_a (|b| + r_b)
    layers   W c + b  and  |W| r
    rising activations   [f(c - r), f(c + r)];  SiLU, which falls before it rises, has its least value inside

Rounding is part of it: before every product r grows by 2^-15 (2 r + |c|), which is more than sums of up to 256 float32
products lose, here and in whatever renders the same field. Numbers that are not finite end as intervals without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import plane_axes
from ..triplane_sample.reference import unpadded_position
from .decoder import DecoderConfig, density_of
from .perceptron import activated

#: What rounding is worth, relative to the numbers that are added up.
SLACK = 2.0**-15
#: How far a cell reaches beyond its faces: rounded points near a face may count to either side.
MARGIN = 1e-5
#: Where SiLU turns, and a little less than it is there.
SILU_TURN, SILU_LEAST = -1.2784645, -0.27847


class Interval(NamedTuple):
    """All numbers within `radius` of `centre`, element by element."""

    centre: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Interval:
        """Those from `low` to `high`."""
        return cls((low + high) / 2, (high - low) / 2)

    def widened(self) -> Interval:
        """With the rounding that may have happened to it."""
        return self._replace(radius=self.radius * (1 + 2 * SLACK) + SLACK * self.centre.abs())


def cell_places(cells: int, size: int, align_corners: bool, padding_mode: str) -> Tensor:
    """Where along a line of `size` texels a bilinear function may have its extremes over each of `cells` equal parts.

    Returns:
        [cells, K] float64 positions in texels, ascending: both ends of the part, MARGIN beyond its faces but inside the
        box, and the texels between them.
    """
    edges = torch.arange(cells + 1, dtype=torch.float64) * (2 / cells) - 1
    low, high = (edges[:-1] - MARGIN).clamp_min(-1), (edges[1:] + MARGIN).clamp_max(1)
    low, high = (unpadded_position(x, size, align_corners) for x in (low, high))
    if padding_mode != "zeros":
        # inside the box reflection moves a position no further than to the outer texel, as border does
        low, high = low.clamp(0, size - 1), high.clamp(0, size - 1)
    first = low.floor()
    steps = torch.arange(int((high.ceil() - first).max()) + 1)
    return torch.minimum(torch.maximum(first[:, None] + steps, low[:, None]), high[:, None])


def plane_intervals(planes: Tensor, resolution: int, layout: Sequence[str], align_corners: bool,
                    padding_mode: str) -> list[Interval]:
    """Each plane's features over the parts of a regular grid: three intervals [B, G or 1, G or 1, G or 1, C]."""
    found = []
    for plane, (column, row) in zip(planes.unbind(1), plane_axes(layout), strict=True):
        height, width = plane.shape[-2:]
        across, down = (cell_places(resolution, n, align_corners, padding_mode).to(plane.device)
                        for n in (width, height))
        padded = F.pad(plane, (1, 1, 1, 1))
        low = high = None
        for x in across.unbind(1):
            line = _between_texels(padded, x).transpose(-1, -2)
            for y in down.unbind(1):
                values = _between_texels(line, y)
                low = values if low is None else torch.minimum(low, values)
                high = values if high is None else torch.maximum(high, values)
        assert low is not None and high is not None
        own = (along_axes(values.transpose(-1, -2), column, row) for values in (low, high))
        found.append(Interval.between(*own).widened())
    return found


def _between_texels(values: Tensor, positions: Tensor) -> Tensor:
    """values [..., 1 + size + 1] read at positions [N] of the last dimension, texel 0 being the second of them."""
    below = positions.floor()
    share = (positions - below).to(values.dtype)
    index = below.long() + 1
    last = values.shape[-1] - 1
    return values[..., index] * (1 - share) + values[..., (index + 1).clamp_max(last)] * share


def along_axes(values: Tensor, column: int, row: int) -> Tensor:
    """A plane's values [B, C, rows, columns] by x, y, z: [B, ., ., ., C], of size 1 along the axis it does not show."""
    values = values.permute(0, 3, 2, 1) if column < row else values.permute(0, 2, 3, 1)
    return values.unsqueeze(({0, 1, 2} - {column, row}).pop() + 1).contiguous()


def reduced(parts: Sequence[Interval], reduce: str) -> Interval:
    """The planes' intervals [..., C] as one, broadcast against each other."""
    if reduce == "concat":
        shape = torch.broadcast_shapes(*(p.centre.shape for p in parts))
        return Interval(*(torch.cat([x.expand(shape) for x in xs], -1) for xs in zip(*parts, strict=True)))
    total = parts[0]
    for part in parts[1:]:
        if reduce == "product":
            radius = total.centre.abs() * part.radius + total.radius * (part.centre.abs() + part.radius)
            total = Interval(total.centre * part.centre, radius).widened()
        else:
            total = Interval(total.centre + part.centre, total.radius + part.radius)
    return Interval(total.centre / 3, total.radius / 3) if reduce == "mean" else total


def largest_density(config: DecoderConfig, parameters: Sequence[Tensor], features: Interval) -> Tensor:
    """What the decoder's density cannot exceed for features in an interval [N, C'] and any view direction: [N].

    Not a number or infinite where nothing can be said.
    """
    if config.density_features:
        own = Interval(*(x[:, :config.density_features] for x in features))
        features, activation = _encoded(own, config.feature_frequencies), config.density_activation
        layers = len(config.density_hidden) + 1
    else:
        features, activation = _encoded(features, config.feature_frequencies), config.activation
        layers = len(config.hidden) + 1
        if config.view_directions == "concat":
            # every coordinate of a unit vector, and every wave of it, lies between -1 and 1
            seen = features.centre.new_zeros(len(features.centre), 3 * (1 + 2 * config.direction_frequencies))
            features = Interval(torch.cat([features.centre, seen], -1), torch.cat([features.radius, seen + 1], -1))
    step = 2 if config.bias else 1
    flat = [p.detach().to(features.centre.dtype) for p in parameters[:layers * step]]
    for i in range(layers):
        weight, bias = flat[i * step], flat[i * step + 1] if config.bias else None
        if i == layers - 1:
            # of the last layer's numbers the first is the density
            weight, bias = weight[:1], None if bias is None else bias[:1]
        features = _through(features, weight, bias)
        features = _activated(features, activation) if i < layers - 1 else features
    raw = features.widened()
    return density_of(config, raw.centre[:, 0] + raw.radius[:, 0] + SLACK * (abs(config.density_bias) + 1))


def _encoded(x: Interval, frequencies: int) -> Interval:
    """`decoder.encode`: a wave moves no further than its argument, and no further than to its crest or trough."""
    parts = [x]
    for i in range(frequencies):
        centre, radius = x.centre * 2.0**i, x.widened().radius * 2.0**i
        parts += [Interval(wave, torch.minimum(radius, 1 + wave.abs())) for wave in (centre.sin(), centre.cos())]
    return Interval(*(torch.cat(column, -1) for column in zip(*parts, strict=True)))


def _through(x: Interval, weight: Tensor, bias: Tensor | None) -> Interval:
    centre, radius = F.linear(x.centre, weight, bias), F.linear(x.widened().radius, weight.abs())
    return Interval(centre, radius if bias is None else radius + SLACK * bias.abs())


def _activated(x: Interval, activation: str) -> Interval:
    first, second = x.centre - x.radius, x.centre + x.radius
    low, high = activated(first, activation), activated(second, activation)
    if activation == "silu":
        turns = (first < SILU_TURN) & (second > SILU_TURN)
        low, high = torch.where(turns, SILU_LEAST, torch.minimum(low, high)), torch.maximum(low, high)
    return Interval.between(low, high)
