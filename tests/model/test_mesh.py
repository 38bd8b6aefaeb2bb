"""Meshes of fields whose surface is known: right place, outward, closed, coloured, marked, readable by others."""

from __future__ import annotations

import builtins
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from rodin_model import mesh
from rodin_model.mesh import THRESHOLD, Mesh, export, extract_mesh, mesh_bytes
from rodin_model.provenance import SOURCE_TYPE, Mark


class Balls:
    """A field with an avatar's two questions: density exp-decaying out of balls (center, radius), red where x > 0."""

    def __init__(self, *balls: tuple[tuple[float, float, float], float], hollow: float = 0.0) -> None:
        self.balls, self.hollow = balls, hollow

    def density(self, points: Tensor) -> Tensor:
        """[..., 3] -> [...]."""
        distance = torch.stack([(points - torch.tensor(c)).norm(dim=-1) - r for c, r in self.balls]).amin(0)
        if self.hollow:
            distance = torch.maximum(distance, self.hollow - points.norm(dim=-1))
        return THRESHOLD * torch.exp(-20 * distance)

    def color(self, points: Tensor) -> Tensor:
        """[..., 3] -> [..., 3]: (1 if x > 0 else 0, 0.5, distance from the origin)."""
        return torch.stack([(points[..., 0] > 0).float(), torch.full_like(points[..., 0], 0.5),
                            points.norm(dim=-1)], -1)


@pytest.fixture(scope="module")
def ball() -> Mesh:
    return extract_mesh(Balls(((0.1, 0.2, -0.1), 0.6)), 48)  # type: ignore[arg-type]


def test_a_ball_comes_out_round_closed_and_outward(ball: Mesh) -> None:
    away = ball.vertices - np.array([0.1, 0.2, -0.1], dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(away, axis=1), 0.6, atol=2e-3)
    assert ball.volume() == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)
    assert (np.einsum("ij,ij->i", away / 0.6, ball.normals()) > 0.98).all()
    assert trimesh.Trimesh(ball.vertices, ball.faces, process=False).is_watertight
    assert (ball.vertices.dtype, ball.faces.dtype, ball.colors.dtype) == (np.float32, np.int32, np.float32)


def test_colours_are_asked_just_under_the_surface(ball: Mesh) -> None:
    right = ball.vertices[:, 0] > 0.05
    assert (ball.colors[right, 0] == 1).all()
    assert (ball.colors[ball.vertices[:, 0] < -0.05, 0] == 0).all()
    center = extract_mesh(Balls(((0.0, 0.0, 0.0), 0.6)), 48)  # type: ignore[arg-type]
    np.testing.assert_allclose(center.colors[:, 2], 0.6 - 0.5 * 2 / 47, atol=3e-3)


def test_a_body_cut_by_the_box_is_closed_there() -> None:
    cut = extract_mesh(Balls(((0.0, -1.0, 0.0), 0.7)), 40)  # type: ignore[arg-type]
    assert cut.vertices[:, 1].min() == -1
    assert trimesh.Trimesh(cut.vertices, cut.faces, process=False).is_watertight
    assert cut.volume() == pytest.approx(2 / 3 * math.pi * 0.7**3, rel=0.05)


def test_crumbs_and_cavities_are_left_out_but_parts_stay() -> None:
    crumb = ((0.9, 0.9, 0.9), 0.05)
    ear = ((0.8, 0.0, 0.0), 0.15)
    field = Balls(((0.0, 0.0, 0.0), 0.5), ear, crumb, hollow=0.3)
    result = extract_mesh(field, 64, min_share=0.002)  # type: ignore[arg-type]
    pieces = trimesh.Trimesh(result.vertices, result.faces, process=False).split()
    assert sorted(round(float(piece.centroid[0]), 1) for piece in pieces) == [0.0, 0.8]
    assert result.volume() == pytest.approx(4 / 3 * math.pi * (0.5**3 + 0.15**3), rel=0.02)


def test_emptiness_and_odd_numbers_are_clear_errors() -> None:
    far = Balls(((9.0, 9.0, 9.0), 0.1))
    with pytest.raises(ValueError, match="no surface: its density is nowhere above 10"):
        extract_mesh(far, 16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resolution must lie between 16 and 512; got 4096"):
        extract_mesh(far, 4096)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must be a positive"):
        extract_mesh(far, 16, -1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_other_readers_see_the_same_mesh(ball: Mesh, kind: str) -> None:
    data = mesh_bytes(ball, kind, Mark("mini"))
    read = trimesh.load(io.BytesIO(data), file_type=kind, force="mesh", process=False)
    assert read.volume == pytest.approx(ball.volume(), rel=1e-4)
    np.testing.assert_allclose(np.asarray(read.vertices), ball.vertices, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(read.faces), ball.faces)
    assert SOURCE_TYPE.encode() in data
    assert b"settings" not in data


def test_obj_and_ply_store_the_colours(ball: Mesh) -> None:
    for kind in ("obj", "ply"):
        read = trimesh.load(io.BytesIO(mesh_bytes(ball, kind, Mark())), file_type=kind, process=False)
        np.testing.assert_allclose(read.visual.vertex_colors[:, :3] / 255, ball.colors, atol=0.01)


def glb_document(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary part of a glb, with the lengths in its headers checked."""
    assert data[:4] == b"glTF"
    assert int.from_bytes(data[8:12], "little") == len(data)
    length = int.from_bytes(data[12:16], "little")
    assert data[16:20] == b"JSON"
    rest = data[20 + length:]
    assert rest[4:8] == b"BIN\0"
    assert int.from_bytes(rest[:4], "little") == len(rest) - 8
    assert length % 4 == 0
    return json.loads(data[20:20 + length]), rest[8:]


def test_a_glb_is_marked_unlit_and_linear(ball: Mesh) -> None:
    document, binary = glb_document(mesh_bytes(ball, "glb", Mark("mini", {"seed": 3})))
    assert document["asset"]["extensions"]["KHR_xmp_json_ld"] == {"packet": 0}
    packet = document["extensions"]["KHR_xmp_json_ld"]["packets"][0]
    assert packet["Iptc4xmpExt:DigitalSourceType"] == SOURCE_TYPE
    assert json.loads(document["asset"]["extras"]["settings"]) == {"seed": 3}
    assert set(document["extensionsUsed"]) == {"KHR_xmp_json_ld", "KHR_materials_unlit"}
    assert "rodin" in document["asset"]["generator"]
    view = document["bufferViews"][3]
    colors = np.frombuffer(binary[view["byteOffset"]:view["byteOffset"] + view["byteLength"]], "<u2").reshape(-1, 4)
    assert colors[0, 1] == round(65535 * ((0.5 + 0.055) / 1.055) ** 2.4)
    assert (colors[:, 3] == 65535).all()
    assert binary[:4] == ball.faces[0, :1].astype("<u4").tobytes()


def test_export_writes_what_the_name_says(tmp_path: Path) -> None:
    field = Balls(((0.0, 0.0, 0.0), 0.5))
    assert export(field, tmp_path / "a.GLB", resolution=16) == tmp_path / "a.GLB"  # type: ignore[arg-type]
    assert (tmp_path / "a.GLB").read_bytes()[:4] == b"glTF"
    with pytest.raises(ValueError, match=r"must end in \.glb, \.obj or \.ply; got 'a\.fbx'"):
        export(field, tmp_path / "a.fbx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be"):
        mesh_bytes(extract_mesh(field, 16), "stl", Mark())  # type: ignore[arg-type]


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_skimage(name: str, *args: Any) -> Any:
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_skimage)
    with pytest.raises(ImportError, match=r"mesh export needs pip install 'rodin\[mesh\]'"):
        mesh.extract_mesh(Balls(((0.0, 0.0, 0.0), 0.5)), 16)  # type: ignore[arg-type]
