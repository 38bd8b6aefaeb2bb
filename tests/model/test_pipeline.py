"""The pipeline's promises on a tiny model with random weights: seeds, batches, inputs, edits, ways, and bad models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rodin_model import editing, pipeline
from rodin_model.editing import disentangled, slerp, spoken
from rodin_model.model_index import ModelIndex, find_model
from rodin_model.pipeline import RodinPipeline
from rodin_model.provenance import SOURCE_TYPE
from rodin_model.seeds import noise_seeds, stage_generator
from rodin_model.triplane import Avatar

WORDS = ["a bearded man", "a woman with red hair", "someone in a hat"]


pytestmark = pytest.mark.usefixtures("hasty")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def bearded(pipe: RodinPipeline) -> Avatar:
    return pipe(WORDS[0], generator=seeded(5)).avatars[0]


def test_words_become_an_avatar_that_knows_how_it_was_made(bearded: Avatar) -> None:
    assert bearded.planes.shape == (3, 4, 16, 16)
    assert bearded.planes.dtype == torch.float32
    facts = bearded.metadata
    assert facts["z"].shape == (512,)
    assert facts["prompt"] == WORDS[0]
    assert (facts["num_inference_steps"], facts["upsampler_steps"], facts["guidance_scale"]) == (3, 2, 2.0)
    assert facts["digital_source_type"] == SOURCE_TYPE
    assert facts["model"] == "tiny"
    rgb = bearded.turntable(2, 24)
    assert float(rgb.std()) > 0.05


def test_the_avatar_survives_its_file(bearded: Avatar, tmp_path: Path) -> None:
    bearded.save(tmp_path / "a.safetensors")
    loaded = Avatar.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.planes, bearded.planes)
    assert torch.equal(loaded.metadata["z"], bearded.metadata["z"])
    assert loaded.metadata["noise_seed"] == bearded.metadata["noise_seed"]
    assert SOURCE_TYPE.encode() in (tmp_path / "a.safetensors").read_bytes()


def test_seeds_and_words_decide_and_nothing_else(pipe: RodinPipeline, bearded: Avatar) -> None:
    torch.manual_seed(123)
    again = pipe(WORDS[0], generator=torch.Generator().manual_seed(5)).avatars[0]
    assert torch.equal(again.planes, bearded.planes)
    other_seed = pipe(WORDS[0], generator=seeded(6)).avatars[0]
    other_words = pipe(WORDS[1], generator=seeded(5)).avatars[0]
    for other in (other_seed, other_words):
        assert float((other.planes - bearded.planes).abs().mean()) > 1e-3


def test_a_batch_changes_no_bit_of_its_members(pipe: RodinPipeline, bearded: Avatar) -> None:
    together = pipe([WORDS[1], WORDS[0], WORDS[2]], generator=seeded(1, 5, 9)).avatars
    assert torch.equal(together[1].planes, bearded.planes)


def test_larger_batches_agree_up_to_rounding(pipe: RodinPipeline, bearded: Avatar) -> None:
    pipe.batch_size = 2
    try:
        together = pipe([WORDS[1], WORDS[0], WORDS[2]], generator=seeded(1, 5, 9)).avatars
    finally:
        pipe.batch_size = None
    assert len(together) == 3
    torch.testing.assert_close(together[1].planes, bearded.planes, atol=1e-4, rtol=1e-4)


def test_one_generator_serves_many(pipe: RodinPipeline) -> None:
    three = pipe(WORDS[0], generator=torch.Generator().manual_seed(5), num_avatars_per_prompt=3).avatars
    assert len({avatar.metadata["noise_seed"] for avatar in three}) == 3
    two = pipe(WORDS[0], generator=torch.Generator().manual_seed(5), num_avatars_per_prompt=2).avatars
    assert [a.metadata["noise_seed"] for a in two] == [a.metadata["noise_seed"] for a in three[:2]]
    pairs = pipe(WORDS[:2], num_avatars_per_prompt=2).avatars
    assert [avatar.metadata["prompt"] for avatar in pairs] == [WORDS[0], WORDS[0], WORDS[1], WORDS[1]]


def test_a_portrait_may_be_a_file_a_picture_or_a_tensor(pipe: RodinPipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    made = [pipe(image=image, generator=seeded(2)).avatars[0]
            for image in (tmp_path / "x.png", str(tmp_path / "x.png"), Image.fromarray(pixels), tensor, tensor[None])]
    for avatar in made[1:]:
        torch.testing.assert_close(avatar.planes, made[0].planes)
    dark = pipe(image=[tensor, tensor * 0], generator=seeded(2, 2)).avatars
    assert not torch.allclose(dark[1].planes, dark[0].planes)
    assert "prompt" not in made[0].metadata


def test_noise_goes_through_the_prior(pipe: RodinPipeline) -> None:
    a, b = pipe(num_avatars_per_prompt=2, generator=seeded(1, 2)).avatars
    assert torch.equal(pipe(generator=seeded(2)).avatars[0].planes, b.planes)
    assert not torch.allclose(a.metadata["z"], b.metadata["z"])
    assert float(a.metadata["z"].norm()) == pytest.approx(1, abs=1e-4)


def test_words_go_through_the_prior_where_the_index_says_so(pipe: RodinPipeline) -> None:
    plain = pipe(WORDS[0], generator=seeded(5)).avatars[0].metadata["z"]
    index, pipe.index = pipe.index, ModelIndex(name="tiny", num_inference_steps=3, upsampler_steps=2, text_prior=True)
    try:
        first, second = (pipe(WORDS[0], generator=seeded(seed)).avatars[0].metadata["z"] for seed in (5, 6))
    finally:
        pipe.index = index
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, second)


def test_latents_can_be_given(pipe: RodinPipeline, bearded: Avatar) -> None:
    again = pipe(z=bearded.metadata["z"][None], generator=seeded(5)).avatars[0]
    assert torch.equal(again.planes, bearded.planes)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"prompt": "a", "image": "b.png"}, "not more than one"),
    ({"prompt": "  "}, "the prompt is empty"),
    ({"prompt": "x" * 10_000}, "10000 characters; at most 1000"),
    ({"prompt": []}, "list of prompts is empty"),
    ({"prompt": "a", "num_avatars_per_prompt": 0}, "between 1 and 1000; got 0"),
    ({"prompt": "a", "generator": []}, "one for each of 1 avatars; got 0"),
    ({"prompt": "a", "num_inference_steps": 0}, "steps"),
    ({"z": torch.zeros(2, 5)}, r"\[B, 512\]"),
    ({"z": torch.full((1, 512), float("nan"))}, "finite"),
    ({"image": torch.zeros(4, 8, 8)}, r"\[3, H, W\]"),
    ({"image": []}, "list of images is empty"),
])
def test_what_cannot_be_used_is_said(pipe: RodinPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_wrong_kinds_are_type_errors(pipe: RodinPipeline) -> None:
    with pytest.raises(TypeError, match="the prompt must be text; got int"):
        pipe([3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="an image must be"):
        pipe(image=3)


def test_every_step_is_reported(pipe: RodinPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, str, tuple[int, ...]]] = []
    pipe(WORDS[:2], callback_on_step_end=lambda p, step, stage, kw: seen.append((step, stage, kw["planes"].shape)))
    once = [(1, "base"), (2, "base"), (3, "base"), (1, "upsampler"), (2, "upsampler")]
    assert [item[:2] for item in seen] == 2 * once
    assert seen[0][2] == (1, 3, 4, 8, 8)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="shown")
    try:
        pipe(WORDS[0])
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert "shown" in capsys.readouterr().err


def test_backs_of_heads_are_cleared(pipe: RodinPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def marked(avatar: Avatar, steps: int, *, seed: int, bar: dict[str, Any]) -> Avatar:
        """Planes with the number of steps in them."""
        seen.append((steps, seed))
        assert bar == {"disable": True}
        return dataclasses.replace(avatar, planes=avatar.planes + steps)

    plain = pipe(WORDS[1], generator=seeded(3)).avatars[0]
    words = "something quite different"
    whole = pipe.edit(plain, words, strength=0.5)
    monkeypatch.setattr(pipeline, "cleared", marked)
    monkeypatch.setattr(pipe, "index", dataclasses.replace(pipe.index, clearing=2))
    made = pipe(WORDS[1], generator=seeded(3)).avatars[0]
    assert torch.equal(made.planes, plain.planes + 2) and seen == [(2, plain.metadata["noise_seed"])]
    ends = pipe.interpolate(made, pipe(WORDS[0], generator=seeded(4)).avatars[0], 2)
    torch.testing.assert_close(ends[0].planes, made.planes, rtol=1e-4, atol=1e-4)
    assert [steps for steps, _ in seen] == 4 * [2]  # two avatars from words, and both again on the way between them
    torch.testing.assert_close(pipe.edit(plain, words, strength=0.5).planes, whole.planes + 2)
    asked: list[bool] = []
    monkeypatch.setattr(editing, "composed", lambda before, *_, clear: asked.append(clear) or before)
    pipe.edit(plain, "blonde hair", strength=0.5)
    assert asked == [True]
    with pytest.raises(ValueError, match="clearing must lie between 0 and 1000; got -1"):
        dataclasses.replace(pipe.index, clearing=-1)


def test_an_edit_keeps_the_noise_and_moves_z(pipe: RodinPipeline, bearded: Avatar) -> None:
    edited = pipe.edit(bearded, "blonde hair", strength=1.0)
    assert edited.metadata["noise_seed"] == bearded.metadata["noise_seed"]
    assert edited.metadata["edits"] == ["blonde hair"]
    assert edited.metadata["prompt"] == WORDS[0]
    z, moved = bearded.metadata["z"], edited.metadata["z"]
    assert float(moved.norm()) == pytest.approx(float(z.norm()), rel=1e-4)
    sources, target = spoken(pipe.conditioner, z, "blonde hair")
    before, told = pipe.conditioner.encode_text(sources).mean(0), pipe.conditioner.encode_text([target])[0]
    direction = disentangled(pipe.conditioner, told - before, ["hair_color"])
    torch.testing.assert_close(moved, torch.nn.functional.normalize(z + direction, dim=0) * z.norm())
    assert pipe.edit(edited, "glasses").metadata["edits"] == ["blonde hair", "glasses"]
    torch.testing.assert_close(pipe.edit(bearded, "blonde hair", strength=0.0).planes, bearded.planes)
    assert "edits" not in bearded.metadata


def test_an_edit_repeats_the_settings_of_the_avatar(pipe: RodinPipeline) -> None:
    avatar = pipe(WORDS[0], num_inference_steps=2, guidance_scale=3.0, guidance_stop=0.5, upsampler_steps=1).avatars[0]
    edited = pipe.edit(avatar, "glasses", upsampler_steps=3)
    names = ("num_inference_steps", "guidance_scale", "guidance_stop", "upsampler_steps")
    assert [edited.metadata[name] for name in names] == [2, 3.0, 0.5, 3]


def test_guidance_cannot_stop_outside_the_way(pipe: RodinPipeline) -> None:
    with pytest.raises(ValueError, match="guidance_stop must lie between 0 and 1; got 1.5"):
        pipe(WORDS[0], guidance_stop=1.5)


def test_an_avatar_without_a_latent_is_looked_at(pipe: RodinPipeline, bearded: Avatar) -> None:
    stranger = Avatar(bearded.planes, bearded.decoder)
    edited = pipe.edit(stranger, "glasses", strength=0.0)
    front = bearded.turntable(1, 256)
    wanted = pipe.conditioner.encode_image(front.permute(0, 3, 1, 2))[0]
    torch.testing.assert_close(edited.metadata["z"], wanted)
    with pytest.raises(ValueError, match="the edit is empty"):
        pipe.edit(bearded, "")


@pytest.mark.parametrize("seeds", [(5, 5), (5, 6)], ids=["same noise", "other noise"])
def test_the_way_between_two_avatars_starts_and_ends_with_them(pipe: RodinPipeline, seeds: tuple[int, int]) -> None:
    a, b = pipe(WORDS[:2], generator=seeded(*seeds)).avatars
    way = pipe.interpolate(a, b, 4)
    assert len(way) == 4
    torch.testing.assert_close(way[0].planes, a.planes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(way[-1].planes, b.planes, atol=1e-4, rtol=1e-4)
    steps = [float((x.planes - y.planes).norm()) for x, y in zip(way[:-1], way[1:], strict=True)]
    assert max(steps) < 0.9 * float((a.planes - b.planes).norm())
    with pytest.raises(ValueError, match="n must be at least 2"):
        pipe.interpolate(a, b, 1)


def test_slerp_stays_on_the_sphere() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    for share in (0.0, 0.3, 1.0):
        assert float(slerp(a, b, share).norm()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, 2 * b, 1.0), 2 * b)
    torch.testing.assert_close(slerp(a, a, 0.5), a)


def test_a_model_is_the_same_after_its_folder(pipe: RodinPipeline, bearded: Avatar, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    copy = RodinPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    copy.set_progress_bar_config(disable=True)
    assert copy.index == pipe.index
    assert copy.device.type == "cpu"
    assert torch.equal(copy(WORDS[0], generator=seeded(5)).avatars[0].planes, bearded.planes)
    files = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert {"model_index.json", "base/config.json", "towers/model.safetensors"} <= files


def test_another_conditioner_can_be_put_in(pipe: RodinPipeline, tiny_model_dir: Path) -> None:
    class Constant:
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.ones(len(texts), 512) / 512**0.5

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return self.encode_text(["x"] * len(images))

    other = RodinPipeline.from_pretrained(tiny_model_dir, conditioner=Constant())
    other.set_progress_bar_config(disable=True)
    assert float(other("a man").avatars[0].metadata["z"].std()) < 1e-6


def test_missing_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model in .*nowhere: model_index\.json is missing"):
        RodinPipeline.from_pretrained(tmp_path / "nowhere")

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="the hub gave no such model: no network$"):
        find_model("some-owner/some-name")


def test_a_hub_id_is_a_folder_in_the_end(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tiny_model_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model("owner/name") == tiny_model_dir
    assert asked == {"name": "owner/name", "allow_patterns": ["*.json", "*.safetensors"]}


def damaged(model: Path, target: Path, file: str, change: Any) -> Path:
    """A copy of a model with one JSON file changed."""
    shutil.copytree(model, target)
    data = json.loads((target / file).read_text())
    change(data)
    (target / file).write_text(json.dumps(data))
    return target


@pytest.mark.parametrize(("file", "change", "message"), [
    ("model_index.json", lambda d: d.update(run="rm -rf"), "ModelIndex has no run"),
    ("model_index.json", lambda d: d.update(format="other-2"), "format must be 'rodin-model-1'"),
    ("model_index.json", lambda d: d.update(num_inference_steps=10**9), "must lie between"),
    ("base/config.json", lambda d: d["unet"].update(channels=16384), r"base.config\.json asks for more than"),
    ("base/config.json", lambda d: d["unet"].update(embedding=17), "shape"),
    ("base/config.json", lambda d: d["unet"].update(channels=-8), "must lie between"),
    ("towers/config.json", lambda d: d.update(buckets=65536, text_width=65536), r"towers.config\.json asks for more"),
    ("prior/config.json", lambda d: d.update(width=8192, blocks=8000), r"prior.config\.json asks for more"),
    ("decoder/config.json", lambda d: d["decoder"].update(hidden=[10**6, 10**6]), r"decoder.config\.json asks for"),
])
def test_a_short_file_cannot_ask_for_all_memory_or_for_anything_unknown(
        tiny_model_dir: Path, tmp_path: Path, file: str, change: Any, message: str) -> None:
    folder = damaged(tiny_model_dir, tmp_path / "model", file, change)
    with pytest.raises(ValueError, match=message):
        RodinPipeline.from_pretrained(folder)


def test_cut_tensors_are_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "m")
    path = tmp_path / "m" / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"base.model\.safetensors is not a whole safetensors file"):
        RodinPipeline.from_pretrained(tmp_path / "m")


def test_stages_draw_independently() -> None:
    draws = {torch.randn(1, generator=stage_generator(seed, stage)).item()
             for seed in (0, 1, 2**63 - 1) for stage in ("latent", "base", "upsampler")}
    assert len(draws) == 9
    assert noise_seeds(seeded(3), 1) == noise_seeds(seeded(3), 1)
    assert len(set(noise_seeds(None, 4))) == 4
