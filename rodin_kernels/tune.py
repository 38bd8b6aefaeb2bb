"""Search launch parameters for this device, offline: `python -m rodin_kernels.tune`.

Every operator is run, forward and backward, at the shapes of real models. What its kernels ask of
`rodin_kernels.configs.choose` says what can be tuned; each parameter is then varied by itself, twice round, and the
fastest values whose results agree with the default's are kept. Written as data, which `configs` reads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import RODINHD, TinyDecoder, ahead, configs, render_triplane, rollout_conv, sample_triplane
from .configs import Config, Question, Value
from .testing import random_tensor

#: A change of the result by more than this, relative to its size, refuses a candidate: it is no rounding.
TOLERANCE = 2e-2
#: A candidate must be faster by this share, so that noise does not decide.
GAIN = 0.02
Step = Callable[[], Sequence[Tensor]]
_LOW, _FULL = torch.bfloat16, torch.float32
#: What is tuned, what matters most first: planes' batch, channels, size and outputs; channels, size and number of
#: points; channels, side of the picture and samples of a ray.
JOBS: tuple[tuple[Any, ...], ...] = (
    ("rollout_conv", 8, 192, 64, 192, _LOW), ("render_triplane", 32, 512, 96, _LOW),
    ("sample_triplane", 32, 256, 1 << 22, _LOW), ("sample_triplane", 32, 256, 1 << 22, _FULL),
    ("rollout_conv", 8, 64, 256, 64, _LOW), ("render_triplane", 32, 512, 96, _FULL),
    ("rollout_conv", 8, 192, 64, 192, _FULL), ("rollout_conv", 1, 192, 64, 192, _LOW),
    ("rollout_conv", 8, 128, 256, 128, _LOW), ("rollout_conv", 8, 384, 64, 384, _LOW),
    ("render_triplane", 32, 128, 64, _LOW), ("render_triplane", 16, 256, 64, _LOW),
    ("sample_triplane", 32, 256, 1 << 18, _LOW), ("sample_triplane", 40, 64, 1 << 22, _LOW),
    ("sample_triplane", 80, 64, 1 << 22, _LOW), ("rollout_conv", 1, 64, 512, 64, _LOW),
    *(("rollout_conv", *shape, _FULL) for shape in ((1, 192, 64, 192), (8, 64, 256, 64), (8, 128, 256, 128),
                                                    (1, 64, 512, 64), (8, 384, 64, 384))),
    ("sample_triplane", 32, 256, 1 << 18, _FULL), ("sample_triplane", 40, 64, 1 << 22, _FULL),
    ("sample_triplane", 80, 64, 1 << 22, _FULL), ("render_triplane", 32, 128, 64, _FULL),
    ("render_triplane", 16, 256, 64, _FULL),
)
#: With `--ahead`, jobs whose candidates are compiled at once, and the share of the time for it.
TOGETHER, AHEAD_SHARE = 3, 0.7


class Job(NamedTuple):
    """One operator at one shape: `step` runs it forward and backward and returns result and gradients."""

    operator: str
    name: str
    step: Step


def tiny_jobs() -> Iterator[Job]:
    """One small shape an operator, for a rehearsal in Triton's interpreter."""
    for number in (0, 2, 1):
        yield tiny_job(number)


def tiny_job(number: int) -> Job:
    """A small shape of the operator of a job in `JOBS`."""
    device, dtype = torch.device("cpu"), torch.float32
    operator = JOBS[number][0]
    if operator == "rollout_conv":
        return _convolution(1, 2, 3, 2, dtype, device, "triton")
    if operator == "sample_triplane":
        return _sampling(8, 4, 9, dtype, device, "triton")
    return _rendering(4, 2, 3, dtype, device, "triton", size=4)


def jobs(device: torch.device) -> Iterator[Job]:
    """The shapes of Rodin, RodinHD, EG3D, TripoSR and OpenLRM, `JOBS`; tensors are made when asked for."""
    return (_job(number, device) for number in range(len(JOBS)))


def job_on_gpu(number: int) -> Job:
    """The job with a number in `JOBS`, on the current GPU."""
    return _job(number, torch.device("cuda", torch.cuda.current_device()))


def _job(number: int, device: torch.device) -> Job:
    operator, *shape, dtype = JOBS[number]
    return _MAKERS[operator](*shape, dtype, device)


def _stepped(call: Callable[..., Tensor], leaves: list[Tensor], *others: Tensor) -> Step:
    """Forward and backward of a call, the cotangent the same every time."""
    tracked = [leaf.requires_grad_() for leaf in leaves]
    cotangents: list[Tensor] = []

    def step() -> Sequence[Tensor]:
        out = call(*tracked, *others)
        if not cotangents:
            cotangents.append(random_tensor(*out.shape, seed=9, dtype=out.dtype, device=out.device))
        return [out.detach(), *torch.autograd.grad(out, tracked, cotangents[0])]
    return step


def _convolution(batch: int, channels: int, size: int, outputs: int, dtype: torch.dtype, device: torch.device,
                 backend: str = "auto") -> Job:
    planes = random_tensor(batch, 3, size, size, channels, seed=1, dtype=dtype, device=device).movedim(-1, -3)
    weight = random_tensor(outputs, 3 * channels, 3, 3, seed=2, dtype=dtype, device=device) / (27 * channels) ** 0.5
    return Job("rollout_conv", f"B{batch} C{channels} R{size} O{outputs} {dtype}",
               _stepped(lambda planes, weight: rollout_conv(planes, weight, backend=backend), [planes, weight]))


def _sampling(channels: int, size: int, count: int, dtype: torch.dtype, device: torch.device,
              backend: str = "auto") -> Job:
    planes = random_tensor(1, 3, size, size, channels, seed=3, dtype=dtype, device=device).movedim(-1, -3)
    points = random_tensor(1, count, 3, seed=4, device=device).clamp(-1, 1)

    def call(planes: Tensor, points: Tensor) -> Tensor:
        return sample_triplane(planes, points, layout=RODINHD, backend=backend)
    return Job("sample_triplane", f"{count} points C{channels} R{size} {dtype}", _stepped(call, [planes], points))


def _rendering(channels: int, side: int, samples: int, dtype: torch.dtype, device: torch.device,
               backend: str = "auto", size: int = 256) -> Job:
    planes = random_tensor(1, 3, size, size, channels, seed=5, dtype=dtype, device=device).movedim(-1, -3)
    decoder = TinyDecoder(channels, (64, 64)).to(device, dtype)
    place = (torch.arange(side, device=device) + 0.5) / side * 0.6 - 0.3
    y, x = torch.meshgrid(place, place, indexing="ij")
    directions = torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], -1), dim=-1).reshape(1, -1, 3)
    origins = torch.tensor([0.0, 0.0, 4.0], device=device).expand_as(directions).contiguous()

    def call(planes: Tensor) -> Tensor:
        found = render_triplane(planes, origins, directions, decoder, near=3.0, far=5.0, num_samples=samples,
                                backend=backend)
        assert found.rgb is not None
        return found.rgb
    return Job("render_triplane", f"{side}^2 rays x {samples} C{channels} {dtype}", _stepped(call, [planes]))


_MAKERS: dict[str, Callable[..., Job]] = {
    "rollout_conv": _convolution, "sample_triplane": _sampling, "render_triplane": _rendering}


def seconds_on_gpu(step: Step) -> float:
    """Median of some runs by events, after two to compile and warm up, each from a flushed cache."""
    other = torch.empty(1 << 27, dtype=torch.int32, device="cuda")
    times = []
    for run in range(9):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
        if run >= 2:
            times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


def seconds_on_cpu(step: Step) -> float:
    """Median of three runs by the wall clock after one to warm up."""
    step()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def search(job: Job, clock: Callable[[Step], float], end: float,
           say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The best parameters of every kernel that the job runs, as entries of a config file; stops at the time `end`."""
    with configs.overheard() as questions:
        plain = [t.clone() for t in job.step()]
    entries = []
    for question in questions:
        if all(len(values) < 2 for _, values in question.space):
            continue
        best, before, after = _best(job, question, plain, clock, end)
        entries.append({"operator": question.operator, "kernel": question.kernel, "shape": dict(question.shape),
                        "config": best, "before_us": round(before * 1e6, 1), "after_us": round(after * 1e6, 1)})
        say(f"{job.operator}, {job.name}: {question.kernel} {best}: {before * 1e6:.1f} -> {after * 1e6:.1f} us a step")
        if time.monotonic() > end:
            break
    return entries


def _best(job: Job, question: Question, plain: list[Tensor], clock: Callable[[Step], float],
          end: float) -> tuple[Config, float, float]:
    """Coordinate descent from the default, twice round, and the times of default and best."""
    best, space = dict(question.default), dict(question.space)
    before = after = clock(job.step)
    tried = {tuple(sorted(best.items()))}
    for name in [*space, *space]:
        for value in space[name]:
            candidate = {**best, name: value}
            key = tuple(sorted(candidate.items()))
            if key in tried or time.monotonic() > end:
                continue
            tried.add(key)
            taken = _try(job, question, candidate, plain, clock)
            if taken is not None and taken < after * (1 - GAIN):
                best, after = candidate, taken
    return best, before, after


def _try(job: Job, question: Question, candidate: Config, plain: list[Tensor],
         clock: Callable[[Step], float]) -> float | None:
    """Seconds of a step under the candidate; None if it does not compile, does not fit, or changes the result."""
    with configs.forced(question.operator, question.kernel, candidate):
        try:
            got = job.step()
            if not all(_same(a, b) for a, b in zip(got, plain, strict=True)):
                return None
            return clock(job.step)
        except Exception:  # Triton tells what does not fit by many kinds of errors; this candidate is out either way
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return None


def _same(got: Tensor, plain: Tensor) -> bool:
    size = plain.float().square().mean().sqrt().item()
    return (got.float() - plain.float()).square().mean().sqrt().item() <= TOLERANCE * max(size, 1e-12)


def write(path: Path, device: str, entries: Sequence[dict[str, Any]]) -> None:
    """Write a config file, replacing it at once; entries of an older file for other shapes are kept."""
    def key(entry: dict[str, Any]) -> str:
        return json.dumps([entry[name] for name in ("operator", "kernel", "shape")], sort_keys=True)

    old = configs.load(path) if path.is_file() else []
    joined = {key(entry): entry for entry in [*old, *entries]}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": configs.SCHEMA, "device": device, "torch": torch.__version__,
                       "entries": list(joined.values())}, indent=1)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="python -m rodin_kernels.tune", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--operator", action="append", default=[],
                   choices=("rollout_conv", "sample_triplane", "render_triplane"), help="only this; repeatable")
    p.add_argument("--seconds", type=float, default=1800.0, help="search no longer than this; default: 1800")
    p.add_argument("--ahead", type=int, default=0, metavar="N",
                   help="N processes compile and try the neighbours of the shipped parameters of some jobs before "
                        "this one times them: minutes where the full search takes hours; for some seconds' work use "
                        "all processors")
    p.add_argument("--dry-run", action="store_true",
                   help="rehearse at tiny sizes in Triton's interpreter (TRITON_INTERPRET=1), without a GPU; its times "
                        "mean nothing and are written only if --output is given")
    p.add_argument("--output", metavar="FILE", type=Path, help="default: this device's file in the user's folder")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if something was tuned (or rehearsed), 1 if no kernel could be, 2 if this machine cannot."""
    options = parser().parse_args(arguments)
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        print("rodin_kernels.tune: --dry-run needs TRITON_INTERPRET=1, set before Python starts", file=sys.stderr)
        return 2
    if not options.dry_run and not torch.cuda.is_available():
        print("rodin_kernels.tune: PyTorch sees no GPU on this machine; launch parameters are tuned on the device that "
              "they are for (--dry-run rehearses without)", file=sys.stderr)
        return 2
    if options.dry_run and options.ahead:
        return _tune_ahead(options, options.output or Path(os.devnull), "cpu", tiny_job, seconds_on_cpu)
    if options.dry_run:
        return _tune(tiny_jobs(), seconds_on_cpu, options, options.output, "cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    path = options.output or configs.user_folder() / f"{configs.device_key(device)}.json"
    if options.ahead:
        return _tune_ahead(options, path, torch.cuda.get_device_name(device))
    return _tune(jobs(device), seconds_on_gpu, options, path, torch.cuda.get_device_name(device))


def _tune(todo: Iterator[Job], clock: Callable[[Step], float], options: argparse.Namespace, path: Path | None,
          name: str) -> int:
    """Search job by job and write after each, so that what is known is kept whatever ends the search."""
    end, found = time.monotonic() + options.seconds, 0
    for job in todo:
        if options.operator and job.operator not in options.operator:
            continue
        if time.monotonic() > end:
            print("out of time")
            break
        entries = search(job, clock, end)
        found += len(entries)
        if entries and path is not None:
            write(path, name, entries)
        del job
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    where = f", written to {path}" if path is not None else ""
    print(f"{found} kernels tuned" + (where if found else ": none of them asks for parameters"))
    return 0 if found else 1


def _tune_ahead(options: argparse.Namespace, path: Path, name: str, make: Callable[[int], Job] = job_on_gpu,
                clock: Callable[[Step], float] = seconds_on_gpu) -> int:
    """Some jobs at a time: all neighbours are compiled by many processes, then timed, then the best are combined."""
    numbers = [i for i, job in enumerate(JOBS) if not options.operator or job[0] in options.operator]
    begin, found, pool = time.monotonic(), 0, ahead.Pool(options.ahead, make)
    end = begin + options.seconds
    try:
        for first in range(0, len(numbers), TOGETHER):
            now = time.monotonic()
            if now > end:
                print("out of time")
                break
            for number, entries in _searched(pool, numbers[first:first + TOGETHER], make, clock,
                                             now + AHEAD_SHARE * (end - now), end):
                found += len(entries)
                if entries and str(path) != os.devnull:
                    write(path, name, entries)
                print(f"job {number}: {len(entries)} kernels after {time.monotonic() - begin:.0f} s", flush=True)
    finally:
        pool.close()
    print(f"{found} kernels tuned, written to {path}")
    return 0 if found else 1


def _searched(pool: ahead.Pool, numbers: Sequence[int], make: Callable[[int], Job], clock: Callable[[Step], float],
              compiled: float, end: float) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The entries of each job; candidates are compiled until one time and timed until another."""
    asked: list[tuple[int, Question, list[ahead.Candidate]]] = []
    for number in numbers:
        with configs.overheard() as questions:
            make(number).step()
        asked += [(number, q, [ahead.candidate(number, q, c) for c in ahead.neighbours(q)]) for q in questions]
    usable = pool.usable([each for *_, candidates in asked for each in candidates], compiled)
    print(f"{len(usable)} of {sum(len(c) for *_, c in asked)} candidates run", flush=True)
    for number in numbers:
        job, entries = make(number), []
        plain = [t.clone() for t in job.step()]
        own = [(q, [c for c in candidates if c in usable]) for n, q, candidates in asked if n == number]
        for question, candidates in own:
            if not candidates or time.monotonic() > end:
                continue
            before = after = clock(job.step)
            best = default = dict(question.default)
            gains: dict[str, tuple[float, Value]] = {}
            for each in candidates:
                taken = _try(job, question, dict(each.config), plain, clock) if time.monotonic() < end else None
                if taken is None or taken >= before * (1 - GAIN):
                    continue
                best, after = (dict(each.config), taken) if taken < after else (best, after)
                (name, value), = [(k, v) for k, v in each.config if default[k] != v]
                gains[name] = min(gains.get(name, (taken, value)), (taken, value), key=lambda pair: pair[0])
            joint = {**default, **{name: value for name, (_, value) in gains.items()}}
            both = ahead.candidate(number, question, joint)
            if len(gains) > 1 and time.monotonic() < end and pool.usable([both], end):
                taken = _try(job, question, joint, plain, clock)
                best, after = (joint, taken) if taken is not None and taken < after * (1 - GAIN / 2) else (best, after)
            entries.append({"operator": question.operator, "kernel": question.kernel, "shape": dict(question.shape),
                            "config": best, "before_us": round(before * 1e6, 1), "after_us": round(after * 1e6, 1)})
            print(f"{job.operator}, {job.name}: {question.kernel} {best}: {before * 1e6:.1f} -> {after * 1e6:.1f} us "
                  "a step", flush=True)
        yield number, entries


if __name__ == "__main__":
    sys.exit(main())
