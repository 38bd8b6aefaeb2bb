"""Every size in one place: frozen dataclasses and the three named presets. Nothing else in the package has defaults.

| preset    | fitted planes | base diffusion             | upsampler  | refiner     | for                       |
|-----------|---------------|----------------------------|------------|-------------|---------------------------|
| `mini`    | 3x16x128^2    | 32^2, about 4 M parameters | 32 -> 128  | 256 -> 512  | shipped; minutes on a GPU |
| `rodin`   | 3x32x256^2    | 64^2, about 330 M          | 64 -> 256  | 512 -> 1024 | the paper (CVPR 2023)     |
| `rodinhd` | 3x32x512^2    | 128^2, about 340 M         | 128 -> 512 | none        | its follow-up (ECCV 2024) |

The paper does not print its U-Net; the sizes of `rodin` are those of the code that it descends from (PITI, GLIDE).
Nor does it print its refiner: that of `rodin` has the blocks and widths of ESRGAN.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

#: No integer in a configuration file may exceed this: a short file must not be able to ask for all memory.
MAX_INT = 16384
#: Length of the latent that conditions everything (the paper: CLIP's 512).
LATENT_SIZE = 512

T = TypeVar("T")


@dataclass(frozen=True)
class PlanesConfig:
    """The planes that one avatar consists of, and how they are read."""

    channels: int = 16
    resolution: int = 128
    coarse_resolution: int = 32
    layout: tuple[str, ...] = ("xy", "zx", "yz")
    reduce: str = "sum"
    align_corners: bool = False
    padding_mode: str = "zeros"


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net over three planes.

    `cross_plane` and `attention` name the resolutions at which residual blocks use the 3D-aware convolution and are
    followed by self-attention over the tokens of all three planes. `channel_mult` and `blocks` go level by level.
    """

    resolution: int
    in_channels: int
    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[int, ...] = ()
    cross_plane: tuple[int, ...] = ()
    head_channels: int = 64
    embedding: int = 512
    dropout: float = 0.0
    groups: int = 32
    separate_planes: bool = False  # one set of 3D-aware weights for each plane instead of a shared one
    positions: bool = False        # a learned map for each plane and level: where in the head a texel lies
    position_channels: int = 0     # of these maps, mixed into those of the level; 0: a channel for each of the level's
    patch: int = 1                 # texels along an axis that the stem merges and the head splits again
    layout: tuple[str, ...] = ("xy", "zx", "yz")

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        if len(self.blocks) != levels:
            raise ValueError(f"blocks needs one number for each of the {levels} levels; got {self.blocks}")
        if self.patch < 1 or self.resolution % (self.patch * 2 ** (levels - 1)):
            raise ValueError(f"resolution {self.resolution} cannot be cut into patches of {self.patch} "
                             f"and halved {levels - 1} times")


@dataclass(frozen=True)
class NoiseConfig:
    """The forward process: `schedule` with its (start, end, tau), the training target and the number of steps.

    alpha_bar(t) = (v(1) - v(t)) / (v(1) - v(0)) with v(t) = cos((t (end - start) + start) pi / 2)^(2 tau) for "cosine"
    and v(t) = logistic((t (end - start) + start) / tau) for "sigmoid" (RodinHD, section 4.2). `prediction` is
    diffusers' word for the target: "epsilon", "sample" or "v_prediction".
    """

    schedule: str = "cosine"
    start: float = 0.2
    end: float = 1.0
    tau: float = 1.0
    steps: int = 1000
    prediction: str = "v_prediction"
    learn_variance: bool = False
    condition_drop: float = 0.2

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "sigmoid"):
            raise ValueError(f'schedule must be "cosine" or "sigmoid"; got {self.schedule!r}')
        if self.prediction not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f'prediction must be "epsilon", "sample" or "v_prediction"; got {self.prediction!r}')


@dataclass(frozen=True)
class PrincipalConfig:
    """The leading components of the planes, kept at `resolution`, and the residual MLP that denoises them."""

    components: int = 104
    resolution: int = 32
    width: int = 448
    blocks: int = 3
    embedding: int = 256
    dropout: float = 0.1


@dataclass(frozen=True)
class DetailConfig:
    """What the upsampler draws beside its U-Net, texel by texel (`rodin_model.detail`); the defaults are the face.

    `window` texels along each side, the first of them number `corner` along x, y and z, `patch` of them together;
    `maps` learned numbers tell each where it is; `layers` of `width` channels are steered by an embedding of z; the
    last `border` texels fade.
    """

    window: int = 48
    corner: tuple[int, int, int] = (40, 44, 62)
    patch: int = 1
    maps: int = 24
    width: int = 80
    layers: int = 5
    embedding: int = 192
    border: int = 4


@dataclass(frozen=True)
class AmortizedConfig:
    """The function from descriptions of `description` numbers to planes (`rodin_model.amortized`).

    A residual MLP of `blocks` blocks, `width` wide, gives `components` numbers, of which the planes are a linear map.
    """

    description: int
    resolution: int = 32
    channels: int = 16
    width: int = 512
    blocks: int = 3
    components: int = 256


@dataclass(frozen=True)
class DiffusionConfig:
    """What a saved diffusion model's config.json holds; `details` and `notch` are the upsampler's alone."""

    unet: UNetConfig
    noise: NoiseConfig
    channels: int
    principal: PrincipalConfig | None = None
    details: tuple[DetailConfig, ...] = ()
    notch: float = 0.0


@dataclass(frozen=True)
class RefinerConfig:
    """The convolutional refiner: pictures become `scale` times as wide and high.

    Its body, `blocks` residual-in-residual dense blocks of `dense` dense blocks each, `width` channels growing by
    `growth`, works on `shrink` times fewer pixels along each side; two convolutions of `detail` channels follow at the
    size of the rendered picture. `features` plane features are read beside colour, opacity and depth; 0 for none.
    """

    scale: int = 2
    shrink: int = 2
    features: int = 16
    width: int = 32
    growth: int = 12
    dense: int = 3
    blocks: int = 1
    detail: int = 16

    def __post_init__(self) -> None:
        for name, low, high in (("scale", 1, 8), ("shrink", 1, 8), ("features", 0, 512), ("width", 1, 512),
                                ("growth", 1, 512), ("dense", 1, 8), ("blocks", 1, 64), ("detail", 1, 512)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"the refiner's {name} must lie between {low} and {high}; got {value}")


@dataclass(frozen=True)
class Preset:
    """Everything that fixes the shapes of a cascade."""

    planes: PlanesConfig
    base: UNetConfig
    base_noise: NoiseConfig
    upsampler: UNetConfig
    upsampler_noise: NoiseConfig
    decoder_hidden: tuple[int, ...] = (64, 64)
    principal: PrincipalConfig | None = None
    refiner: RefinerConfig | None = None
    details: tuple[DetailConfig, ...] = ()
    notch: float = 0.0


PRESETS: dict[str, Preset] = {
    "mini": Preset(
        planes=PlanesConfig(),
        base=UNetConfig(resolution=32, in_channels=32, out_channels=16, channels=24, channel_mult=(1, 2), blocks=(1, 1),
                        attention=(8,), cross_plane=(16, 8), head_channels=24, embedding=256, groups=8,
                        positions=True, patch=2),
        base_noise=NoiseConfig(start=0.2, tau=2.0),
        upsampler=UNetConfig(resolution=128, in_channels=32, out_channels=16, channels=56, channel_mult=(1, 2),
                             blocks=(1, 1), cross_plane=(64, 32), embedding=256, groups=8, patch=2,
                             positions=True, position_channels=16),
        upsampler_noise=NoiseConfig("sigmoid", 0.0, 3.0, 0.3, steps=100, prediction="sample"),
        principal=PrincipalConfig(),
        refiner=RefinerConfig(),
        details=(DetailConfig(),
                 DetailConfig(window=128, corner=(0, 0, 0), patch=2, maps=12, width=112, border=0)),
        notch=2.5,
    ),
    "rodin": Preset(
        planes=PlanesConfig(channels=32, resolution=256, coarse_resolution=64),
        base=UNetConfig(resolution=64, in_channels=32, out_channels=64, channels=192, channel_mult=(1, 2, 3, 4),
                        blocks=(3, 3, 3, 3), attention=(32, 16, 8), cross_plane=(64,), embedding=768, dropout=0.1,
                        separate_planes=True),
        base_noise=NoiseConfig(start=0.0, prediction="epsilon", learn_variance=True),
        upsampler=UNetConfig(resolution=256, in_channels=64, out_channels=32, channels=128, channel_mult=(1, 2, 4),
                             blocks=(2, 2, 6), cross_plane=(256, 128, 64), separate_planes=True),
        upsampler_noise=NoiseConfig(start=0.0, prediction="sample"),
        decoder_hidden=(128, 128),
        refiner=RefinerConfig(shrink=1, features=32, width=64, growth=32, blocks=23, detail=64),
    ),
    "rodinhd": Preset(
        planes=PlanesConfig(channels=32, resolution=512, coarse_resolution=128, layout=("xy", "xz", "yz"),
                            reduce="mean", align_corners=True),
        base=UNetConfig(resolution=128, in_channels=32, out_channels=64, channels=192, channel_mult=(1, 1, 2, 3, 4),
                        blocks=(3, 3, 3, 3, 3), attention=(32, 16, 8), cross_plane=(128,), embedding=768,
                        separate_planes=True, layout=("xy", "xz", "yz")),
        base_noise=NoiseConfig(tau=3.0, prediction="epsilon", learn_variance=True),
        upsampler=UNetConfig(resolution=512, in_channels=64, out_channels=32, channels=64, channel_mult=(1, 2, 4),
                             blocks=(2, 2, 6), cross_plane=(512, 256, 128), separate_planes=True,
                             layout=("xy", "xz", "yz")),
        upsampler_noise=NoiseConfig("sigmoid", 0.0, 3.0, 0.1, steps=100, prediction="sample", condition_drop=0.0),
        decoder_hidden=(128, 128),
    ),
}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain data for JSON; `from_dict` reads it back."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Any) -> T:
    """Build the dataclass `cls` from JSON data; unknown keys, wrong types and absurd numbers are a ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__} needs a JSON object; got {type(data).__name__}")
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = set(data) - fields
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(fields))}")
    hints = typing.get_type_hints(cls)
    values = {name: _checked(f"{cls.__name__}.{name}", hints[name], value) for name, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def _checked(name: str, hint: Any, value: Any) -> Any:
    """`value` as the annotation `hint` wants it: tuples from lists, nested dataclasses, bounded integers."""
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) > 64:
            raise ValueError(f"{name} needs a short list; got {value!r:.80}")
        return tuple(_checked(name, typing.get_args(hint)[0], item) for item in value)
    if isinstance(hint, types.UnionType):
        return value if value is None else _checked(name, typing.get_args(hint)[0], value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{name} needs {hint.__name__}; got {value!r:.80}")
    if hint is int and not 0 <= value <= MAX_INT:
        raise ValueError(f"{name} must lie between 0 and {MAX_INT}; got {value}")
    return value
