"""The avatar as a value: three feature planes, the decoder that reads them, and every convention that they need.

An avatar knows how to be looked at (`render`, `turntable`), asked (`density`, `color`), stored (`save`, `load`) and
turned into a mesh (`export`). The planes fill the box [-1, 1]^3.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import RODIN, OccupancyGrid, Rendered, TinyDecoder, render_triplane, sample_triplane

from . import checkpoints
from .cameras import Camera, box_near_far, turntable
from .decoder import copy_decoder, fill_decoder, new_decoder

if TYPE_CHECKING:
    from .refiner import Refiner

#: Written into every avatar file; a reader refuses files of another format.
FORMAT = "rodin-avatar-1"
#: Rays and points that go through the renderer at once: bounds memory, changes no result.
CHUNK = 65536
#: Cells of the occupancy grid along each axis; each is looked at once, and grows by one cell in all directions.
OCCUPANCY = 64
#: What of a ray's light files do without: a quarter of one of their 255 levels.
UNSEEN = 1e-3


@dataclass(frozen=True, eq=False)
class Avatar:
    """A head avatar: `planes` [3, C, H, W] float, a `decoder` of C features, and how the planes are read.

    layout, reduce, align_corners and padding_mode mean what they mean in `rodin_kernels.sample_triplane`. `metadata` is
    free: JSON values and tensors (prompt, seed, z, ...) that travel with the file. Wrong shapes are a ValueError.
    """

    planes: Tensor
    decoder: TinyDecoder
    layout: tuple[str, str, str] = RODIN
    reduce: str = "sum"
    align_corners: bool = False
    padding_mode: str = "zeros"
    metadata: dict[str, Any] = field(default_factory=dict)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.planes, Tensor) or self.planes.ndim != 4 or self.planes.shape[0] != 3:
            shape = tuple(self.planes.shape) if isinstance(self.planes, Tensor) else type(self.planes).__name__
            raise ValueError(f"planes must be a tensor [3, C, H, W]; got {shape}")
        expected = self.planes.shape[1] * (3 if self.reduce == "concat" else 1)
        reads = self.decoder.choices.in_features
        if reads != expected:
            raise ValueError(f"the decoder reads {reads} features, but planes of "
                             f"{self.planes.shape[1]} channels with reduce={self.reduce!r} give {expected}")

    @property
    def conventions(self) -> dict[str, Any]:
        """How the planes are sampled: the keyword arguments that every operator of `rodin_kernels` takes."""
        return {"layout": tuple(self.layout), "reduce": self.reduce, "align_corners": self.align_corners,
                "padding_mode": self.padding_mode}

    @property
    def device(self) -> torch.device:
        """Where the planes are."""
        return self.planes.device

    def to(self, device: torch.device | str) -> Avatar:
        """The same avatar on another device; planes become float32, the caller's decoder is left where it is."""
        metadata = {name: value.to(device) if isinstance(value, Tensor) else value
                    for name, value in self.metadata.items()}
        return dataclasses.replace(self, planes=self.planes.to(device, torch.float32),
                                   decoder=copy_decoder(self.decoder, device), metadata=metadata)

    def occupancy(self) -> OccupancyGrid:
        """Where the avatar is, without specks apart from it: built once, then kept; `render` steps only through it."""
        if "occupancy" not in self._cache:
            grid = OccupancyGrid.from_planes(self._batch(), self.decoder, OCCUPANCY, samples_per_cell=1,
                                             **self.conventions)
            self._cache["occupancy"] = OccupancyGrid(largest_piece(grid.cells))
        return self._cache["occupancy"]

    @torch.no_grad()
    def render(self, camera: Camera, *, background: float | Sequence[float] = 1.0, num_samples: int = 96,
               num_importance: int = 0, outputs: Sequence[str] = ("rgb", "depth", "opacity"),
               use_occupancy: bool = True, stop_below: float = 0.0, refine: Refiner | None = None) -> Rendered:
        """Look at the avatar: tensors of shape [H, W, ...] for every name in `outputs`, None for the others.

        rgb in [0, 1] lies on `background` (one number or three); depth is the expected distance along the unit ray, not
        divided by the opacity. A ray ends where less than `stop_below` of its light is left; with `UNSEEN` a CPU takes
        a third less time. For gradients call `rodin_kernels.render_triplane` itself. With `refine`, `camera` is that of
        the refined picture: rays are marched for fewer pixels, see `rodin_model.refiner.Refiner.render`.
        """
        if refine is not None:
            return refine.render(self, camera, background=background, outputs=outputs, num_samples=num_samples,
                                 num_importance=num_importance, use_occupancy=use_occupancy, stop_below=stop_below)
        origins, directions = camera.rays(self.device)
        near, far = box_near_far(origins, directions)
        colors = self.decoder.choices.out_features
        behind = torch.as_tensor(background, dtype=torch.float32, device=self.device).expand(colors)
        shared = {**self.conventions, "num_samples": num_samples, "num_importance": num_importance,
                  "background": behind, "outputs": tuple(outputs), "stop_below": stop_below,
                  "occupancy": self.occupancy() if use_occupancy else None}
        planes = self._batch()
        # whole rows of tiles, which kernels take as pictures
        size = max(CHUNK // (8 * camera.width), 1) * 8 * camera.width
        parts = [render_triplane(planes, origins[None, a:a + size], directions[None, a:a + size], self.decoder,
                                 near=near[None, a:a + size], far=far[None, a:a + size], image_width=camera.width,
                                 **shared)
                 for a in range(0, origins.shape[0], size)]
        return _stack(parts, (camera.height, camera.width))

    def picture(self, camera: Camera, **options: Any) -> Tensor:
        """The colours alone, [H, W, 3] in [0, 1]; `options` go to `render`."""
        rgb = self.render(camera, outputs=("rgb",), **options).rgb
        assert rgb is not None
        return rgb

    def turntable(self, n: int = 24, size: int = 256, *, pitch: float = 5.0,
                  progress: Callable[[int, int], None] | None = None, **options: Any) -> Tensor:
        """`n` pictures once around the avatar: [n, size, size, 3] in [0, 1]; `options` go to `render`."""
        frames = []
        for index, camera in enumerate(turntable(n, size, pitch=pitch)):
            frames.append(self.picture(camera, **options))
            if progress is not None:
                progress(index + 1, n)
        return torch.stack(frames)

    def density(self, points: Tensor) -> Tensor:
        """Density at `points` [..., 3] in the box: [...], in 1/length, at least 0; 0 outside the box."""
        return self.decode(points)[0]

    def color(self, points: Tensor) -> Tensor:
        """Colour at `points` [..., 3]: [..., 3] in [0, 1]; meaningful at and near the surface."""
        return self.decode(points)[1]

    @torch.no_grad()
    def features(self, points: Tensor) -> Tensor:
        """What the planes hold at `points` [..., 3] in the box: [..., C], before the decoder; 0 outside the box."""
        flat = points.reshape(-1, 3).to(self.device, torch.float32)
        found = torch.cat([sample_triplane(self._batch(), part[None], **self.conventions)[0]
                           for part in flat.split(4 * CHUNK)])
        return (found * (flat.abs() <= 1).all(-1, keepdim=True)).reshape(*points.shape[:-1], found.shape[-1])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with planes, decoder weights, conventions and metadata, atomically."""
        tensors = {"planes": self.planes.detach().contiguous()}
        tensors |= {f"decoder.{name}": value.detach().contiguous()
                    for name, value in self.decoder.state_dict().items()}
        tensors |= {f"metadata.{name}": value.detach().contiguous()
                    for name, value in self.metadata.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in self.metadata.items() if not isinstance(value, Tensor)}
        facts = {"format": FORMAT, "box": [-1.0, 1.0], **self.conventions, "layout": list(self.layout),
                 "decoder": self.decoder.config(), "metadata": plain}
        checkpoints.save_tensors(path, tensors, {"rodin": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Avatar:
        """Read what `save` wrote; a file of another kind is a ValueError that says so."""
        tensors, header = checkpoints.load_tensors(path, device)
        facts = json.loads((header or {}).get("rodin", "{}"))
        if facts.get("format") != FORMAT:
            raise ValueError(f"{path} is not an avatar: expected format {FORMAT!r}, got {facts.get('format')!r}")
        decoder = new_decoder(facts["decoder"]).to(device)
        fill_decoder(decoder, tensors, str(path))
        extra = {name.removeprefix("metadata."): value for name, value in tensors.items()
                 if name.startswith("metadata.")}
        return cls(tensors["planes"], decoder, tuple(facts["layout"]), facts["reduce"], facts["align_corners"],
                   facts["padding_mode"], {**facts["metadata"], **extra})

    def export(self, path: str | Path, **options: Any) -> Path:
        """Write a coloured mesh (glb, obj or ply by the name's ending); `options` go to `rodin_model.mesh.export`."""
        from . import mesh  # mesh imports this module for its types
        return mesh.export(self, path, **options)

    def _batch(self) -> Tensor:
        """The planes as a batch of one [1, 3, C, H, W] float32, stored channels last, which all fast paths want."""
        if "batch" not in self._cache:
            planes = self.planes.detach().to(torch.float32).contiguous(memory_format=torch.channels_last)
            self._cache["batch"] = planes[None]
        return self._cache["batch"]

    @torch.no_grad()
    def decode(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """`density` and `color` at `points` [..., 3], from one look."""
        flat = points.reshape(-1, 3).to(self.device, torch.float32)
        sigma, rgb = [], []
        for part in flat.split(4 * CHUNK):
            features = sample_triplane(self._batch(), part[None], **self.conventions)[0]
            s, c = self.decoder(features)
            inside = (part.abs() <= 1).all(-1)
            sigma.append(torch.where(inside, s, torch.zeros_like(s)))
            rgb.append(c)
        return torch.cat(sigma).reshape(points.shape[:-1]), torch.cat(rgb).reshape(*points.shape[:-1], rgb[0].shape[-1])


def largest_piece(cells: Tensor) -> Tensor:
    """Of occupied cells, bool [1, G, G, G], G even, the largest connected piece; blocks of 2^3 cells connect as one.

    Every block starts with a number of its own and takes the largest among its 26 neighbours until nothing changes.
    """
    blocks = F.max_pool3d(cells.float(), 2)
    names = blocks * torch.arange(1, blocks.numel() + 1, device=cells.device).view_as(blocks)
    while True:
        spread = names
        for window in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
            spread = F.max_pool3d(spread, window, 1, [side // 2 for side in window])
        spread = spread * blocks
        if torch.equal(spread, names):
            break
        names = spread
    sizes = names.flatten().long().bincount()
    sizes[0] = 0
    return cells & F.interpolate((names == sizes.argmax())[None].float(), scale_factor=2)[0].bool()


def _stack(parts: Sequence[Rendered], size: tuple[int, int]) -> Rendered:
    """Join chunks of [1, rays, ...] and give every output that is there the shape [H, W, ...]."""
    joined = {}
    for name in parts[0]._fields:
        values = [getattr(part, name) for part in parts]
        joined[name] = None if values[0] is None else torch.cat(values, 1)[0].unflatten(0, size)
    return Rendered(**joined)
