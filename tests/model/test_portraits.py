"""Pictures from strangers: good ones come out upright, square and on white; bad ones are errors that name the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rodin_model import portraits
from rodin_model.portraits import cropped, read_portrait, square, to_picture, to_tensor


def half_and_half(width: int = 40, height: int = 40) -> Image.Image:
    """Red above, blue below."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (0, height // 2, width, height))
    return picture


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises a huge picture."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats_are_known_by_their_bytes(tmp_path: Path, kind: str) -> None:
    half_and_half().save(tmp_path / "portrait.txt", kind)
    picture = read_portrait(tmp_path / "portrait.txt")
    assert (picture.mode, picture.size) == ("RGB", (40, 40))
    assert picture.getpixel((20, 5))[0] > 200
    assert picture.getpixel((20, 35))[2] > 200


def test_rotated_photos_are_turned_upright_and_lose_their_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x010E] = "where I live"
    half_and_half().save(tmp_path / "x.jpg", exif=exif)
    picture = read_portrait(tmp_path / "x.jpg")
    assert picture.getpixel((20, 5))[2] > 200
    assert not picture.info
    assert not picture.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 32, 16))
    picture.convert(mode).save(tmp_path / "x.png")
    result = read_portrait(tmp_path / "x.png")
    assert result.getpixel((16, 4)) == (0, 0, 0)
    assert result.getpixel((16, 28)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_other_colour_modes_are_read(tmp_path: Path, mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.new(mode, (32, 32)).save(tmp_path / "x", kind)
    assert read_portrait(tmp_path / "x").mode == "RGB"


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_portrait(tmp_path / "x.webp").getpixel((16, 16)) == (255, 0, 0)


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (10_000, 6_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(width, height))

    def decode(*args: object) -> None:
        raise AssertionError("the picture was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ValueError, match=r"bomb\.png.*(megapixels|damaged)"):
        read_portrait(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("dear diary")
    with pytest.raises(ValueError, match=r"notes\.png is not a picture"):
        read_portrait(tmp_path / "notes.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.jpg is not a picture"):
        read_portrait(tmp_path / "empty.jpg")
    half_and_half().save(tmp_path / "x.gif")
    with pytest.raises(ValueError, match=r"x\.gif is not a picture"):
        read_portrait(tmp_path / "x.gif")
    with pytest.raises(FileNotFoundError, match="nobody"):
        read_portrait(tmp_path / "nobody.png")
    with pytest.raises(FileNotFoundError):
        read_portrait(tmp_path)
    Image.new("RGB", (15, 40)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png.*at least 16 x 16"):
        read_portrait(tmp_path / "small.png")


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_and_half().save(tmp_path / "x.png")
    monkeypatch.setattr(portraits, "MAX_FILE_BYTES", 10)
    with pytest.raises(ValueError, match=r"x\.png has 0 MB"):
        read_portrait(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_pictures_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x", kind)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="x is (a damaged|not a) picture"):
        read_portrait(tmp_path / "x")


@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)),
                                                            min_size=1, max_size=4))
def test_damage_anywhere_gives_a_picture_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, kind: str,
                                                          damage: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "description"
    half_and_half(32, 32).save(path, kind, exif=exif)
    data = bytearray(path.read_bytes())
    for position, value in damage:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        assert read_portrait(path).mode == "RGB"
    except ValueError as error:
        assert str(path) in str(error)


def test_the_middle_square_is_kept() -> None:
    wide = Image.new("RGB", (90, 30), "white")
    wide.paste((0, 0, 0), (30, 0, 60, 30))
    assert np.asarray(square(wide, 30)).max() == 0
    tall = wide.rotate(90, expand=True)
    assert np.asarray(square(tall, 30)).max() == 0
    assert square(tall, 64).size == (64, 64)


def test_tensors_and_pictures_are_inverse() -> None:
    values = np.random.default_rng(1).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    tensor = to_tensor(Image.fromarray(values), 24)
    assert tensor.shape == (3, 24, 24)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(np.asarray(to_picture(tensor.permute(1, 2, 0))), values)
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        to_picture(torch.zeros(3, 8, 8))
    assert np.asarray(to_picture(torch.tensor([[[-1.0, 0.5, 2.0]]]))).tolist() == [[[0, 128, 255]]]


def test_a_crop_is_the_square_that_was_asked_for_white_outside() -> None:
    picture = Image.linear_gradient("L").convert("RGB")  # 256 x 256, each row of its own gray
    inside = cropped(picture, 10, 20, 64)
    assert inside.size == (64, 64) and inside.getpixel((0, 0)) == (20, 20, 20)
    over = cropped(picture, -16, 200, 96)
    assert over.getpixel((0, 0)) == (255, 255, 255) and over.getpixel((16, 0)) == (200, 200, 200)
    assert over.getpixel((50, 95)) == (255, 255, 255)
    for wrong in ((0, 0, 8), (256, 0, 64), (-64, 0, 64)):
        with pytest.raises(ValueError, match="lie on the picture of 256 x 256"):
            cropped(picture, *wrong)
