"""The makers of z: unit length, batch-independent, saved and read back, clear about what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rodin_model.avatars.attributes import CHOICES, SHAPE, sample_attributes
from rodin_model.conditioning import ClipConditioner, Conditioner, TowerConditioner
from rodin_model.towers import Towers, TowersConfig
from rodin_model.train.changes import augment, recolor
from rodin_model.train.towers import (
    Settings,
    TowersTrainer,
    add_stray_words,
    attribute_loss,
    encode_sorted,
    start_from,
)

SMALL = TowersConfig(buckets=256, text_width=16, text_layers=2, text_heads=2, image_size=32, image_widths=(4, 8, 8, 8))


@pytest.fixture(scope="module")
def conditioner() -> TowerConditioner:
    torch.manual_seed(0)
    return TowerConditioner(Towers(SMALL))


def test_it_is_a_conditioner(conditioner: TowerConditioner) -> None:
    assert isinstance(conditioner, Conditioner)


def test_sizes_fit_the_package() -> None:
    towers = Towers()
    assert sum(p.numel() for p in towers.text.parameters()) <= 1_500_000
    assert sum(p.numel() for p in towers.image.parameters()) <= 1_500_000


def test_z_has_unit_length_and_does_not_depend_on_the_batch(conditioner: TowerConditioner) -> None:
    texts = ["red hair", "a very long text about a man with a black beard and nothing else at all", "curls"]
    together, alone = conditioner.encode_text(texts), torch.cat([conditioner.encode_text([text]) for text in texts])
    assert together.shape == (3, 512)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(encode_sorted(conditioner.towers, texts, 2), together, rtol=0, atol=1e-6)
    images = torch.rand(3, 3, 40, 50)
    z = conditioner.encode_image(images)
    torch.testing.assert_close(z, torch.cat([conditioner.encode_image(i[None]) for i in images]), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(3))


def test_word_order_counts(conditioner: TowerConditioner) -> None:
    a, b = conditioner.encode_text(["black hair and white shirt", "white hair and black shirt"])
    assert (a - b).abs().max() > 1e-3


def test_heads_read_every_attribute(conditioner: TowerConditioner) -> None:
    read = conditioner.read_attributes(conditioner.encode_text(["a man", "a hat"]))
    assert len(read) == 2
    assert all(record[name] in values for record in read for name, values in CHOICES.items())
    logits, shape = conditioner.towers.heads(torch.zeros(2, 512))
    assert {name: tuple(v.shape) for name, v in logits.items()} == {n: (2, len(v)) for n, v in CHOICES.items()}
    assert shape.shape == (2, len(SHAPE))


def test_saved_towers_read_back(conditioner: TowerConditioner, tmp_path: Path) -> None:
    conditioner.save(tmp_path)
    again = TowerConditioner.from_folder(tmp_path)
    text = ["a bearded man with curly hair"]
    torch.testing.assert_close(again.encode_text(text), conditioner.encode_text(text), rtol=0, atol=5e-3)
    again.save(tmp_path / "second")
    assert (tmp_path / "second/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("texts", "error", "words"), [
    ("a man", TypeError, "list of str"), ([], ValueError, "at least one text"), ([3], TypeError, r"texts\[0\]"),
    (["fine", " \n"], ValueError, r"texts\[1\] is empty"), (["?!"], ValueError, r"texts\[0\] is empty"),
    (["x" * 2001], ValueError, "2001 characters; at most 2000")])
def test_bad_texts(conditioner: TowerConditioner, texts: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        conditioner.encode_text(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("images", "error", "words"), [
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "floating-point"), (None, TypeError, "NoneType"),
    (torch.zeros(3, 8, 8), ValueError, r"\[B, 3, H, W\]"), (torch.zeros(1, 4, 8, 8), ValueError, r"\(1, 4, 8, 8\)"),
    (torch.full((1, 3, 8, 8), 255.0), ValueError, "255"), (torch.full((1, 3, 8, 8), float("nan")), ValueError, "nan")])
def test_bad_images(conditioner: TowerConditioner, images: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        conditioner.encode_image(images)  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "words"), [
    ({"kind": "prior"}, "does not describe towers"), ({"buckets": -1}, "buckets must be whole numbers"),
    ({"image_size": 1e9}, "image_size"), ({"image_size": 8}, "at least 16"), ({"text_heads": 3}, "multiple of"),
    ({"depth": 3}, "unknown settings of the towers: depth")])
def test_bad_settings(conditioner: TowerConditioner, tmp_path: Path, change: dict, words: str) -> None:
    conditioner.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=words):
        TowerConditioner.from_folder(tmp_path)


def test_towers_of_other_sizes_are_refused(conditioner: TowerConditioner, tmp_path: Path) -> None:
    conditioner.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_width": 32}))
    with pytest.raises(ValueError, match="shape"):
        TowerConditioner.from_folder(tmp_path)


def fake_data(folder: Path) -> Path:
    """Four avatars of two views as the data set stores them; the pictures are noise."""
    from rodin_model import checkpoints
    from rodin_model.avatars.dataset import FORMAT
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (4, 2, 32, 32, 4), dtype=np.uint8))
    attributes = json.dumps([sample_attributes(i).to_dict() for i in range(4)])
    metadata = {"format": FORMAT, "attributes": attributes}
    checkpoints.save_tensors(folder / "shard-00000.safetensors", {"images": images}, metadata)
    return folder


def test_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    data = fake_data(tmp_path / "data")
    settings = Settings(steps=5, text_steps=2, text_batch=6, image_batch=4, word_avatars=10)

    def trainer(name: str) -> TowersTrainer:
        return TowersTrainer(tmp_path / name, settings, [data], seeded())

    whole = trainer("whole").run()
    trainer("parts").run(until=1)
    trainer("parts").run(until=3)
    parts = trainer("parts").run()
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    assert not torch.equal(whole.text.groups, seeded().text.groups)
    assert not torch.equal(whole.image.face[0].weight, seeded().image.face[0].weight)


def seeded() -> Towers:
    torch.manual_seed(3)
    return Towers(SMALL)


def test_frozen_words_stay_and_pictures_learn(tmp_path: Path) -> None:
    data = fake_data(tmp_path / "data")
    settings = Settings(steps=2, text_steps=0, text_every=2, text_batch=4, image_batch=4, word_avatars=5,
                        freeze_words=True)
    towers, before = TowersTrainer(tmp_path / "run", settings, [data], seeded()).run(), seeded()
    assert torch.equal(towers.text.groups, before.text.groups)
    assert torch.equal(towers.heads.linear.weight, before.heads.linear.weight)
    assert not torch.equal(towers.image.head.weight, before.image.head.weight)


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    settings = Settings(steps=1, text_steps=1, text_batch=2, word_avatars=3)
    TowersTrainer(tmp_path, settings, towers=seeded()).run()
    with pytest.raises(ValueError, match="other settings"):
        TowersTrainer(tmp_path, Settings(steps=2, text_steps=2, text_batch=2, word_avatars=3), towers=seeded())


def test_text_training_learns() -> None:
    """Reading six captions by heart takes a few dozen steps; without gradients to the words it would not happen."""
    towers = seeded()
    texts = ["red hair", "black hair", "a hat", "a green dress", "an old man", "glasses"]
    targets = torch.arange(6)[:, None].expand(-1, len(CHOICES)) % torch.tensor([len(v) for v in CHOICES.values()])
    optimizer = torch.optim.Adam(towers.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = attribute_loss(towers.heads(towers.encode_text(texts))[0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_words_of_other_towers_are_a_beginning(tmp_path: Path) -> None:
    other = seeded()
    TowerConditioner(other).save(tmp_path)
    torch.manual_seed(4)
    towers = Towers(SMALL)
    start_from(towers, tmp_path)
    torch.testing.assert_close(towers.text.groups, other.text.groups, rtol=0, atol=2e-3)
    torch.testing.assert_close(towers.heads.linear.weight, other.heads.linear.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(towers.image.head.weight, other.image.head.weight, rtol=0, atol=2e-3)
    larger = Towers(dataclasses.replace(SMALL, image_widths=(4, 8, 8, 16)))
    start_from(larger, tmp_path)
    torch.testing.assert_close(larger.heads.linear.bias, other.heads.linear.bias, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="shape"):
        start_from(Towers(TowersConfig(buckets=256, text_width=32, text_heads=2)), tmp_path)


def test_augmented_pictures_stay_pictures() -> None:
    rgba = torch.rand(16, 4, 32, 32)
    rgba[:, :3] *= rgba[:, 3:]
    images = augment(rgba, torch.Generator().manual_seed(0))
    assert images.shape == (16, 3, 32, 32)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(images, augment(rgba, torch.Generator().manual_seed(0)))
    nothing = augment(torch.zeros(8, 4, 32, 32), torch.Generator().manual_seed(0), white=1.0)
    assert nothing.mean() > 0.85


def test_recolouring_leaves_white_and_says_what_it_changed() -> None:
    images = torch.rand(200, 3, 8, 8) * 0.8
    images[:, :, 0] = 1.0
    changed_images, changed = recolor(images, torch.Generator().manual_seed(0))
    assert 60 < int(changed.sum()) < 140
    assert torch.equal(changed_images[~changed], images[~changed])
    assert (changed_images[:, :, 0] > 0.999).all()
    assert ((changed_images - images)[changed].abs().amax((1, 2, 3)) > 0.01).float().mean() > 0.9


def test_stray_words_keep_the_others_in_order() -> None:
    rng = np.random.default_rng(0)
    text = "a man with curly hair"
    results = [add_stray_words(text, rng) for _ in range(200)]
    assert 20 < sum(result != text for result in results) < 80
    for result in results:
        rest = iter(result.split(" "))
        assert all(word in rest for word in text.split(" "))


def test_a_real_clip_through_transformers(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path, 512)
    clip = ClipConditioner(folder)
    assert isinstance(clip, Conditioner)
    together = clip.encode_text(["a man", "a much longer text about a man"])
    for z in (together, clip.encode_image(torch.rand(2, 3, 40, 40))):
        assert z.shape == (2, 512)
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(clip.encode_text(["a man"]), together[:1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is empty"):
        clip.encode_text([""])


def test_a_clip_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="projects to 64 numbers; z has 512"):
        ClipConditioner(tiny_clip(tmp_path, 64))


def tiny_clip(folder: Path, width: int) -> Path:
    """A CLIP with random weights and a vocabulary of letters, as transformers stores it."""
    transformers = pytest.importorskip("transformers")
    letters = [chr(i) for i in range(97, 123)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "projection_dim": width}
    text = {**small, "vocab_size": len(names), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder
