"""Benchmarks of `rodin_kernels` that check before they time: `python -m benchmarks --help`.

One module an operator holds its cases: real shapes, our call, and rivals from the published way to the strongest that
plain PyTorch allows. `judge` compares every contender with float64 before a clock starts; `measure` times what passed,
in pairs, beside ceilings of the same machine in the same run; `report` and `plots` show it.
"""

import os

# the memory profiler's library writes to stderr whenever it starts
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
