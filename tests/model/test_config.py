"""Configurations survive JSON, and hostile ones are refused by name."""

from __future__ import annotations

import json

import pytest

from rodin_model.config import PRESETS, DiffusionConfig, NoiseConfig, Preset, UNetConfig, from_dict, to_dict


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name: str) -> None:
    assert from_dict(Preset, json.loads(json.dumps(to_dict(PRESETS[name])))) == PRESETS[name]


def base_config() -> dict:
    preset = PRESETS["mini"]
    return json.loads(json.dumps(to_dict(DiffusionConfig(preset.base, preset.base_noise, 16))))


@pytest.mark.parametrize(("path", "value", "message"), [
    (("unet", "channels"), 10**9, "UNetConfig.channels must lie between 0 and"),
    (("unet", "channels"), -1, "UNetConfig.channels must lie between 0 and"),
    (("unet", "channels"), "many", "UNetConfig.channels needs int"),
    (("unet", "channels"), True, "UNetConfig.channels needs int"),
    (("unet", "blocks"), [1], "blocks needs one number for each"),
    (("unet", "blocks"), 3, "UNetConfig.blocks needs a short list"),
    (("unet", "resolution"), 33, "cannot be cut into patches"),
    (("unet", "colour"), 1, "UNetConfig has no colour"),
    (("noise", "schedule"), "linear", "schedule must be"),
    (("noise", "prediction"), "velocity", "prediction must be"),
    (("noise",), [], "NoiseConfig needs a JSON object"),
])
def test_bad_values_are_named(path: tuple[str, ...], value: object, message: str) -> None:
    data = base_config()
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        from_dict(DiffusionConfig, data)


def test_missing_values_are_named() -> None:
    with pytest.raises(ValueError, match="resolution"):
        from_dict(UNetConfig, {"channels": 8})


def test_integers_serve_as_floats() -> None:
    assert from_dict(NoiseConfig, {"tau": 2}).tau == 2.0
