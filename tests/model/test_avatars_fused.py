"""Recorded formulas and the kernels that run them: the same distances, hits and colours as the field itself."""

from __future__ import annotations

import math
import os
from functools import partial

import pytest
import torch
from torch import Tensor

from rodin_kernels.aot import Case, compile_case
from rodin_model.avatars import dataset, fused, pictures
from rodin_model.avatars.attributes import CHOICES, SHAPE, Attributes, sample_attributes
from rodin_model.avatars.dataset import Recipe, make_avatar
from rodin_model.avatars.geometry import AvatarField, _model
from rodin_model.avatars.pictures import CLOSE, STEPS, STRIDE, march_all, trace
from rodin_model.avatars.tape import NUMBER, Colour, Program, Tape
from rodin_model.cameras import Camera, box_near_far
from tests.interpreter import assert_passes_interpreted

#: An avatar on which beards, make-up and long hair all draw something.
DRESSED = Attributes(gender="person", age="elderly", skin_tone="fair", face_shape="square", eye_color="blue",
                     eye_shape="round", nose="average", lips="full", expression="laughing", hair_style="short",
                     hair_color="dark brown", facial_hair="full beard", glasses="sunglasses", hat="none",
                     earrings="hoops", headphones="none", makeup="bold", clothing="suit and tie", clothing_color="blue",
                     shape=tuple(0.3 * (-1) ** i for i in range(len(SHAPE))))
EVERY = [(name, value) for name, values in CHOICES.items() for value in values]


def points_around(count: int, seed: int = 0) -> Tensor:
    """Points of the box, denser where the avatar is."""
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return points * torch.tensor([0.6, 0.9, 0.6])


def plain_albedo(field: AvatarField, points: Tensor, which: Tensor) -> Tensor:
    """The colour of the part `which` at every point, part by part."""
    colors = torch.stack([part.color(_model(points)).expand(len(points), 3) for part in field.parts])
    return colors[which, torch.arange(len(points))].clamp(0, 1)


@pytest.mark.parametrize("name, value", EVERY)
def test_recorded_formulas_give_what_the_field_gives(name: str, value: str) -> None:
    a = DRESSED.replace(**{name: value})
    plain, recorded, points = AvatarField(a), AvatarField(a, fused=True), points_around(2500)
    distance, which = plain.nearest(points)
    again, part = recorded.nearest(points)
    torch.testing.assert_close(again, distance, rtol=0, atol=3e-6)
    assert part.dtype == torch.long and (part == which).float().mean() > 0.9995
    assert recorded.fused is not None
    albedo, gloss, shadow = recorded.fused.albedo(points, which)
    expected = plain_albedo(plain, points, which)
    assert (albedo - expected).abs().amax(1).quantile(0.998) < 1e-4
    torch.testing.assert_close(gloss, torch.tensor([p.gloss for p in plain.parts])[which])
    torch.testing.assert_close(shadow, torch.tensor([p.shadow for p in plain.parts])[which])


def test_one_avatar_is_the_same_whether_recorded_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(views=2, size=24, uniform=300, surface=900)
    plain = make_avatar(23, recipe)
    monkeypatch.setattr(dataset, "AvatarField", partial(AvatarField, fused=True))
    compare_avatars(make_avatar(23, recipe), plain)


def compare_avatars(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Nearly all pixels and points equal but for rounding; the rest lies where a ray only just hits."""
    for name, tensor in other.items():
        mine = one[name].cpu().float()
        assert one[name].dtype == tensor.dtype and mine.shape == tensor.shape, name
        limit = {"images": 2.0, "color": 2.0, "depth": 0.003, "points": 0.002, "distance": 0.001}.get(name, 1e-6)
        assert ((mine - tensor.float()).abs() <= limit).float().mean() > 0.995, name


def test_dropping_rays_and_keeping_them_find_the_same() -> None:
    field, (origins, directions) = AvatarField(sample_attributes(11)), Camera.orbit(30, 10, 48).rays()
    near, far = box_near_far(origins, directions, 0.95)
    index, t = pictures._step(field, origins, directions, near, far)
    landed = march_all(field, origins, directions, near, far)
    assert torch.equal(index.sort().values, (landed >= 0).nonzero()[:, 0]) and len(index) > 300
    torch.testing.assert_close(landed[index], t, rtol=0, atol=1e-6)


def test_recorded_fields_trace_alike() -> None:
    origins, directions = Camera.orbit(200, 10, 40).rays()
    depth, which = trace(AvatarField(DRESSED), origins, directions)
    other, part = trace(AvatarField(DRESSED, fused=True), origins, directions)
    assert torch.equal(depth > 0, other > 0) and (which == part).float().mean() > 0.999
    torch.testing.assert_close(other, depth, rtol=0, atol=1e-4)


def every_instruction() -> Program:
    """A tape that asks for each instruction, with scales and shifts, in all ways in which formulas write them."""
    tape = Tape()
    x, y, z = (tape.input(i) for i in range(3))
    lock = (x * 3 + 3).clamp(0, 5).round()
    for value in (torch.sqrt(x * x + 0.1), (2 * x - 1).abs(), torch.sin(9 * x), torch.cos(3 - 4 * y), torch.exp(-x),
                  (x * y).clamp_min(1e-3) ** 0.7, (5 * x + 0.1).round(), torch.sign(x - 0.2), x.clamp_max(0.3), x > 0.1,
                  y < x, x + y * 2, x * y - z, torch.minimum(x, 0.5 * y), torch.maximum(x, 0.3 - z), x.union(y, 0.4),
                  x / (y.abs() + 0.5), 2 / (z * z + 1), x.length(y), x.length(2 * y, z - 1), torch.atan2(x, z + 0.1),
                  torch.atan2(y, -x), torch.acos(0.9 * x), torch.where(x > 0, y, 0.5), x ** 3, 1.5,
                  tape.gather(lock, [0.5, 1.5, -2.0, 4.0, 8.0, 9.0]), torch.full_like(x, 9.0)):
        tape.output(value)
    names = {row[0] for row in tape.rows}
    assert names == set(NUMBER), set(NUMBER) - names
    return tape.finish()


def test_instructions_compute_what_they_say() -> None:
    x, y, z = inputs = points_around(50).T.contiguous()
    found = every_instruction().play(inputs)
    for i, expected in {0: torch.sqrt(x * x + 0.1), 1: (2 * x - 1).abs(), 3: torch.cos(3 - 4 * y), 10: (y < x).float(),
                        12: x * y - z, 14: torch.maximum(x, 0.3 - z), 19: torch.sqrt(x * x + 4 * y * y + (z - 1) ** 2),
                        23: torch.where(x > 0, y, 0.5), 25: torch.full_like(x, 1.5)}.items():
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=2e-6)


def test_registers_are_used_again_and_what_nobody_needs_is_left_out() -> None:
    tape = Tape()
    x = tape.input(0)
    torch.sin(x)
    total = x
    for i in range(20):
        total = total + torch.cos(x * (i + 1))
    tape.output(total)
    program = tape.finish()
    assert program.registers <= 3 and len(program.code) == 1 + 2 * 20 + 1
    assert NUMBER["sin"] not in program.code[:, 0].tolist()


def test_what_cannot_be_recorded_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="tan cannot be recorded"):
        torch.tan(Tape().input(0))


def test_colours_mix_like_tensors() -> None:
    tape, rgb = Tape(), torch.tensor([0.2, 0.5, 0.9])
    x = tape.input(0)
    mixed = rgb * (0.5 + x)[:, None] - rgb.expand(1, 3) * 0.1 + (1 - Colour([x, 0.5, 2 * x])) * x
    for channel in mixed.channels:
        tape.output(channel)
    x = torch.linspace(-1, 1, 9)
    expected = rgb * (0.5 + x)[:, None] - rgb * 0.1 + (1 - torch.stack([x, 0 * x + 0.5, 2 * x], -1)) * x[:, None]
    torch.testing.assert_close(tape.finish().play(x[None]).T, expected)


def test_the_trial_before_kernels_are_used_sees_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert fused._fault(cpu) == "" and not fused.can_run(cpu)
    monkeypatch.setattr(fused, "run", lambda program, inputs: 1.1 * program.play(inputs))
    assert "results of a trial are wrong" in fused._fault(cpu)


@pytest.mark.interpret(only=True)
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_the_kernel_plays_every_instruction(count: int) -> None:
    program, inputs = every_instruction(), points_around(1000, 3)[:count].T.contiguous()
    torch.testing.assert_close(fused.run(program, inputs), program.play(inputs), rtol=1e-5, atol=2e-6)


@pytest.mark.interpret(only=True)
def test_the_kernel_knows_the_angles_of_the_axes() -> None:
    tape = Tape()
    tape.output(torch.atan2(tape.input(0), tape.input(1)))
    y, x = torch.tensor([[0.0, 1, 0, -1, 0, 1, 1, -1, -1], [1.0, 0, -1, 0, 0, 1, -1, 1, -1]])
    torch.testing.assert_close(fused.run(tape.finish(), torch.stack([y, x]))[0], torch.atan2(y, x), rtol=0, atol=1e-6)


@pytest.mark.interpret(only=True)
@pytest.mark.parametrize("seed", [0, 3, 23])
def test_the_kernel_plays_an_avatar(seed: int) -> None:
    field, points = AvatarField(sample_attributes(seed), fused=True), points_around(600, seed)
    assert field.fused is not None
    which = field.nearest(points)[1]
    inputs = torch.cat([points.T, which[None].float()])
    for program in (field.fused.nearest_program, field.fused.albedo_program):
        found, expected = fused.run(program, inputs), program.play(inputs)
        assert (found - expected).abs().flatten().quantile(0.999) < 5e-6 and found.isfinite().all()


@pytest.mark.interpret(only=True)
def test_the_kernel_marches_like_the_steps_in_torch() -> None:
    field, (origins, directions) = AvatarField(sample_attributes(5)), Camera.orbit(30, 10, 40).rays()
    near, far = box_near_far(origins, directions, 0.95)
    landed = fused.march(field.grid, origins, directions, near, far, STEPS, CLOSE, STRIDE)
    expected = march_all(field, origins, directions, near, far)
    assert torch.equal(landed >= 0, expected >= 0) and (expected >= 0).sum() > 300
    torch.testing.assert_close(landed, expected, rtol=0, atol=1e-4)
    assert len(fused.march(field.grid, *(t[:0] for t in (origins, directions, near, far)), STEPS, CLOSE, STRIDE)) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 5, 14, 18, 23])
def test_a_gpu_makes_the_same_avatar(seed: int) -> None:
    torch.set_default_device("cpu")  # a GPU is asked for where it is meant
    recipe = Recipe(views=3, size=64, uniform=2000, surface=6000)
    device = torch.device("cuda")
    assert fused.can_run(device) and AvatarField(sample_attributes(seed), device).fused is not None
    found = make_avatar(seed, recipe, device)
    compare_avatars(found, make_avatar(seed, recipe))
    again = make_avatar(seed, recipe, device)
    assert all(torch.equal(found[name], again[name]) for name in found), "twice the same bytes"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")
def test_no_thread_needs_what_another_wrote() -> None:
    pytest.importorskip("triton")
    from rodin_model.avatars import kernels

    pointers = ("code", "constants", "table", "inputs", "outputs", "scratch")
    types = {**dict.fromkeys(pointers, "*fp32"), "code": "*i32", "rows": "i32", "count": "i32", "registers": "i32"}
    case = Case("play", kernels.play, types, {"BLOCK": fused.THREADS}, fused.THREADS // 32, 1, pointers)
    report = compile_case(case, "sm_90")
    assert report.shared == 0 and "bar.sync" not in report.intermediate
    assert set(report.stores) == {32} and report.occupancy == 1


@pytest.mark.gpu
def test_a_gpu_plays_every_instruction() -> None:
    torch.set_default_device("cpu")
    program, inputs = every_instruction(), points_around(300_001, 3).T.contiguous()
    device = torch.device("cuda")
    found = fused.run(program.to(device), inputs.to(device)).cpu()
    expected = program.play(inputs)
    assert math.isclose(float((found - expected).abs().flatten().kthvalue(int(0.999 * expected.numel())).values), 0,
                        abs_tol=1e-5)


def test_the_kernels_pass_under_the_interpreter() -> None:
    assert_passes_interpreted(__file__, "-x", timeout=900)
