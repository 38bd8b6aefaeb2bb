"""Plots written as SVG by hand, so that nothing must be installed: lines over logarithmic axes, and a roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from .case import OURS

#: Colours that stay apart for colour-blind readers (Okabe and Ito); ours is the first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 360, 250, 62, 34, 44, 16
Row = dict[str, Any]


@dataclass
class Panel:
    """One pair of logarithmic axes with named series of (x, y), joined by lines, and lines without points."""

    title: str
    x_name: str
    y_name: str
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    roofs: list[list[tuple[float, float]]] = field(default_factory=list)
    joined: bool = True


def time_panels(rows: Sequence[Row]) -> list[Panel]:
    """Milliseconds against size: a panel for each operator, forward and training step."""
    return _panels(rows, [("forward", "forward"), ("both", "forward + backward")], "milliseconds",
                   lambda row, name: row[name]["median"] * 1e3 if name in row else None)


def memory_panels(rows: Sequence[Row]) -> list[Panel]:
    """Peak mebibytes of a training step against size: a panel for each operator."""
    return _panels(rows, [("both", "forward + backward"), ("forward", "forward")], "peak memory in MiB",
                   lambda row, name: row.get("peak", {}).get(name, 0) / 2**20 or None)


def roofline(results: dict[str, Any]) -> Panel:
    """Operations per second against operations per byte, of the least work of each case, under measured roofs."""
    panel = Panel("roofline, forward", "operations per byte of inputs and outputs", "operations per second",
                  joined=False)
    for row in results["rows"]:
        facts = row.get("forward", {})
        if facts.get("bytes") and facts.get("flops"):
            name = f"{row['operator']}: {'ours' if row['contender'] == OURS else 'rivals'}"
            panel.series.setdefault(name, []).append((facts["flops"] / facts["bytes"],
                                                      facts["flops"] / facts["median"]))
    places = [x for points in panel.series.values() for x, _ in points]
    if places:
        low, high = min(places) / 2, max(places) * 2
        copy = results["ceilings"]["copy"]
        for rate in results["ceilings"]["matmul"].values():
            knee = rate / copy
            inside = [knee] if low < knee < high else []
            panel.roofs.append([(x, min(rate, x * copy)) for x in (low, *inside, high)])
    return panel


def _panels(rows: Sequence[Row], passes: Sequence[tuple[str, str]], y_name: str, value: Any) -> list[Panel]:
    panels = []
    for operator in dict.fromkeys(row["operator"] for row in rows):
        for name, words in passes:
            own = [row for row in rows if row["operator"] == operator and "CUDA graph" not in row["case"]
                   and "avatar" not in row["case"] and "forward" in row]
            panel = Panel(f"{operator}, {words}", own[0]["size_name"] if own else "", y_name)
            for row in own:
                y = value(row, name)
                if y:
                    panel.series.setdefault(row["contender"], []).append((row["size"], y))
            if panel.series and any(len(points) > 1 for points in panel.series.values()):
                panels.append(panel)
    return panels


def drawn(title: str, panels: Sequence[Panel]) -> str:
    """An SVG picture of the panels, two in a row, with a legend under each."""
    columns = min(2, max(1, len(panels)))
    deep = max((len(p.series) for p in panels), default=0) * LEGEND + HEIGHT + 12
    rows = -(-len(panels) // columns)
    width, height = columns * (WIDTH + 20) + 10, rows * deep + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="11">',
             f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
             f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>']
    for index, panel in enumerate(panels):
        x, y = index % columns * (WIDTH + 20), index // columns * deep + 34
        parts += [f'<g transform="translate({x},{y})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> list[str]:
    points = [p for many in [*panel.series.values(), *panel.roofs] for p in many]
    (x_low, x_high), (y_low, y_high) = (_range([p[i] for p in points]) for i in (0, 1))
    right, bottom = WIDTH - 8, HEIGHT - BOTTOM

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (math.log10(point[0]) - x_low) / (x_high - x_low)
        up = (math.log10(point[1]) - y_low) / (y_high - y_low)
        return round(LEFT + across * (right - LEFT), 1), round(bottom - up * (bottom - TOP), 1)

    parts = [f'<text x="{LEFT}" y="{TOP - 10}" font-weight="bold">{escape(panel.title)}</text>',
             f'<rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}" fill="none" stroke="#888"/>']
    for power in _ticks(x_low, x_high):
        x, _ = place((10**power, 10**y_low))
        parts += [f'<path d="M{x} {TOP}V{bottom}" stroke="#e4e4e4"/>',
                  f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{_number(power)}</text>']
    for power in _ticks(y_low, y_high):
        _, y = place((10**x_low, 10**power))
        parts += [f'<path d="M{LEFT} {y}H{right}" stroke="#e4e4e4"/>',
                  f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{_number(power)}</text>']
    middle = (TOP + bottom) / 2
    upright = f'transform="translate(13,{middle}) rotate(-90)"'
    parts += [f'<text x="{(LEFT + right) / 2}" y="{bottom + 30}" text-anchor="middle">{escape(panel.x_name)}</text>',
              f'<text {upright} text-anchor="middle">{escape(panel.y_name)}</text>']
    for roof in panel.roofs:
        parts.append(f'<path d="{_line([place(p) for p in roof])}" fill="none" stroke="#444" stroke-width="1.5"/>')
    for i, (name, many) in enumerate(panel.series.items()):
        parts += _series(panel, name, [place(p) for p in sorted(many)], i)
    return parts


def _series(panel: Panel, name: str, places: list[tuple[float, float]], index: int) -> list[str]:
    color = COLORS[index % len(COLORS)]
    bold = 2.4 if name == OURS else 1.3
    parts = []
    if panel.joined:
        parts.append(f'<path d="{_line(places)}" fill="none" stroke="{color}" stroke-width="{bold}"/>')
    radius = 3.5 if name == OURS or name.endswith("ours") else 2.5
    parts += [f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{color}"/>' for x, y in places]
    y = HEIGHT + index * LEGEND
    return [*parts, f'<rect x="{LEFT}" y="{y - 9}" width="10" height="10" fill="{color}"/>',
            f'<text x="{LEFT + 16}" y="{y}">{escape(name)}</text>']


def _line(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Logarithms of a range a little wider than the values."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.08 * (high - low), 0.15)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Logarithms of round numbers: powers of ten, and 2 and 5 times these where few fit."""
    powers = [float(p) for p in range(math.ceil(low), math.floor(high) + 1)]
    if len(powers) >= 3:
        return powers if len(powers) <= 8 else powers[::2]
    finer = [p + math.log10(m) for p in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return [p for p in finer if low <= p <= high]


def _number(power: float) -> str:
    value = 10**power
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor * 0.999:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"
