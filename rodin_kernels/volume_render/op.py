"""`render_triplane`: checks, registration with PyTorch, and the choice of the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_flag, check_integer, check_number
from ..launch import resolve_backend
from ..layouts import RODIN, check_layout
from ..triplane_sample.op import sample_triplane
from . import torch_path
from .arguments import check_arguments, is_tiny
from .composite import add_background, sample_pdf
from .coverage import covers, covers_gradient, covers_normals
from .decoder import DecoderConfig, config_from_text, decode, density_of
from .folding import OCCUPIED, decode_folded, fold, folds
from .occupancy import OccupancyGrid
from .rays import Rendered, finite_rays, first_positions, jitter_offsets, jitter_seeds
from .reference import render_triplane_reference
from .torch_path import March, Rays, recording_gradients

#: Samples of all rays up to which training keeps what it computed; beyond, the backward computes it again in chunks.
KEEP_SAMPLES = 1 << 20
#: Samples whose graph the recomputing backward holds at once, and rays of one chunk of importance sampling.
BACKWARD_SAMPLES = 1 << 19
IMPORTANCE_RAYS = 1 << 15


def render_triplane(
    planes: Tensor, origins: Tensor, directions: Tensor, decoder: Callable[..., tuple[Tensor, Tensor]], *,
    near: float | Tensor, far: float | Tensor, num_samples: int, num_importance: int = 0, t: Tensor | None = None,
    jitter: torch.Generator | Sequence[torch.Generator] | int | None = None, background: Tensor | float | None = None,
    occupancy: OccupancyGrid | Tensor | None = None, stop_below: float = 0.0, quadrature: str = "left",
    deltas: str = "world", layout: Sequence[str] = RODIN, reduce: str = "sum", align_corners: bool = False,
    padding_mode: str = "zeros", outputs: Sequence[str] = ("rgb", "depth", "opacity"), image_width: int | None = None,
    backend: str = "auto",
) -> Rendered:
    """Volume-render the field that three planes and a decoder make, along rays.

        p_i = o + t_i d,   tau_i = sigma(p_i) delta_i |d|,   T_i = exp(-sum_{j<i} tau_j),   w_i = T_i (1 - exp(-tau_i))
        rgb = sum w_i c(p_i) + (1 - sum w_i) background,   depth = sum w_i t_i,   opacity = sum w_i

    Samples lie in S equal bins between near and far, each standing for its bin (delta = width of the bin). Explicit
    `t` and importance samples stand for what follows them: delta_i = t_{i+1} - t_i, the last reaching to far. With
    quadrature="midpoint" each pair of neighbours is one interval, with the means of their densities, colours and t;
    with "raw_midpoint" (EG3D, OpenLRM) its density is that of the mean of what comes before the density's activation,
    which where nothing is counts as -infinity. Points outside the box [-1, 1]^3 or in empty cells of `occupancy` are
    empty (density and colour 0); so are rays with numbers that are not finite.

    Args:
        planes: [B, 3, C, H, W], any strides; B scenes, rendered by the same decoder.
        origins, directions: [B, R, 3], in the box's coordinates; directions of any length.
        decoder: a `TinyDecoder`, or any callable (features [..., C'], directions [..., 3]) -> (density [...],
            rgb [..., F]); others than TinyDecoder run eagerly and keep every kept sample's graph when training.
        near, far: a number or [B, R] (anything that expands to it), in units of t. If far <= near a ray has no length.
        num_samples: S, at least 0. num_importance: N >= 0 further samples, drawn from the weights of a first pass that
            has no gradient; needs at least one first sample (two for midpoints).
        t: [B, R, S], ascending; `num_samples` must then be S.
        jitter: a generator (one for each scene, or one for all) or an integer seed: samples lie anywhere in their bin
            and importance samples in their quantile. Each ray's numbers depend on its seed, scene and index alone.
        background: a number, [F], or anything that expands to [B, R, F]; None is 0.
        occupancy: an `OccupancyGrid`, or its bool cells [B or 1, G, G, G]. Cells left out change the result by what
            they hold; samples within 4e-6 of a cell's face may count to either side.
        stop_below: a ray ends before the first sample whose transmittance T_i is under this, 0 to 1; forward and
            backward alike. 0 never ends one.
        quadrature: "left", "midpoint" or, for a `TinyDecoder`, "raw_midpoint".
        deltas: "world", or "t" (TripoSR): tau_i = sigma(p_i) delta_i, the length of the directions left out.
        layout, reduce, align_corners, padding_mode: as for `sample_triplane`.
        outputs: any of "rgb", "depth", "opacity", "normals" (sum w n), "weights" (with their t).
        image_width: columns of the picture whose pixels the rays are, row by row; changes no result, but lets kernels
            take square tiles of neighbours. None for any other list of rays.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        `Rendered` with the asked fields: rgb [B, R, F], depth [B, R], opacity [B, R], normals [B, R, 3], weights and t
        [B, R, S']; float32 (float64 for float64 planes).

    Differentiable in planes, decoder, origins, directions, near, far, t and background. float16 and bfloat16 are
    computed in float32, float64 in float64. The torch path packs what is occupied, works through rays in chunks, and
    does the decoder's first layer on the planes where that is less work (`folding.folds`); above 2^20 samples, and
    under torch.compile, its backward computes again instead of keeping (once differentiable). The triton path is fused
    where `coverage.covers` says so: the decoder's matrix products then take operands of the planes' type (float32
    exactly), and the backward, once differentiable, needs memory for rays only. Everything else goes through the torch
    path there as well.

    Raises:
        TypeError, ValueError: an argument is not of the kind, shape or range above; the message names it.
        RuntimeError: the backend cannot run here.
    """
    cells = occupancy.cells if isinstance(occupancy, OccupancyGrid) else occupancy
    outputs = check_arguments(planes, origins, directions, decoder, near, far, num_samples, num_importance, t, cells,
                              quadrature, deltas, reduce, padding_mode, outputs)
    check_number("stop_below", stop_below, least=0, most=1)
    check_flag("align_corners", align_corners)
    if image_width is not None and origins.shape[1] % check_integer("image_width", image_width, least=1):
        raise ValueError(f"image_width must divide the {origins.shape[1]} rays of a scene; got {image_width}")
    layout = check_layout(layout)
    backend = resolve_backend("render_triplane", backend, planes, origins, directions)
    if backend == "reference":
        return render_triplane_reference(
            planes, origins, directions, decoder, near=near, far=far, num_samples=num_samples,
            num_importance=num_importance, t=t, jitter=jitter, background=background, occupancy=cells,
            stop_below=stop_below, quadrature=quadrature, deltas=deltas, layout=layout, reduce=reduce,
            align_corners=align_corners, padding_mode=padding_mode, outputs=outputs)
    dtype = torch.float64 if planes.dtype == torch.float64 else torch.float32
    batch, count = origins.shape[:2]
    near, far = (torch.as_tensor(x, device=planes.device).to(dtype).expand(batch, count) for x in (near, far))
    rays = finite_rays(origins.to(dtype), directions.to(dtype), near, far)
    how = March(num_samples, quadrature, float(stop_below), "normals" in outputs, "weights" in outputs,
                deltas)
    seeds = jitter_seeds(jitter, batch, planes.device)
    scene = _Scene(planes, decoder, cells, seeds, (",".join(layout), reduce, align_corners, padding_mode), backend,
                   image_width or 0)
    t = None if t is None else t.to(dtype)
    summed = _with_importance(scene, rays, t, how, num_importance) if num_importance else scene.render(rays, t, how)
    return _as_rendered(summed, background, outputs)


class _Scene:
    """Planes, decoder and all that stays the same for every ray."""

    def __init__(self, planes: Tensor, decoder: Callable[..., tuple[Tensor, Tensor]], cells: Tensor | None,
                 seeds: Tensor | None, planes_are: tuple[str, str, bool, str], backend: str, image_width: int) -> None:
        self.planes, self.decoder, self.cells, self.seeds, self.planes_are = planes, decoder, cells, seeds, planes_are
        self.backend, self.image_width = backend, image_width
        self.parameters: list[Tensor] = []
        self.config: str | None = None
        if is_tiny(decoder):
            self.parameters, self.config = decoder.flat_parameters(), decoder.text

    def render(self, rays: tuple[Tensor, ...], t: Tensor | None, how: March, first_ray: int = 0) -> torch_path.Summed:
        """Rays [B, R, ...] through the registered operator, or by autograd where that is faster or the only way."""
        apart = how.normals or self._keeps(rays, t, how)
        if self.config is None or (apart and not self._fused(rays, t, how)):
            decode_ = self.decoder if self.config is None else Tiny(config_from_text(self.config), self.parameters)
            return _march(self.planes, rays, t, self.cells, self.seeds, first_ray, decode_, self.planes_are, how)
        color, depth, opacity, weights, places, normals = _forward(
            self.planes, *rays, t, self.cells, self.seeds, self.parameters, self.config, *self.planes_are,
            how.num_samples, how.quadrature, how.deltas, how.stop_below, how.weights, how.normals, first_ray,
            self.backend, self.image_width)
        return torch_path.Summed(color, depth, opacity, normals, weights, places)

    def _fused(self, rays: tuple[Tensor, ...], t: Tensor | None, how: March) -> bool:
        if self.backend != "triton" or self.config is None:
            return False
        config = config_from_text(self.config)
        if how.normals and (self._trains(rays, t) or not covers_normals(self.planes, config)):
            return False
        return covers(self.planes, self.cells, rays[2].shape[1], config, self.planes_are[1], how.quadrature)

    def _trains(self, rays: tuple[Tensor, ...], t: Tensor | None) -> bool:
        wanted = (self.planes, *rays, *self.parameters, *([] if t is None else [t]))
        return torch.is_grad_enabled() and any(x.requires_grad for x in wanted)

    def _keeps(self, rays: tuple[Tensor, ...], t: Tensor | None, how: March) -> bool:
        if torch.compiler.is_compiling():
            return False
        steps = how.num_samples if t is None else t.shape[-1]
        return rays[2].numel() * steps <= KEEP_SAMPLES and self._trains(rays, t)


def _with_importance(scene: _Scene, rays: tuple[Tensor, ...], t: Tensor | None, how: March,
                     extra: int) -> torch_path.Summed:
    """A first pass for the weights, new samples where they are, and the pass over all samples; in chunks of rays."""
    count = rays[0].shape[1]
    size = count if torch.is_grad_enabled() or torch.compiler.is_compiling() else IMPORTANCE_RAYS
    if scene.image_width and size < count:
        # whole rows of tiles, so that every chunk is a picture
        rows = 8 * scene.image_width
        size = max(size // rows, 1) * rows

    def chunk(first: int) -> torch_path.Summed:
        own = tuple(x[:, first:first + size] for x in rays)
        own_t = None if t is None else t[:, first:first + size]
        first_t, _, edges = first_positions(own[2], own[3], how.num_samples, own_t, scene.seeds, how.quadrature, first)
        with torch.no_grad():
            coarse = scene.render(own, own_t, how._replace(normals=False, weights=True), first)
            assert coarse.weights is not None
            offsets = jitter_offsets(scene.seeds, own[2].shape[1], extra, stream=1, first=first)
            fine = sample_pdf(edges, coarse.weights, extra, offsets=offsets)
        return scene.render(own, torch.cat([first_t, fine], -1).sort(-1).values, how, first)

    parts = [chunk(first) for first in range(0, max(count, 1), max(size, 1))]
    return torch_path.Summed._make(None if x[0] is None else torch.cat(x, 1) for x in zip(*parts, strict=True))


def _as_rendered(summed: torch_path.Summed, background: Tensor | float | None, outputs: Sequence[str]) -> Rendered:
    if background is not None:
        background = torch.as_tensor(background).to(summed.color)
        if background.ndim > 3 or any(have not in (1, want) for have, want in zip(
                reversed(background.shape), reversed(summed.color.shape), strict=False)):
            raise ValueError(f"background must expand to {list(summed.color.shape)}; got {list(background.shape)}")
    found = {name: value for name, value in summed._asdict().items() if name in outputs}
    if "rgb" in outputs:
        found["rgb"] = add_background(summed.color, summed.opacity, background)
    if "weights" in outputs:
        found["t"] = summed.t
    return Rendered(**found)


class Tiny(NamedTuple):
    """A `TinyDecoder` as registered operators take it: its choices and its parameters."""

    config: DecoderConfig
    parameters: Sequence[Tensor]


def _march(planes: Tensor, rays: Sequence[Tensor], t: Tensor | None, cells: Tensor | None, seeds: Tensor | None,
           first_ray: int, decoder: Tiny | Callable[..., tuple[Tensor, Tensor]],
           planes_are: tuple[str, str, bool, str], how: March) -> torch_path.Summed:
    """The torch path on checked tensors: differentiable where gradients are recorded."""
    layout, reduce, align_corners, padding_mode = planes_are
    names = tuple(layout.split(","))
    wide = planes.to(rays[0].dtype).permute(0, 1, 3, 4, 2)
    numbers = torch.arange(first_ray, first_ray + rays[0].shape[1], device=planes.device)
    if isinstance(decoder, Tiny):
        config, parameters = decoder
        raw, width = how.quadrature == "raw_midpoint", config.out_features
        how = how._replace(density=partial(density_of, config) if raw else None)
        samples = rays[2].shape[1] * (how.num_samples if t is None else t.shape[2])
        samples = samples if cells is None else samples // OCCUPIED
        decoder = partial(_decode, config, parameters, raw)
        if folds(config, reduce, planes.shape[2], wide.shape[2] * wide.shape[3], samples):
            wide, reduce = fold(wide, parameters, reduce)
            decoder = partial(_decode_folded, config, parameters[1:], raw)
    else:
        with torch.no_grad():
            channels = planes.shape[2] * (3 if reduce == "concat" else 1)
            width = decoder(wide.new_zeros(1, channels), wide.new_ones(1, 3))[1].shape[-1]
    wide = wide.contiguous().permute(0, 1, 4, 2, 3)

    def sample(plane_set: Tensor, points: Tensor) -> Tensor:
        return sample_triplane(plane_set.unsqueeze(0), points.unsqueeze(0), layout=names, reduce=reduce,
                               align_corners=align_corners, padding_mode=padding_mode, backend="torch").squeeze(0)

    return torch_path.march(wide.unbind(0), Rays._make((*rays, t, numbers)), seeds, cells, sample, decoder, how, width)


def _decode(config: DecoderConfig, parameters: Sequence[Tensor], raw: bool, features: Tensor,
            seen: Tensor | None) -> tuple[Tensor, Tensor]:
    return decode(config, parameters, features, seen, raw)


def _decode_folded(config: DecoderConfig, parameters: Sequence[Tensor], raw: bool, features: Tensor,
                   seen: Tensor | None) -> tuple[Tensor, Tensor]:
    return decode_folded(config, parameters, features, raw)


@torch.library.custom_op("rodin_kernels::render_triplane", mutates_args=())
def _forward(
    planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, t: Tensor | None,
    cells: Tensor | None, seeds: Tensor | None, parameters: list[Tensor], config: str, layout: str, reduce: str,
    align_corners: bool, padding_mode: str, num_samples: int, quadrature: str, deltas: str, stop_below: float,
    with_weights: bool, with_normals: bool, first_ray: int, backend: str, image_width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    how = March(num_samples, quadrature, stop_below, with_normals, with_weights, deltas)
    choices, rays = config_from_text(config), (origins, directions, near, far)
    fused = backend == "triton" and (not with_normals or covers_normals(planes, choices))
    if fused and covers(planes, cells, near.shape[1], choices, reduce, quadrature):
        from . import triton_path

        scene = triton_path.Scene(planes, rays, t, cells, seeds, parameters, choices,
                                  (layout, reduce, align_corners, padding_mode), how, first_ray, image_width)
        color, depth, opacity, weights, normals = triton_path.forward(scene)
        places = near.new_empty(0)
        if with_weights:
            places = first_positions(near, far, num_samples, t, seeds, quadrature, first_ray)[0].clone()
        return color, depth, opacity, weights, places, normals
    summed = _march(planes, rays, t, cells, seeds, first_ray, Tiny(choices, parameters),
                    (layout, reduce, align_corners, padding_mode), how)
    more = [near.new_empty(0) if x is None else x for x in (summed.weights, summed.t, summed.normals)]
    return summed.color, summed.depth, summed.opacity, more[0], more[1].clone(), more[2]


@_forward.register_fake
def _forward_fake(
    planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, t: Tensor | None,
    cells: Tensor | None, seeds: Tensor | None, parameters: list[Tensor], config: str, layout: str, reduce: str,
    align_corners: bool, padding_mode: str, num_samples: int, quadrature: str, deltas: str, stop_below: float,
    with_weights: bool, with_normals: bool, first_ray: int, backend: str, image_width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, count = near.shape
    steps = num_samples if t is None else t.shape[2]
    rows = (batch, count, steps if quadrature == "left" else steps - 1) if with_weights else (0,)
    width = config_from_text(config).out_features
    return (near.new_empty(batch, count, width), near.new_empty(batch, count), near.new_empty(batch, count),
            near.new_empty(rows), near.new_empty(rows), near.new_empty((batch, count, 3) if with_normals else (0,)))


_LIBRARY = torch.library.Library("rodin_kernels", "FRAGMENT")
_LIBRARY.define(
    "render_triplane_backward(Tensor color, Tensor depth, Tensor opacity, Tensor weights, Tensor places, "
    "Tensor normals, Tensor[] results, Tensor planes, Tensor origins, Tensor directions, Tensor near, Tensor far, "
    "Tensor? t, Tensor? cells, Tensor? seeds, Tensor[] parameters, str config, str layout, str reduce, "
    "bool align_corners, str padding_mode, int num_samples, str quadrature, str deltas, float stop_below, "
    "bool with_weights, bool with_normals, int first_ray, str backend, int image_width, bool[] needed) -> Tensor[]"
)


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients of planes, origins, directions, near, far, t and every parameter; an empty tensor where not needed.

    Rays are marched again in chunks with their graph, of which one is held at a time.
    """
    grads, tensors, options, needed = arguments[:6], arguments[7:16], arguments[16:-1], arguments[-1]
    planes, origins, directions, near, far, t, cells, seeds, parameters = tensors
    config, *_ = options
    num_samples, quadrature, deltas, stop_below, with_weights, with_normals, first_ray, backend, width = options[5:]
    how = March(num_samples, quadrature, stop_below, with_normals, with_weights, deltas)
    choices = config_from_text(config)
    if backend == "triton" and covers_gradient(planes, cells, near.shape[1], choices, options[2], quadrature,
                                               with_weights or with_normals):
        from . import triton_path

        scene = triton_path.Scene(planes, (origins, directions, near, far), t, cells, seeds, parameters, choices,
                                  options[1:5], how, first_ray, width)
        return triton_path.backward(scene, grads[:3], arguments[6], needed)
    shared = [x.detach().clone(memory_format=torch.preserve_format) if n else x
              for x, n in zip([planes, *parameters], [needed[0], *needed[6:]], strict=True)]
    inputs = [planes, origins, directions, near, far, t, *parameters]
    totals = [torch.zeros_like(x) if n else planes.new_empty(0) for x, n in zip(inputs, needed, strict=True)]
    steps = num_samples if t is None else t.shape[2]
    size = max(1, BACKWARD_SAMPLES // max(1, steps * len(planes)))
    for first in range(0, near.shape[1], size):
        part = slice(first, first + size)
        with recording_gradients():
            own = [None if x is None else x[:, part].detach() for x in inputs[1:6]]
            leaves = [x.requires_grad_() if n else x
                      for x, n in zip([shared[0], *own, *shared[1:]], needed, strict=True)]
            summed = _march(leaves[0], leaves[1:5], leaves[5], cells, seeds, first_ray + first,
                            Tiny(choices, leaves[6:]), options[1:5], how)
            results = (summed.color, summed.depth, summed.opacity, summed.weights, summed.t, summed.normals)
            pairs = [(y, g[:, part]) for y, g in zip(results, grads, strict=True) if y is not None and y.requires_grad]
            wanted = [x for x, n in zip(leaves, needed, strict=True) if n]
            found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
                         if pairs and wanted else [None] * len(wanted))
        for i, total in enumerate(totals):
            if needed[i] and (grad := next(found)) is not None:
                (total[:, part] if 1 <= i <= 5 else total).add_(grad)
    return totals


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("render_triplane_backward", _backward, _device)


@torch.library.register_fake("rodin_kernels::render_triplane_backward", lib=_LIBRARY)
def _backward_fake(*arguments: Any) -> list[Tensor]:
    planes, origins, directions, near, far, t, _, _, parameters = arguments[7:16]
    inputs = [planes, origins, directions, near, far, t, *parameters]
    return [torch.empty_like(x) if n else planes.new_empty(0) for x, n in zip(inputs, arguments[-1], strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.tensors = [x is not None for x in inputs[:8]]
    ctx.options, ctx.many = inputs[9:], len(inputs[8])
    ctx.save_for_backward(*output[:3], *(x for x in inputs[:8] if x is not None), *inputs[8])


def _gradient(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    results, saved = list(ctx.saved_tensors[:3]), iter(ctx.saved_tensors[3:])
    tensors = [next(saved) if present else None for present in ctx.tensors]
    parameters = list(saved)
    given = ctx.needs_input_grad
    needed = [*(given[i] for i in range(6)), *given[8]] if ctx.many else [*(given[i] for i in range(6))]
    backward = torch.ops.rodin_kernels.render_triplane_backward
    found = backward(*grads, results, *tensors, parameters, *ctx.options, needed)
    own = [g if n else None for g, n in zip(found, needed, strict=True)]
    return (*own[:6], None, None, own[6:], *[None] * len(ctx.options))


_forward.register_autograd(_gradient, setup_context=_setup)
