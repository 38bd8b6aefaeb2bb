"""Arithmetic written down instead of computed: what one formula does to every point, as a short list of instructions.

A field's formulas are some hundred small operations on coordinate tensors. Run on a GPU one by one they cost as many
launches, which take longer than the arithmetic. `Value` stands in for such a tensor: the same formulas, called with
values, leave a `Tape`, and one kernel (`kernels.play`) runs the tape for all points at once. `Program.play` does the
same in plain torch and is its specification.

A value is `scale * node + shift`, so that factors and offsets that are numbers cost no instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Names by instruction number; `kernels.play` follows this order. The first group reads one operand, the second two,
#: the last three.
ONE = ("input", "output", "gather", "sqrt", "abs", "sin", "cos", "exp", "power", "round", "sign", "clamp", "positive")
TWO = ("add", "multiply", "minimum", "blend", "divide", "length2", "atan2")
THREE = ("length3", "where")
NUMBER = {name: base + i for base, names in ((0, ONE), (16, TWO), (32, THREE)) for i, name in enumerate(names)}
#: Numbers of an instruction: opcode, target and three operands; and its constants: scale and shift of the operands, two
#: more.
WORDS, CONSTANTS = 5, 8


class Tape:
    """Instructions in the order in which they were recorded, each once however often it was asked for."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self.tables: list[float] = []
        self._outputs: list[int] = []

    def emit(self, name: str, *operands: Value, extra: tuple[float, ...] = ()) -> Value:
        """Record `name` of `operands`; returns its result."""
        row = (name, tuple(v.node for v in operands), tuple(c for v in operands for c in (v.scale, v.shift)), extra)
        node = self._known.get(row)
        if node is None:
            node = self._known[row] = len(self.rows)
            self.rows.append(row)
        return Value(self, node)

    def input(self, number: int) -> Value:
        """Row `number` of the inputs."""
        return self.emit("input", extra=(float(number),))

    def output(self, value: Any) -> None:
        """Make `value`, a `Value` or a number, the next row of the outputs."""
        if not isinstance(value, Value):
            value = Value(self, self.input(0).node, 0.0, float(value))
        self._outputs.append(self.emit("output", value, extra=(float(len(self._outputs)),)).node)

    def gather(self, index: Value, table: list[float]) -> Value:
        """`table[index]`, where `index` is whole."""
        start = len(self.tables)
        self.tables += table
        return self.emit("gather", index, extra=(float(start), float(len(table) - 1)))

    def finish(self) -> Program:
        """The instructions that the outputs need, with registers assigned."""
        needed = set(self._outputs)
        for node in range(len(self.rows) - 1, -1, -1):
            if node in needed:
                needed.update(self.rows[node][1])
        last = {operand: node for node in sorted(needed) for operand in self.rows[node][1]}
        # flat lists, which become tensors several times faster than nested ones
        code: list[int] = []
        constants: list[float] = []
        place: dict[int, int] = {}
        free: list[int] = []
        registers = 0
        for node in sorted(needed):
            name, operands, affine, extra = self.rows[node]
            sources = [place[operand] for operand in operands]
            for operand in set(operands):
                if last[operand] == node:
                    free.append(place.pop(operand))
            if name == "output":
                target = 0
            else:
                if not free:
                    free.append(registers)
                    registers += 1
                target = place[node] = free.pop()
            code += (NUMBER[name], target, *sources, *(0, 0, 0)[len(sources):])
            # extra constants stand at the end, operands' at the beginning
            constants += (*affine, *(0.0,) * (6 - len(affine)), *extra, *(0.0, 0.0)[len(extra):])
        words = torch.tensor(code, dtype=torch.int32).reshape(-1, WORDS)
        numbers = torch.tensor(constants, dtype=torch.float32).reshape(-1, CONSTANTS)
        table = torch.tensor(self.tables or [0.0], dtype=torch.float32)
        return Program(words, numbers, table, max(registers, 1), len(self._outputs))


class Value:
    """What stands for a tensor [N] (or [N, 1]): `scale * node + shift` on a tape."""

    __slots__ = ("node", "scale", "shift", "tape")
    #: Tensors built for "as many points as this" hold one row, which broadcasts.
    shape, dtype = (1,), torch.float32

    def __init__(self, tape: Tape, node: int, scale: float = 1.0, shift: float = 0.0) -> None:
        self.tape, self.node, self.scale, self.shift = tape, node, scale, shift

    def _other(self, other: Any) -> Any:
        """A number as a number, a tensor of three as a tuple."""
        if isinstance(other, Tensor):
            numbers = other.flatten().tolist()
            return Colour(numbers) if len(numbers) == 3 else numbers[0]
        return other

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, Value):
            other = self._other(other)
            if isinstance(other, Colour):
                return other + self
            return Value(self.tape, self.node, self.scale, self.shift + other)
        if other.node == self.node:
            return Value(self.tape, self.node, self.scale + other.scale, self.shift + other.shift)
        return self.tape.emit("add", self, other)

    __radd__ = __add__

    def __neg__(self) -> Value:
        return Value(self.tape, self.node, -self.scale, -self.shift)

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Value):
            return self.tape.emit("multiply", self, other)
        other = self._other(other)
        if isinstance(other, Colour):
            return other * self
        return Value(self.tape, self.node, self.scale * other, self.shift * other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Value):
            return self.tape.emit("divide", self, other)
        return self * (1.0 / self._other(other))

    def __rtruediv__(self, other: Any) -> Any:
        one = Value(self.tape, self.node, 0.0, 1.0)
        return self.tape.emit("divide", one * other, self)

    def __pow__(self, exponent: float) -> Any:
        """Whole exponents by multiplication; others of positive values."""
        if exponent == 2:
            return self * self
        if exponent in (3, 4):
            return (self * self) * (self if exponent == 3 else self * self)
        return self.tape.emit("power", self, extra=(float(exponent),))

    def __gt__(self, other: Any) -> Any:
        return self.tape.emit("positive", self - other)

    def __lt__(self, other: Any) -> Any:
        return self.tape.emit("positive", other - self)

    def __getitem__(self, index: Any) -> Value:
        """`value[:, None]`: a column, which broadcasts as it is."""
        return self

    def abs(self) -> Value:
        """|x|."""
        return self.tape.emit("abs", self)

    def round(self) -> Value:
        """The nearest whole number."""
        return self.tape.emit("round", self)

    def clamp(self, low: float = -math.inf, high: float = math.inf) -> Value:
        """Between two numbers."""
        return self.tape.emit("clamp", self, extra=(float(low), float(high)))

    def clamp_min(self, low: float) -> Value:
        """At least `low`."""
        return self.clamp(low)

    def clamp_max(self, high: float) -> Value:
        """At most `high`."""
        return self.clamp(-math.inf, high)

    def to(self, *_: Any) -> Value:
        """Truth values are 0 and 1 already."""
        return self

    def length(self, y: Value, z: Value | None = None) -> Value:
        """`sdf.length` as one instruction."""
        return self.tape.emit("length2", self, y) if z is None else self.tape.emit("length3", self, y, z)

    def union(self, other: Value, blend: float) -> Value:
        """`sdf.union` as one instruction."""
        return self.tape.emit("blend", self, other, extra=(blend, 0.25 / blend))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        handler = _HANDLERS.get(function.__name__)
        if handler is None:
            raise NotImplementedError(f"{function.__name__} cannot be recorded on a tape")
        return handler(*args)


class Colour:
    """What stands for a tensor [N, 3]: three values or numbers."""

    __slots__ = ("channels",)
    dtype = torch.float32

    def __init__(self, channels: Any) -> None:
        self.channels = list(channels)

    def _each(self, other: Any) -> list[Any]:
        if isinstance(other, Tensor):
            other = Colour(other.flatten().tolist())
        return other.channels if isinstance(other, Colour) else [other] * 3

    def __add__(self, other: Any) -> Colour:
        return Colour(a + b for a, b in zip(self.channels, self._each(other), strict=True))

    __radd__ = __add__

    def __mul__(self, other: Any) -> Colour:
        return Colour(a * b for a, b in zip(self.channels, self._each(other), strict=True))

    __rmul__ = __mul__

    def __neg__(self) -> Colour:
        return Colour(-a for a in self.channels)

    def __sub__(self, other: Any) -> Colour:
        return Colour(a - b for a, b in zip(self.channels, self._each(other), strict=True))

    def __rsub__(self, other: Any) -> Colour:
        return -self + other

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        return Value.__torch_function__(function, types, args, kwargs)


def recorded(x: Any) -> Any:
    """`x` where it is a value on a tape, None where it is anything else."""
    return x if isinstance(x, Value) else None


def channels(color: Any) -> list[Any]:
    """The three channels of a recorded colour or of a tensor of one row."""
    return color.channels if isinstance(color, Colour) else color.flatten().tolist()


def _minimum(a: Any, b: Any) -> Any:
    return a.tape.emit("minimum", a, b)


def _acos(x: Value) -> Any:
    return _atan2(_sqrt(1 - x), _sqrt(1 + x)) * 2


def _sqrt(x: Value) -> Value:
    return x.tape.emit("sqrt", x)


def _atan2(y: Value, x: Value) -> Value:
    return y.tape.emit("atan2", y, x)


def _where(condition: Value, a: Any, b: Any) -> Any:
    if any(isinstance(v, Tensor | Colour) for v in (a, b)):
        pairs = zip(channels(a), channels(b), strict=True)
        return Colour(_where(condition, one, two) for one, two in pairs)
    blank = Value(condition.tape, condition.node, 0.0, 0.0)
    a, b = (v if isinstance(v, Value) else blank + v for v in (a, b))
    return condition.tape.emit("where", condition, a, b)


_HANDLERS: dict[str, Callable[..., Any]] = {
    "minimum": _minimum, "maximum": lambda a, b: -_minimum(-a, -b), "sqrt": _sqrt, "atan2": _atan2, "acos": _acos,
    "sin": lambda x: x.tape.emit("sin", x), "cos": lambda x: x.tape.emit("cos", x),
    "exp": lambda x: x.tape.emit("exp", x), "sign": lambda x: x.tape.emit("sign", x), "where": _where,
    "zeros_like": lambda x: 0.0, "full_like": lambda x, fill: Value(x.tape, x.node, 0.0, fill),
    "expand_as": lambda tensor, like: tensor,
    "mul": lambda a, b: b * a, "add": lambda a, b: b + a, "sub": lambda a, b: -b + a,
    "__mul__": lambda a, b: b * a, "__add__": lambda a, b: b + a, "__sub__": lambda a, b: -b + a,
    "__rmul__": lambda a, b: b * a, "__radd__": lambda a, b: b + a, "__rsub__": lambda a, b: b - a,
}


@dataclass(frozen=True)
class Program:
    """A finished tape: `code` int32 [R, WORDS], `constants` float32 [R, CONSTANTS], a `table` for `gather`."""

    code: Tensor
    constants: Tensor
    table: Tensor
    registers: int
    outputs: int

    def to(self, device: torch.device) -> Program:
        """The same on another device."""
        return Program(self.code.to(device, non_blocking=True), self.constants.to(device, non_blocking=True),
                       self.table.to(device, non_blocking=True), self.registers, self.outputs)

    def play(self, inputs: Tensor) -> Tensor:
        """Outputs [O, N] for `inputs` [I, N], one instruction after the other in plain torch."""
        names = {number: name for name, number in NUMBER.items()}
        register: list[Tensor] = [inputs[0]] * self.registers
        results: dict[int, Tensor] = {}
        for (opcode, target, *sources), constant in zip(self.code.tolist(), self.constants.tolist(), strict=True):
            name, extra = names[opcode], constant[6:]
            a, b, c = (register[s] * constant[2 * i] + constant[2 * i + 1] for i, s in enumerate(sources))
            if name == "output":
                results[int(extra[0])] = a
            else:
                register[target] = inputs[int(extra[0])] if name == "input" else self._do(name, a, b, c, extra)
        return torch.stack([results[i] for i in range(self.outputs)])

    def _do(self, name: str, a: Tensor, b: Tensor, c: Tensor, extra: list[float]) -> Tensor:
        """One instruction that is neither input nor output."""
        simple: dict[str, Callable[..., Tensor]] = {
            "sqrt": torch.sqrt, "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "exp": torch.exp,
            "round": torch.round, "sign": torch.sign}
        if name in simple:
            return simple[name](a)
        others: dict[str, Callable[[], Tensor]] = {
            "gather": lambda: self.table[int(extra[0]) + a.round().long().clamp(0, int(extra[1]))],
            "power": lambda: a ** extra[0], "clamp": lambda: a.clamp(extra[0], extra[1]),
            "positive": lambda: (a > 0).to(a.dtype), "add": lambda: a + b, "multiply": lambda: a * b,
            "minimum": lambda: torch.minimum(a, b), "divide": lambda: a / b, "atan2": lambda: torch.atan2(a, b),
            "blend": lambda: torch.minimum(a, b) - (extra[0] - (a - b).abs()).clamp_min(0) ** 2 * extra[1],
            "length2": lambda: torch.sqrt(a * a + b * b), "length3": lambda: torch.sqrt(a * a + b * b + c * c),
            "where": lambda: torch.where(a > 0.5, b, c)}
        return others[name]()
