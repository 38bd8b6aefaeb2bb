"""Where a model is, and what its `model_index.json` says; nothing heavy is imported to find that out."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

#: The model that comes with the package.
SHIPPED = Path(__file__).parent / "pretrained"
INDEX_FILE = "model_index.json"
FORMAT = "rodin-model-1"


@dataclass(frozen=True)
class ModelIndex:
    """What `model_index.json` says: the model's name and how it is best sampled.

    `guidance_stop`: after which share of the way from noise to planes guidance ends, 1 for never (`BaseDiffusion`).
    `text_prior`: whether words go through the latent prior, which decides what they leave open, or are used as they
    are; `prior_scale`: how strictly it keeps to them.
    `edit_strength`: about how far `edit` moves z when the caller does not say (`editing.STRENGTHS`); `edit_emphasis`:
    how many times what that changes in a prediction is added to it (`editing.changed`). `candidates`: of how many
    avatars the one is kept that looks most like what was asked for. `feedback`: how much of what the conditioner misses
    in an avatar's front picture is added to its z before its fine planes are drawn again, 0 to leave that; of several,
    the one is kept with which the picture looks most like what was asked for (`looking.drawn_again`).
    `clearing`: the steps in which the face is taken away from the back of every head (`clearing.cleared`), 0 for none.
    `refiner`: whether the model has a refiner for its pictures.
    """

    format: str = FORMAT
    name: str = "rodin-mini"
    text_prior: bool = False
    prior_scale: float = 1.0
    num_inference_steps: int = 25
    guidance_scale: float = 2.0
    guidance_stop: float = 1.0
    upsampler_steps: int = 8
    edit_strength: float = 1.0
    edit_emphasis: float = 1.0
    candidates: int = 1
    feedback: tuple[float, ...] = (0.0,)
    clearing: int = 0
    refiner: bool = False

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"the model's format must be {FORMAT!r}; got {self.format!r}")
        if not 0 <= self.guidance_stop <= 1:
            raise ValueError(f"guidance_stop must lie between 0 and 1; got {self.guidance_stop}")
        if not 1 <= self.candidates <= 64:
            raise ValueError(f"candidates must lie between 1 and 64; got {self.candidates}")
        if not 1 <= len(self.feedback) <= 64 or not all(0 <= share <= 4 for share in self.feedback):
            raise ValueError(f"feedback must be 1 to 64 numbers between 0 and 4; got {self.feedback}")
        if not 0 <= self.clearing <= 1000:
            raise ValueError(f"clearing must lie between 0 and 1000; got {self.clearing}")


def find_model(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a model: see `RodinPipeline.from_pretrained`; FileNotFoundError says what was looked for."""
    if path is None:
        path = SHIPPED
    folder = Path(path)
    if (folder / INDEX_FILE).is_file():
        return folder
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", os.fspath(path)):
        return _from_hub(os.fspath(path))
    raise FileNotFoundError(f"there is no model in {folder}: {INDEX_FILE} is missing")


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    # the hub's client raises its own and its transport's errors, which have no common class
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileNotFoundError(f"there is no folder {name}, and the hub gave no such model: {reason}") from error
    return find_model(folder)
