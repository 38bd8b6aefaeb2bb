"""Clocks and memory: paired runs on a CPU, events with a flushed cache on a GPU, peaks and saved bytes on both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Stage = Callable[[], Any]


class CpuClock:
    """Wall clock around each stage; the caller runs contenders in turn, so that a busy moment meets all of them."""

    kind = "cpu"
    method = "wall clock, paired runs"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def seconds(self, *stages: Stage) -> list[float]:
        """Seconds that each stage took, run one after another."""
        marks = [time.perf_counter()]
        for stage in stages:
            stage()
            marks.append(time.perf_counter())
        return [b - a for a, b in zip(marks[:-1], marks[1:], strict=True)]

    def peak(self, run: Stage) -> int:
        """Bytes that `run` held at once beyond what was there before."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
        events = [(e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events()
                  if e.name() == "[memory]"]
        total = peak = 0
        for _, change in sorted(events, key=lambda event: event[0]):
            total += change
            peak = max(peak, total)
        return peak

    def graphed(self, run: Stage) -> Stage | None:
        """There are no graphs to replay on a CPU."""
        return None


class GpuClock:
    """CUDA events around each stage, after a kernel that replaces what the cache holds.

    Writing the buffer takes longer than Python needs to launch a few kernels, so that launches are not timed twice;
    what is longer than that is the price of eager execution and belongs to the result.
    """

    kind = "cuda"
    method = "CUDA events, cache flushed; float32 without tf32, convolutions of the library autotuned"

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        # everybody computes float32 as exactly as ours, and the library's convolutions are as fast as they can be
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        properties = torch.cuda.get_device_properties(index)
        size = max(2 * getattr(properties, "L2_cache_size", 0), 1 << 29)
        self._other = torch.empty(size // 4, dtype=torch.int32, device=self.device)

    def seconds(self, *stages: Stage) -> list[float]:
        """Seconds that each stage took on the GPU, run one after another from a cold cache."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
        torch.cuda.synchronize(self.device)
        self._other.zero_()
        events[0].record()
        for event, stage in zip(events[1:], stages, strict=True):
            stage()
            event.record()
        torch.cuda.synchronize(self.device)
        return [a.elapsed_time(b) / 1e3 for a, b in zip(events[:-1], events[1:], strict=True)]

    def peak(self, run: Stage) -> int:
        """Bytes that `run` held at once beyond what was there before."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def graphed(self, run: Stage) -> Stage | None:
        """`run` captured as a CUDA graph, or None where something in it cannot be captured."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return None
        return graph.replay


Clock = CpuClock | GpuClock


@lru_cache(maxsize=1)
def clocks() -> Sequence[Clock]:
    """A clock for every kind of device that this machine has, the fastest first."""
    return [GpuClock(), CpuClock()] if torch.cuda.is_available() else [CpuClock()]


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that the graph of `run`'s result keeps for the backward, inputs included, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storages.values())
