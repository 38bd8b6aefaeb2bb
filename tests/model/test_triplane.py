"""The avatar value: what it refuses, what it renders, and that a file gives back exactly what went in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rodin_kernels import RODIN, RODINHD, TinyDecoder, sample_triplane
from rodin_model import checkpoints
from rodin_model.cameras import Camera
from rodin_model.decoder import load_decoder, new_decoder, save_decoder
from rodin_model.triplane import UNSEEN, Avatar, largest_piece


def make_avatar(seed: int = 0, channels: int = 4, size: int = 8, **choices: object) -> Avatar:
    random = torch.Generator().manual_seed(seed)
    planes = torch.randn(3, channels, size, size, generator=random)
    features = channels * (3 if choices.get("reduce") == "concat" else 1)
    decoder = new_decoder({"in_features": features, "hidden": [8], "density": "softplus"}, seed)
    return Avatar(planes, decoder, **choices)


def test_a_file_gives_back_exactly_what_went_in(tmp_path: Path) -> None:
    before = make_avatar(1, layout=RODINHD, reduce="concat", align_corners=True, padding_mode="border",
                         metadata={"prompt": "a head", "seed": 7, "z": torch.randn(5)})
    before.save(tmp_path / "a.safetensors")
    after = Avatar.load(tmp_path / "a.safetensors")
    assert torch.equal(after.planes, before.planes)
    assert after.conventions == before.conventions
    assert after.metadata["prompt"] == "a head"
    assert after.metadata["seed"] == 7
    assert torch.equal(after.metadata["z"], before.metadata["z"])
    for name, value in before.decoder.state_dict().items():
        assert torch.equal(after.decoder.state_dict()[name], value)
    camera = Camera.orbit(30, 10, 12)
    for first, second in zip(before.render(camera), after.render(camera), strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


def test_every_convention_is_in_the_file(tmp_path: Path) -> None:
    make_avatar().save(tmp_path / "a.safetensors")
    _, header = checkpoints.load_tensors(tmp_path / "a.safetensors")
    for word in ('"layout": ["xy", "zx", "yz"]', '"reduce": "sum"', '"align_corners": false',
                 '"padding_mode": "zeros"', '"box": [-1.0, 1.0]', '"density": "softplus"'):
        assert word in header["rodin"]


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    checkpoints.save_tensors(tmp_path / "b.safetensors", {"planes": torch.zeros(3, 4, 8, 8)})
    with pytest.raises(ValueError, match="is not an avatar"):
        Avatar.load(tmp_path / "b.safetensors")


def test_shapes_that_do_not_fit_are_refused() -> None:
    decoder = TinyDecoder(4, (8,))
    with pytest.raises(ValueError, match=r"planes must be a tensor \[3, C, H, W\]"):
        Avatar(torch.zeros(4, 8, 8), decoder)
    with pytest.raises(ValueError, match="reads 4 features"):
        Avatar(torch.zeros(3, 5, 8, 8), decoder)


def test_pictures_have_the_size_of_the_camera_and_lie_on_the_background() -> None:
    avatar, camera = make_avatar(), Camera.orbit(0, 0, 16, radius=6.0).resized(20, 12)
    seen = avatar.render(camera, background=(0.2, 0.4, 0.6))
    assert seen.rgb.shape == (12, 20, 3)
    assert seen.depth.shape == seen.opacity.shape == (12, 20)
    empty = seen.opacity[0, 0] == 0
    assert empty
    torch.testing.assert_close(seen.rgb[0, 0], torch.tensor([0.2, 0.4, 0.6]))
    black, white = (avatar.render(camera, background=value).rgb for value in (0.0, 1.0))
    torch.testing.assert_close(white - black, (1 - seen.opacity)[..., None].expand(-1, -1, 3), atol=1e-5, rtol=0)


def test_the_occupancy_changes_no_picture() -> None:
    avatar, camera = make_avatar(), Camera.orbit(50, 10, 12)
    with_grid, without = avatar.render(camera), avatar.render(camera, use_occupancy=False)
    torch.testing.assert_close(with_grid.rgb, without.rgb, atol=0.02, rtol=0)


def test_rays_may_end_where_little_light_is_left() -> None:
    avatar, camera = make_avatar(), Camera.orbit(50, 10, 12)
    whole, ended = avatar.render(camera), avatar.render(camera, stop_below=0.3)
    assert whole.opacity.max() > 0.8, "too thin to show anything"
    gone = whole.opacity - ended.opacity
    assert gone.min() > -1e-6 and 0.01 < gone.max() < 0.3
    nearly = avatar.render(camera, stop_below=UNSEEN)
    torch.testing.assert_close(nearly.rgb, whole.rgb, atol=UNSEEN, rtol=0)
    frames = avatar.turntable(1, 12, pitch=10.0, stop_below=0.3)
    assert torch.equal(frames[0], avatar.picture(Camera.orbit(0, 10, 12), stop_below=0.3))


def test_a_turntable_is_a_row_of_pictures() -> None:
    calls: list[tuple[int, int]] = []
    frames = make_avatar().turntable(3, 8, num_samples=8, progress=lambda now, of: calls.append((now, of)))
    assert frames.shape == (3, 8, 8, 3)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_density_and_color_are_those_of_the_decoder_and_empty_outside() -> None:
    avatar = make_avatar()
    points = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
    features = sample_triplane(avatar.planes[None], points.reshape(1, -1, 3), layout=RODIN)[0]
    sigma, rgb = avatar.decoder(features)
    torch.testing.assert_close(avatar.density(points), sigma.detach().view(2, 5))
    torch.testing.assert_close(avatar.color(points), rgb.detach().view(2, 5, 3))
    assert float(avatar.density(torch.tensor([[1.5, 0.0, 0.0]]))) == 0.0
    assert avatar.density(torch.zeros(0, 3)).shape == (0,)


def test_a_copy_on_a_device_owns_its_decoder() -> None:
    avatar = make_avatar()
    copy = avatar.to("cpu")
    assert copy.decoder is not avatar.decoder
    assert torch.equal(copy.density(torch.zeros(1, 3)), avatar.density(torch.zeros(1, 3)))


def test_a_decoder_folder_gives_back_decoder_mean_and_facts(tmp_path: Path) -> None:
    decoder, mean = new_decoder({"in_features": 4, "hidden": [8]}, 3), torch.randn(3, 4, 8, 8)
    save_decoder(tmp_path / "d", decoder, mean, {"reduce": "sum"})
    found, planes, facts = load_decoder(tmp_path / "d")
    assert torch.equal(planes, mean)
    assert facts == {"reduce": "sum"}
    for name, value in decoder.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    checkpoints.save_tensors(tmp_path / "d" / "decoder.safetensors", {"mean": mean})
    with pytest.raises(ValueError, match="lacks the tensor"):
        load_decoder(tmp_path / "d")


def test_a_new_decoder_follows_from_its_seed_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (new_decoder({"in_features": 4}, 9) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_specks_apart_from_the_avatar_are_left_out() -> None:
    """Two bodies: the larger stays whole, diagonal neighbours included; nothing at all stays nothing."""
    cells = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    body = cells.clone()
    body[:, 2:8, 2:8, 2:8] = True
    body[:, 8, 8, 8] = True
    speck = cells.clone()
    speck[:, 12:14, 12:14, 12:14] = True
    assert torch.equal(largest_piece(body | speck), body)
    assert not largest_piece(cells).any()
