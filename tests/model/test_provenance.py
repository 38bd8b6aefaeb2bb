"""The mark is in the raw bytes of every format, whatever reads them; prompt and seed are there only if asked for."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from rodin_model.model_index import SHIPPED
from rodin_model.provenance import (
    SOURCE_TYPE,
    Mark,
    animation_bytes,
    comment_lines,
    glb_parts,
    picture_bytes,
    xmp_packet,
)

SETTINGS = {"prompt": 'a man & a "woman" <3 ü', "seed": 7}


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (20, 16), (30 * i, 0, 255 - 30 * i)) for i in range(count)]


def packet_in(data: bytes) -> ElementTree.Element:
    """The XMP packet inside the bytes of a file, parsed as XML; asserts that there is exactly one."""
    found = re.findall(rb"<x:xmpmeta.*?</x:xmpmeta>", data, re.DOTALL)
    assert len(found) == 1
    return ElementTree.fromstring(found[0])


def source_type(root: ElementTree.Element) -> str:
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    values = [element.attrib[name] for element in root.iter() if name in element.attrib]
    assert len(values) == 1
    return values[0]


def test_the_packet_is_xml_and_names_the_source_type() -> None:
    packet = xmp_packet(Mark("a <model> & more", SETTINGS))
    root = packet_in(packet)
    assert source_type(root) == SOURCE_TYPE
    assert "trainedAlgorithmicMedia" in SOURCE_TYPE
    description = "".join(root.itertext())
    assert json.loads(description.partition("Settings: ")[2]) == SETTINGS


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_pictures_carry_the_mark_and_nothing_private(kind: str) -> None:
    picture = frames(1)[0]
    picture.info = {"comment": b"GPS 52.5 13.4", "exif": b"Exif\0\0secret", "icc_profile": b"secret"}
    data = picture_bytes(picture, Mark("mini"), kind)
    assert source_type(packet_in(data)) == SOURCE_TYPE
    assert b"GPS" not in data
    assert b"secret" not in data
    assert b"Settings" not in data
    assert Image.open(io.BytesIO(data)).size == (20, 16)
    embedded = picture_bytes(picture, Mark("mini", SETTINGS), kind)
    assert "Settings" in "".join(packet_in(embedded).itertext())


@pytest.mark.parametrize("kind", ["webp", "gif", "png"])
def test_animations_carry_the_mark_and_all_frames(kind: str) -> None:
    data = animation_bytes(frames(8), Mark("mini"), kind, seconds=2.0)
    assert source_type(packet_in(data)) == SOURCE_TYPE
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 8
        assert animation.info["loop"] == 0
        colours = []
        for index in range(8):
            animation.seek(index)
            animation.load()
            assert animation.info["duration"] == 250
            colours.append(animation.convert("RGB").getpixel((10, 8))[0])
    assert colours == sorted(colours)
    assert max(abs(value - 30 * i) for i, value in enumerate(colours)) < 12


def test_a_gif_is_walked_block_by_block_to_its_end() -> None:
    data = animation_bytes(frames(2), Mark("mini", SETTINGS), "gif")
    start, end = data.index(b"XMP DataXMP") + 11, len(data) - 2
    assert b"trainedAlgorithmicMedia" in data[start:end]
    # wherever a reader that skips blocks by their first byte comes from, it must reach the terminator
    for position in range(start, data.index(b"<?xpacket end")):
        while data[position]:
            position += data[position] + 1
        assert position == end
    assert data[end - 257:] == bytes([1, *range(255, -1, -1), 0, 0x3b])


def test_a_png_keeps_the_packet_in_the_standard_chunk() -> None:
    data = picture_bytes(frames(1)[0], Mark("mini"))
    chunk = data.index(b"iTXtXML:com.adobe.xmp\x00")
    assert chunk < data.index(b"IDAT")


def test_the_same_picture_gives_the_same_bytes() -> None:
    for kind in ("png", "webp", "gif"):
        assert animation_bytes(frames(3), Mark("m"), kind) == animation_bytes(frames(3), Mark("m"), kind)


def test_the_parts_of_a_glb() -> None:
    parts = glb_parts(Mark("mini"))
    assert parts["extensions"]["KHR_xmp_json_ld"]["packets"][0]["Iptc4xmpExt:DigitalSourceType"] == SOURCE_TYPE
    assert parts["asset"]["extensions"]["KHR_xmp_json_ld"] == {"packet": 0}
    assert parts["extensionsUsed"] == ["KHR_xmp_json_ld"]
    assert parts["asset"]["extras"]["digital_source_type"] == SOURCE_TYPE
    assert "settings" not in parts["asset"]["extras"]


def test_comment_lines_are_single_lines() -> None:
    lines = comment_lines(Mark("two\nlines", {"prompt": "three\r\nlines\u2028more"}))
    assert any(SOURCE_TYPE in line for line in lines)
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        picture_bytes(frames(1)[0], Mark(), "tiff")
    with pytest.raises(ValueError, match="0 frames"):
        animation_bytes([], Mark())
    with pytest.raises(ValueError, match="jpeg cannot hold 2 frames"):
        animation_bytes(frames(2), Mark(), "jpeg")


def test_the_sheets_beside_the_shipped_model_are_marked() -> None:
    sheets = sorted((SHIPPED / "samples").iterdir())
    assert len(sheets) >= 5
    assert [sheet.name for sheet in sheets if SOURCE_TYPE.encode() not in sheet.read_bytes()] == []
    for sheet in sheets:
        Image.open(sheet).load()
