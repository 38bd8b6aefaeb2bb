"""Compiled kernels stay as good as the golden file says: a few are compiled here, the whole file by its own command."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rodin_kernels import inspect
from rodin_kernels.aot import ARCHS, Case, compile_case

triton = pytest.importorskip("triton")
tl = triton.language
compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")

SEEN = {"registers": 100, "spills": 0, "shared": 1024, "occupancy": 0.5, "tensor": {"HGMMA": 4},
        "loads": {"32": 1, "128": 8}, "stores": {"128": 2}, "atomics": {}}  # fmt: skip


@pytest.mark.parametrize("change, complaint", [
    ({"spills": 4}, "spills 0 -> 4"),
    ({"tensor": {"HMMA": 16}}, "no HGMMA any more"),
    ({"loads": {"64": 16}}, "loads of 128 -> 64 bits"),
    ({"loads": {"32": 5, "128": 7}}, "loads narrower than 128 bits 1 -> 5"),
    ({"registers": 109}, "registers 100 -> 109"),
    ({"shared": 2048}, "shared memory 1024 -> 2048"),
    ({"occupancy": 0.25}, "occupancy 0.5 -> 0.25"),
])  # fmt: skip
def test_what_got_worse_is_named(change: dict[str, Any], complaint: str) -> None:
    assert any(complaint in text for text in inspect.worse(SEEN, {**SEEN, **change}))
    if complaint.startswith(("registers", "shared", "occupancy")):
        assert not inspect.worse(SEEN, {**SEEN, **change}, same_compiler=False)


def test_what_got_better_is_fine() -> None:
    better = {**SEEN, "registers": 90, "shared": 512, "occupancy": 0.75, "loads": {"128": 9}, "tensor": {"HGMMA": 2}}
    assert not inspect.worse(SEEN, better) and not inspect.worse(SEEN, copy.deepcopy(SEEN))


def test_the_golden_file_names_the_shipped_cases_and_none_spills() -> None:
    kernels = inspect.golden()["kernels"]
    for operator in kernels:
        cases = {case.name: case for case in inspect.cases_of(operator)}
        command = f"python -m rodin_kernels.inspect --operator {operator} --write"
        assert set(kernels[operator]) == set(cases), f"run: {command}"
        for name, by_arch in kernels[operator].items():
            assert set(by_arch) == set(cases[name].archs), name
            assert not [arch for arch, seen in by_arch.items() if seen["spills"]], name


def test_products_of_16_bit_types_run_on_tensor_cores_with_whole_vectors() -> None:
    kinds = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}
    found = 0
    for name, by_arch in inspect.golden()["kernels"]["rollout_conv"].items():
        if not name.startswith(("own_plane", "weight_gradient")) or "fp32" in name:
            continue
        for arch, seen in by_arch.items():
            assert seen["tensor"], (name, arch)
            # the smallest tiles are for planes with few channels
            if not any(tile in name for tile in ("x16x16", "16x16x", "x32x32", "32x32x")):
                found += 1
                assert kinds[arch] in seen["tensor"] and seen["loads"]["128"] > 0, (name, arch)
                wide = sum(n for bits, n in seen["loads"].items() if int(bits) >= 64)
                assert wide > sum(seen["loads"].values()) / 2, (name, arch)
    assert found > 20


def test_the_sampler_reads_texels_and_adds_gradients_by_the_widest_instructions() -> None:
    found = 0
    for name, by_arch in inspect.golden()["kernels"]["triplane_sample"].items():
        if "C3 " in f"{name} " or name.startswith("sort"):
            continue
        for arch, seen in by_arch.items():
            if name.startswith(("sample", "point gradient")):
                assert set(seen["loads"]) == {"32", "128"} and seen["loads"]["128"] >= 3, (name, arch)
                found += 1
            if name.startswith("plane gradient"):
                # only NVIDIA's GPUs from Hopper on add vectors
                assert set(seen["atomics"]) == {"128" if arch in ("sm_90", "sm_100") else "32"}, (name, arch)
                found += 1
    assert found > 50


@compiled
@pytest.mark.parametrize("operator, name, arch", [
    ("rollout_conv", "own_plane bf16 8x16x64x64 w4 s3", "sm_90"),
    ("rollout_conv", "line_conv bf16 32x32x32 w4 s2", "sm_80"),
    ("rollout_conv", "finish bf16 16x64 w4 s1", "gfx942"),
    ("triplane_sample", "sample bf16 C32", "sm_100"),
    ("triplane_sample", "sample fp32 C32 wave64", "gfx942"),
])  # fmt: skip
def test_a_few_kernels_compile_to_what_the_golden_file_says(operator: str, name: str, arch: str) -> None:
    import triton

    before = inspect.golden()
    case = next(case for case in inspect.cases_of(operator) if case.name == name)
    report = compile_case(case, arch)
    same = before["triton"][operator] == triton.__version__
    assert report.assembly and report.intermediate
    assert not inspect.worse(before["kernels"][operator][name][arch], inspect.summary(report), same_compiler=same)


@compiled
def test_hopper_reads_and_adds_128_bits_and_nothing_spills() -> None:
    found = {case.name: case for case in inspect.cases_of("triplane_sample")}
    reads = compile_case(found["sample bf16 C32"], "sm_90")
    adds = compile_case(found["plane gradient bf16 C32"], "sm_90")
    assert (reads.spills, adds.spills) == (0, 0)
    assert (reads.loads[128], reads.stores) == (12, {128: 1})
    assert adds.atomics == {128: 12}
    assert "REDG.E.ADD.F32x4" in adds.assembly


@triton.jit
def long_kernel(x, out, PRODUCTS: triton.language.constexpr):
    """So many products that the code is longer than 64 KB."""
    rows, columns = tl.arange(0, 128), tl.arange(0, 64)
    a = tl.load(x + rows[:, None] * 64 + columns[None, :])
    b = tl.load(x + columns[:, None] * 128 + rows[None, :])
    acc = tl.zeros((128, 128), tl.float32)
    for _ in tl.static_range(PRODUCTS):
        acc = tl.dot(a, b, acc)
    tl.store(out + rows[:, None] * 128 + rows[None, :], acc)


@compiled
def test_code_of_any_length_is_read_to_its_end() -> None:
    case = Case("long", long_kernel, {"x": "*fp16", "out": "*fp32"}, {"PRODUCTS": 40}, aligned=("x", "out"))
    report = compile_case(case, "sm_80")
    last = [line for line in report.assembly.splitlines() if "EXIT" in line][-1]
    assert int(last.split("/*")[1].split("*/")[0], 16) > 1 << 16
    # 128 x 128 x 64 products in instructions of 16 x 8 x 16, over 4 warps
    assert report.tensor == {"HMMA": 40 * 128}


@compiled
def test_the_command_prints_compares_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(case for case in inspect.cases_of("rollout_conv") if case.name == "finish bf16 16x64 w4 s1")
    monkeypatch.setattr(inspect, "cases_of", lambda operator: [case] if operator == "rollout_conv" else [])
    monkeypatch.setattr(inspect, "GOLDEN", tmp_path / "golden.json")
    assert inspect.main(["--arch", "gfx942", "--write"]) == 0
    assert inspect.main(["--arch", "gfx942"]) == 0
    known = json.loads((tmp_path / "golden.json").read_text())
    known["kernels"]["rollout_conv"][case.name]["gfx942"]["shared"] = -1
    (tmp_path / "golden.json").write_text(json.dumps(known))
    assert inspect.main(["--arch", "gfx942"]) == 1
    assert "worse: rollout_conv finish bf16" in capsys.readouterr().out


@compiled
def test_bad_cases_are_named() -> None:
    case = next(iter(inspect.cases_of("rollout_conv")))
    with pytest.raises(ValueError, match="arch must be one of sm_80"):
        compile_case(case, "sm_70")
    with pytest.raises(ValueError, match="'x'.* are missing, or unknown"):
        compile_case(Case("less", case.kernel, {}, case.constants), ARCHS[0])


@pytest.mark.interpret(only=True)
def test_interpreted_kernels_say_that_they_cannot_be_compiled() -> None:
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        compile_case(next(iter(inspect.cases_of("rollout_conv"))), "sm_90")
