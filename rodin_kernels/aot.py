"""Compile Triton kernels ahead of time for GPUs that this machine need not have, and read what became of them.

Triton and its wheel carry the whole way down to machine code: registers, spills, shared memory, tensor-core
instructions and the widths of loads, stores and reductions are read from the assembly, so that a test can hold them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .launch import launch_options

#: The architectures that are looked at: NVIDIA Ampere, Hopper, Blackwell, AMD MI300.
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")

# registers of a multiprocessor, its shared memory in bytes, what the system keeps of it per block, warps, blocks
_LIMITS = {
    "sm_80": (65536, 167936, 1024, 64, 32),
    "sm_90": (65536, 233472, 1024, 64, 32),
    "sm_100": (65536, 233472, 1024, 64, 32),
    "gfx942": (4 * 512 * 64, 65536, 0, 32, 32),
}
_TENSOR_CORES = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA|QGMMA|DMMA|v_mfma)")
_SASS_ACCESS = re.compile(r"\b(LDG|LDGSTS|STG)\.E(\S*)")
_PTX_ATOMIC = re.compile(r"\b(?:atom|red)\.\S*?global\S*?(?:\.v(\d))?(?:\.noftz)?\.(?:bf|[fusb])(\d+)(?:x(\d))?\s")
_GCN_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store|atomic)_(\w+)")
_GCN_WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "short": 16, "ubyte": 8}


@dataclass(frozen=True)
class Case:
    """One kernel with everything that its compilation depends on.

    Attributes:
        name: unique among the cases of its operator, such as "own_plane fp16 C64".
        kernel: the function under `@triton.jit`.
        signature: for every argument that is no constexpr its Triton type, such as "*fp16", "i32", "i64" or "fp32".
        constants: for every constexpr argument its value; an ordinary argument named here is compiled in, as Triton
            does with integers that equal 1 and with None.
        num_warps, num_stages: as at the launch.
        aligned: arguments (pointers, sizes, strides) that are multiples of 16, as Triton finds out at the launch.
        archs: the architectures that this case is shipped for.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] = ()
    archs: tuple[str, ...] = ARCHS


@dataclass(frozen=True)
class Report:
    """What one kernel became on one architecture.

    Attributes:
        registers: per thread (per lane and with accumulation registers on AMD).
        spills: bytes of local memory per thread; on AMD of its private segment.
        shared: bytes of shared memory per program.
        tensor: how many tensor-core instructions of each kind: HMMA, HGMMA, UTCHMMA, MFMA.
        loads, stores, atomics: how many instructions on global memory of each width in bits.
        occupancy: fraction of a multiprocessor's warps that fit at once.
        assembly: SASS, or amdgcn.
        intermediate: PTX, or LLVM's text on AMD.
    """

    registers: int
    spills: int
    shared: int
    tensor: Mapping[str, int]
    loads: Mapping[int, int]
    stores: Mapping[int, int]
    atomics: Mapping[int, int]
    occupancy: float
    assembly: str = field(repr=False, default="")
    intermediate: str = field(repr=False, default="")


def compile_case(case: Case, arch: str) -> Report:
    """The case compiled for `arch`, one of `ARCHS`, and read; needs Triton, no GPU, and takes seconds.

    Raises:
        ValueError: `arch` is unknown, or signature and constants do not name the kernel's arguments.
        RuntimeError: Triton interprets kernels in this process (TRITON_INTERPRET=1) and cannot compile them.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if arch not in ARCHS:
        raise ValueError(f"arch must be one of {', '.join(ARCHS)}; got {arch!r}")
    if not isinstance(case.kernel, triton.JITFunction):
        raise RuntimeError("kernels are interpreted in this process; unset TRITON_INTERPRET to compile them")
    names = case.kernel.arg_names
    unknown = (set(case.signature) | set(case.constants)) ^ set(names)
    if unknown:
        raise ValueError(f"case {case.name!r}: arguments {sorted(unknown)} are missing, or unknown to the kernel")
    signature = {name: "constexpr" if name in case.constants else case.signature[name] for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    hints: dict[Any, Any] = {
        (names.index(name),): [["tt.divisibility", 16]] for name in case.aligned if name not in case.constants
    }
    nvidia = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if nvidia else GPUTarget("hip", arch, 64)
    compiled = triton.compile(
        ASTSource(case.kernel, signature, constants, hints),
        target=target,
        options=launch_options(case.num_warps, case.num_stages),
    )
    read = _read_nvidia if nvidia else _read_amd
    return read(compiled, case.num_warps, arch)


def _read_nvidia(compiled: Any, warps: int, arch: str) -> Report:
    # by the disassembler itself: the reader of some versions of Triton stops after 64 KB
    sass, ptx = _cuobjdump(compiled.asm["cubin"], "-sass"), compiled.asm["ptx"]
    usage = _resource_usage(compiled.asm["cubin"])
    accesses: dict[str, Counter[int]] = {"LD": Counter(), "ST": Counter()}
    for name, modifiers in _SASS_ACCESS.findall(sass):
        found = re.search(r"\.(?:U|S)?(8|16|64|128)\b", modifiers)
        accesses[name[:2]][int(found.group(1)) if found else 32] += 1
    atomics = Counter(int(v or 1) * int(bits) * int(packed or 1) for v, bits, packed in _PTX_ATOMIC.findall(ptx))
    shared = compiled.metadata.shared
    return Report(
        registers=usage["REG"],
        spills=usage["LOCAL"] + usage["STACK"],
        shared=shared,
        tensor=dict(Counter(_TENSOR_CORES.findall(sass))),
        loads=dict(accesses["LD"]),
        stores=dict(accesses["ST"]),
        atomics=dict(atomics),
        occupancy=_occupancy(arch, usage["REG"], shared, warps),
        assembly=sass,
        intermediate=ptx,
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack, shared and local bytes."""
    text = _cuobjdump(cubin, "--dump-resource-usage")
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def _cuobjdump(cubin: bytes, option: str) -> str:
    """What the disassembler of Triton's wheel prints about a compiled kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, option, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _read_amd(compiled: Any, warps: int, arch: str) -> Report:
    text = compiled.asm["amdgcn"]
    # on this family the count of vector registers includes those for accumulation
    registers = _amd_field(text, "vgpr_count")
    accesses: dict[str, Counter[int]] = {"load": Counter(), "store": Counter(), "atomic": Counter()}
    for kind, what in _GCN_ACCESS.findall(text):
        width = 64 if what.endswith("_x2") or what.endswith("_f64") else 32
        if kind != "atomic":
            width = next((bits for name, bits in _GCN_WIDTHS.items() if name in what.split("_")), 8)
        accesses[kind][width] += 1
    shared = compiled.metadata.shared
    return Report(
        registers=registers,
        # bytes of memory, as above; scalar registers kept in lanes of vector registers are no trip to memory
        spills=_amd_field(text, "private_segment_fixed_size"),
        shared=shared,
        tensor={name.replace("v_mfma", "MFMA"): n for name, n in Counter(_TENSOR_CORES.findall(text)).items()},
        loads=dict(accesses["load"]),
        stores=dict(accesses["store"]),
        atomics=dict(accesses["atomic"]),
        occupancy=_occupancy(arch, registers, shared, warps),
        assembly=text,
        intermediate=compiled.asm.get("llir", ""),
    )


def _amd_field(text: str, name: str) -> int:
    """A number of the kernel's metadata block; absent counts as 0."""
    found = re.search(rf"^\s*-?\s*\.{name}:\s*(\d+)", text, re.M)
    return int(found.group(1)) if found else 0


def _occupancy(arch: str, registers: int, shared: int, warps: int) -> float:
    """Warps that fit on a multiprocessor at once, of those that it can hold."""
    total_registers, total_shared, reserved, max_warps, max_blocks = _LIMITS[arch]
    lanes, granule = (32, 8) if arch.startswith("sm_") else (64, 8)
    per_warp = -(-max(registers, 1) // granule) * granule * lanes
    blocks = min(max_blocks, max_warps // warps, total_registers // per_warp // warps)
    if shared + reserved:
        blocks = min(blocks, total_shared // (shared + reserved))
    return blocks * warps / max_warps
