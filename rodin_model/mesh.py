"""An avatar as a coloured mesh: density on a grid, marching cubes, colours just under the surface, a marked file.

The world is glTF's own: y up, the face looks along +z, counter-clockwise triangles seen from outside. Light is baked
into the colours, so glb files ask for an unlit material.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rodin_model import checkpoints
from rodin_model.provenance import Mark, comment_lines, glb_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rodin_model.triplane import Avatar

#: Density, in 1/world unit, at which the surface is drawn: on fitted avatars it lies, on average, within 0.001 of the
#: true surface (20 shrinks them by 0.004, 5 swells them by 0.003).
THRESHOLD = 10.0
KINDS = ("glb", "obj", "ply")
_CHUNK = 262_144


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with colours.

    vertices [V, 3] float32 in the box, faces [F, 3] int32 (counter-clockwise from outside), colors [V, 3] float32 in
    [0, 1] as they appear on a screen (sRGB).
    """

    vertices: NDArray[Any]
    faces: NDArray[Any]
    colors: NDArray[Any]

    def volume(self) -> float:
        """Signed volume, sum of v0 . (v1 x v2) / 6 over the faces: positive if normals point outward."""
        return float(_face_volumes(self.vertices, self.faces).sum())

    def normals(self) -> NDArray[Any]:
        """Unit normals of the vertices [V, 3] float32: the faces around each, weighted by their areas."""
        return _vertex_normals(self.vertices, self.faces)


def extract_mesh(avatar: Avatar, resolution: int = 128, threshold: float = THRESHOLD, *,
                 min_share: float = 0.001) -> Mesh:
    """The surface on which the avatar's density is `threshold`, from a grid of resolution^3 points.

    The logarithm of the density is interpolated, because that is what is nearly linear between grid points. Pieces
    that enclose less than `min_share` of the largest one's volume, and cavities, are left out. Colours are asked half a
    grid step under the surface. Raises ValueError where the density is nowhere above the threshold, or for a
    resolution outside 16 to 512; ImportError with the remedy if scikit-image is not there.
    """
    if not 16 <= resolution <= 512:
        raise ValueError(f"resolution must lie between 16 and 512; got {resolution}")
    if not threshold > 0:
        raise ValueError(f"threshold must be a positive density; got {threshold}")
    marching_cubes = _marching_cubes()
    field = _density_grid(avatar, resolution).clamp_min(1e-4 * threshold).div_(threshold).log_()
    if float(field.max()) <= 0:
        raise ValueError(f"the avatar has no surface: its density is nowhere above {threshold:g}")
    # a layer of emptiness all around closes the surface where the body meets the box
    padded = torch.nn.functional.pad(field, (1,) * 6, value=float(np.log(1e-4))).numpy()
    step = 2.0 / (resolution - 1)
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
    vertices = np.clip((vertices - 1) * step - 1, -1, 1).astype(np.float32)
    vertices, faces = _solid_pieces(vertices, faces.astype(np.int32), min_share)
    if len(faces) == 0:
        raise ValueError("the avatar has no surface that encloses anything; try a lower threshold")
    inside = vertices - 0.5 * step * _vertex_normals(vertices, faces)
    colors = avatar.color(torch.from_numpy(inside)).detach().float().clamp(0, 1).cpu().numpy()
    return Mesh(vertices, faces, colors[:, :3])


def export(avatar: Avatar, path: str | os.PathLike[str], *, resolution: int = 128, threshold: float = THRESHOLD,
           mark: Mark | None = None) -> Path:
    """Extract the mesh and write it, marked, as what the name's ending says: .glb, .obj or .ply; returns the path."""
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in KINDS:
        raise ValueError(f"a mesh file must end in .glb, .obj or .ply; got {path.name!r}")
    mesh = extract_mesh(avatar, resolution, threshold)
    checkpoints.write_bytes(path, mesh_bytes(mesh, kind, mark or Mark()))
    return path


def mesh_bytes(mesh: Mesh, kind: str, mark: Mark) -> bytes:
    """The mesh as a marked file of the given kind: "glb", "obj" or "ply" (binary, little-endian)."""
    writers = {"glb": _glb, "obj": _obj, "ply": _ply}
    if kind not in writers:
        raise ValueError(f'kind must be "glb", "obj" or "ply"; got {kind!r}')
    return writers[kind](mesh, mark)


def _marching_cubes() -> Any:
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ImportError("mesh export needs pip install 'rodin[mesh]'") from error
    return marching_cubes


@torch.no_grad()
def _density_grid(avatar: Avatar, resolution: int) -> torch.Tensor:
    """Density at resolution^3 points from -1 to 1 along x, y, z: [R, R, R] float32 on the CPU."""
    axis = torch.linspace(-1, 1, resolution)
    slabs = []
    for x in axis.split(max(1, _CHUNK // resolution**2)):
        points = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), -1)
        slabs.append(avatar.density(points).float().cpu())
    return torch.cat(slabs)


def _face_volumes(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[Any]:
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)) / 6


def _vertex_normals(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[Any]:
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    of_faces = np.cross(b - a, c - a)
    total = np.zeros(vertices.shape, dtype=np.float64)
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, corner], of_faces[:, axis], len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # a vertex whose faces cancel out still needs a unit normal: files with zero normals are invalid
    total[length[:, 0] < 1e-20] = (0.0, 0.0, 1.0)
    return (total / np.where(length < 1e-20, 1.0, length)).astype(np.float32)


def _solid_pieces(vertices: NDArray[Any], faces: NDArray[Any], min_share: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keep connected pieces that enclose enough volume; cavities enclose a negative one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(len(vertices),) * 2)
    count, piece = connected_components(graph, directed=False)
    volume = np.bincount(piece[faces[:, 0]], _face_volumes(vertices, faces), count)
    keep = volume > max(min_share * volume.max(), 0.0)
    faces = faces[keep[piece[faces[:, 0]]]]
    used = np.unique(faces)
    renumber = np.zeros(len(vertices), dtype=np.int32)
    renumber[used] = np.arange(len(used), dtype=np.int32)
    return vertices[used], renumber[faces]


def _glb(mesh: Mesh, mark: Mark) -> bytes:
    """glTF 2.0, binary: one unlit primitive with positions, normals, 16-bit linear colours and 32-bit indices."""
    c = mesh.colors.astype(np.float64)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    rgba = np.concatenate([linear, np.ones((len(c), 1))], 1)
    arrays = [mesh.faces.astype("<u4").reshape(-1, 1), mesh.vertices.astype("<f4"), mesh.normals().astype("<f4"),
              np.round(rgba * 65535).astype("<u2")]
    views, offset = [], 0
    for index, array in enumerate(arrays):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes,
                      "target": 34963 if index == 0 else 34962})
        offset += array.nbytes
    accessors: list[dict[str, Any]] = [
        {"bufferView": 0, "componentType": 5125, "count": len(arrays[0]), "type": "SCALAR"},
        {"bufferView": 1, "componentType": 5126, "count": len(c), "type": "VEC3",
         "min": arrays[1].min(0).tolist(), "max": arrays[1].max(0).tolist()},
        {"bufferView": 2, "componentType": 5126, "count": len(c), "type": "VEC3"},
        {"bufferView": 3, "componentType": 5123, "normalized": True, "count": len(c), "type": "VEC4"}]
    marked = glb_parts(mark)
    document = {
        **marked, "extensionsUsed": [*marked["extensionsUsed"], "KHR_materials_unlit"],
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0, "name": "avatar"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1, "NORMAL": 2, "COLOR_0": 3}, "indices": 0,
                                    "material": 0}]}],
        "materials": [{"name": "baked light", "extensions": {"KHR_materials_unlit": {}},
                       "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}],
        "buffers": [{"byteLength": offset}], "bufferViews": views, "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data = b"".join(array.tobytes() for array in arrays)
    head = b"glTF" + _u32(2) + _u32(12 + 8 + len(text) + 8 + len(data))
    return head + _u32(len(text)) + b"JSON" + text + _u32(len(data)) + b"BIN\0" + data


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _obj(mesh: Mesh, mark: Mark) -> bytes:
    """Wavefront text; vertex colours follow the coordinates, as MeshLab and Blender read them."""
    rows = np.concatenate([mesh.vertices, mesh.colors], 1).tolist()
    lines = [f"# {line}" for line in comment_lines(mark)]
    lines += ["v {:.6f} {:.6f} {:.6f} {:.4f} {:.4f} {:.4f}".format(*row) for row in rows]
    lines += ["f {} {} {}".format(*face) for face in (mesh.faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _ply(mesh: Mesh, mark: Mark) -> bytes:
    """Stanford PLY, binary little-endian, with eight-bit colours."""
    vertex = np.zeros(len(mesh.vertices), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertex["xyz"], vertex["rgb"] = mesh.vertices, np.round(mesh.colors * 255)
    face = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comment_lines(mark)),
              f"element vertex {len(vertex)}", *(f"property float {axis}" for axis in "xyz"),
              *(f"property uchar {name}" for name in ("red", "green", "blue")),
              f"element face {len(face)}", "property list uchar int vertex_indices", "end_header"]
    return ("\n".join(header) + "\n").encode() + vertex.tobytes() + face.tobytes()
