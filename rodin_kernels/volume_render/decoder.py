"""The decoder: a small multi-layer perceptron from the features of a point to its density and colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_flag, check_integer, check_number
from .perceptron import ACTIVATIONS, mlp

#: Density activations: softplus(x), softplus(x - 1) (EG3D), exp(x), and exp(x) with a bounded gradient (instant-ngp).
DENSITIES = ("softplus", "shifted_softplus", "exp", "trunc_exp")
#: Colour activations: sigmoid, EG3D's sigmoid(x) * 1.002 - 0.001, or none.
COLORS = ("sigmoid", "clamped_sigmoid", "none")
#: The largest input of exp whose gradient `trunc_exp` reports truly.
TRUNC_EXP_LIMIT = 15.0


@dataclass(frozen=True)
class DecoderConfig:
    """Every choice that makes a decoder, as plain data; see `TinyDecoder` for their meaning."""

    in_features: int
    hidden: tuple[int, ...] = (64, 64)
    out_features: int = 3
    activation: str = "relu"
    density: str = "softplus"
    density_bias: float = 0.0
    color: str = "sigmoid"
    bias: bool = True
    view_directions: str = "none"
    direction_frequencies: int = 0
    feature_frequencies: int = 0
    density_features: int = 0
    density_hidden: tuple[int, ...] = ()
    density_activation: str = "relu"
    geometry_features: int = 0

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("direction_frequencies", "feature_frequencies", "density_features", "geometry_features"):
            check_integer(name, getattr(self, name), least=0)
        for name in ("hidden", "density_hidden"):
            widths = tuple(check_integer(f"{name}[{i}]", w, least=1) for i, w in enumerate(getattr(self, name)))
            object.__setattr__(self, name, widths)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("density_activation", self.density_activation, ACTIVATIONS)
        check_choice("density", self.density, DENSITIES)
        check_choice("color", self.color, COLORS)
        check_choice("view_directions", self.view_directions, ("none", "concat"))
        check_flag("bias", self.bias)
        check_number("density_bias", self.density_bias)
        if self.density_features >= self.in_features and self.density_features:
            raise ValueError(
                f"density_features must be smaller than in_features {self.in_features}; got {self.density_features}"
            )
        if not self.density_features and (self.density_hidden or self.geometry_features):
            raise ValueError("density_hidden and geometry_features need density_features >= 1 (two heads)")

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Layer widths, input first: of the density head (empty with one head) and of the colour (or only) head."""
        encoded = 1 + 2 * self.feature_frequencies
        seen = 3 * (1 + 2 * self.direction_frequencies) if self.view_directions == "concat" else 0
        if not self.density_features:
            return (), (self.in_features * encoded + seen, *self.hidden, 1 + self.out_features)
        rest = (self.in_features - self.density_features) * encoded + self.geometry_features + seen
        return (
            (self.density_features * encoded, *self.density_hidden, 1 + self.geometry_features),
            (rest, *self.hidden, self.out_features),
        )


class TinyDecoder(nn.Module):
    """A small MLP from the features of a point (and the view direction) to density and colour.

    One head (default): encode(features) [+ encode(direction)] -> hidden -> 1 + out_features; output 0 is the density.
    Two heads, as RodinHD's, when `density_features` > 0: the first `density_features` features, encoded, go through
    `density_hidden` to the density and `geometry_features` further numbers; the rest of the features, encoded, these
    numbers and the encoded direction go through `hidden` to the colour.

        encode_L(x) = (x, sin 2^0 x, cos 2^0 x, ..., sin 2^{L-1} x, cos 2^{L-1} x),   L the number of frequencies

    Args:
        in_features: width of the features: C of the planes, or 3C with reduce="concat".
        hidden: widths of the hidden layers, for example (64, 64); may be empty.
        out_features: numbers of the colour, at least 1.
        activation: "relu", "silu", "softplus" or "leaky_relu" (slope 0.01), after each hidden layer.
        density: "softplus", "shifted_softplus" (softplus(x - 1)), "exp" or "trunc_exp" (gradient of exp(min(x, 15))).
        density_bias: added before the density's activation (TripoSR: -1).
        color: "sigmoid", "clamped_sigmoid" (sigmoid * 1.002 - 0.001, EG3D) or "none".
        bias: whether the layers have biases.
        view_directions: "none", or "concat": the normalised direction is one more input (of the colour's head).
        direction_frequencies, feature_frequencies: L of the encodings; 0 leaves the numbers as they are.
        density_features, density_hidden, density_activation, geometry_features: the second head.

    Raises:
        TypeError, ValueError: an argument is not of the kind or range above; the message names it.
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (64, 64), out_features: int = 3,
                 **choices: Any) -> None:
        super().__init__()
        known = {field.name for field in fields(DecoderConfig)}
        if unknown := sorted(set(choices) - known):
            raise TypeError(f"TinyDecoder has no argument {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        self.choices = DecoderConfig(in_features, tuple(hidden), out_features, **choices)
        #: The choices as one line of JSON, which is how registered operators take them.
        self.text = json.dumps(asdict(self.choices))
        density, color = self.choices.widths
        self.density_layers = _layers(density, self.choices.bias)
        self.layers = _layers(color, self.choices.bias)

    @classmethod
    def rodinhd(cls, in_features: int = 32) -> TinyDecoder:
        """The decoder of RodinHD: 8 features for the density, 24 for the colour, both frequency-encoded."""
        return cls(in_features, (128, 128), 3, density="trunc_exp", view_directions="concat", direction_frequencies=2,
                   feature_frequencies=2, density_features=in_features // 4, density_hidden=(128,),
                   density_activation="softplus", geometry_features=128)

    def config(self) -> dict[str, Any]:
        """Every choice as a dict of plain values (JSON); `from_config` is the way back, without the weights."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.choices).items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TinyDecoder:
        """A decoder with fresh weights from what `config` returned.

        Raises:
            TypeError, ValueError: an unknown name, or a value that the constructor refuses.
        """
        return cls(**config)

    def flat_parameters(self) -> list[Tensor]:
        """Weights and biases in the order in which `decode` takes them: density head first, layer by layer."""
        layers = (*self.density_layers, *self.layers)
        return [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]

    def forward(self, features: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Density and colour of points.

        Args:
            features: [..., in_features]; float16 and bfloat16 are computed in float32.
            directions: [..., 3], any length > 0; needed with view_directions="concat".

        Returns:
            sigma: [...], >= 0, in 1/world unit. rgb: [..., out_features].

        Differentiable in features, directions and all weights, also twice.

        Raises:
            ValueError: wrong width of the features, or directions are missing.
        """
        return decode(self.choices, self.flat_parameters(), features, directions)

    def raw(self, features: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, with the density [...] as it is before `density_bias` and the density's activation."""
        return decode(self.choices, self.flat_parameters(), features, directions, raw=True)

    def density(self, raw: Tensor) -> Tensor:
        """The density [...] of what `raw` returned, or of means of it; -inf becomes 0. Differentiable, also twice."""
        return density_of(self.choices, raw)

    def extra_repr(self) -> str:
        """The choices that differ from the defaults."""
        default = DecoderConfig(self.choices.in_features)
        mine = asdict(self.choices)
        return ", ".join(f"{k}={v!r}" for k, v in mine.items() if k == "in_features" or v != getattr(default, k))


@lru_cache(maxsize=64)
def config_from_text(text: str) -> DecoderConfig:
    """The choices behind `TinyDecoder.text`."""
    return DecoderConfig(**json.loads(text))


def decode(config: DecoderConfig, parameters: Sequence[Tensor], features: Tensor,
           directions: Tensor | None = None, raw: bool = False) -> tuple[Tensor, Tensor]:
    """`TinyDecoder.forward`, or `raw`, as a function of its parameters (in the order of `flat_parameters`)."""
    features, parameters, directions = _checked(config, parameters, features, directions)
    seen = [encode(F.normalize(directions, dim=-1), config.direction_frequencies)] if directions is not None else []
    step = 2 if config.bias else 1
    split = step * max(len(config.widths[0]) - 1, 0)
    if not config.density_features:
        inputs = torch.cat([encode(features, config.feature_frequencies), *seen], -1)
        out = mlp(inputs, parameters, config.activation, config.bias)
        return _density(config, out, raw), color_of(config, out[..., 1:])
    geometry, rest = features.split([config.density_features, config.in_features - config.density_features], -1)
    out = mlp(encode(geometry, config.feature_frequencies), parameters[:split], config.density_activation, config.bias)
    inputs = torch.cat([encode(rest, config.feature_frequencies), out[..., 1:], *seen], -1)
    color = mlp(inputs, parameters[split:], config.activation, config.bias)
    return _density(config, out, raw), color_of(config, color)


def encode(x: Tensor, frequencies: int) -> Tensor:
    """(x, sin 2^0 x, cos 2^0 x, ..., cos 2^{L-1} x), [..., D] -> [..., D (1 + 2 L)]."""
    if not frequencies:
        return x
    return torch.cat([x, *(wave(x * 2.0**i) for i in range(frequencies) for wave in (torch.sin, torch.cos))], -1)


def density_of(config: DecoderConfig, raw: Tensor) -> Tensor:
    """The density activation, bias included."""
    shift = config.density_bias - (1.0 if config.density == "shifted_softplus" else 0.0)
    raw = raw + shift if shift else raw
    if config.density == "exp":
        return raw.exp()
    return _TruncExp.apply(raw) if config.density == "trunc_exp" else F.softplus(raw)


def _density(config: DecoderConfig, out: Tensor, raw: bool) -> Tensor:
    return out[..., 0] if raw else density_of(config, out[..., 0])


def color_of(config: DecoderConfig, raw: Tensor) -> Tensor:
    """The colour activation."""
    if config.color == "none":
        return raw
    color = raw.sigmoid()
    return color if config.color == "sigmoid" else color * 1.002 - 0.001


class _TruncExp(torch.autograd.Function):
    """exp(x) whose gradient is exp(min(x, 15)): a density that overshoots does not blow up the training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].clamp(max=TRUNC_EXP_LIMIT).exp()


def _layers(widths: Sequence[int], bias: bool) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip(widths[:-1], widths[1:], strict=True))


def _checked(config: DecoderConfig, parameters: Sequence[Tensor], features: Tensor,
             directions: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor | None]:
    if features.shape[-1] != config.in_features:
        raise ValueError(f"features must be [..., {config.in_features}]; got {list(features.shape)}")
    if config.view_directions == "concat" and directions is None:
        raise ValueError("directions are needed: this decoder was made with view_directions='concat'")
    if config.view_directions == "none":
        directions = None
    double = features.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    flat = [p.to(dtype) for p in parameters]
    seen = directions.to(dtype).expand(*features.shape[:-1], 3) if directions is not None else None
    return features.to(dtype), flat, seen
