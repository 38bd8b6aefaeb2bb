"""Results as a table, in Markdown: what ran, how fast ours was and against whom, and what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .case import OURS

Results = dict[str, Any]
Row = dict[str, Any]
OPERATORS = ("rollout_conv", "sample_triplane", "render_triplane", "unet_block", "generate")
_HEAD = ("| case | contender | forward | backward | both | ours faster: forward | both | peak memory | ours of it "
         "| error | of the floor |\n|---|---|---|---|---|---|---|---|---|---|---|")


def markdown(results: Results) -> str:
    """The whole report of one device."""
    parts = [f"# {results['device']}", "", facts(results), "", "Times are medians; (low to high) are quartiles. "
             "\"Ours faster\" is the median of paired ratios. Error: root mean square of the result and every gradient "
             "against float64, relative, the worst. Of the floor: measured ceilings over our time, forward; the floor "
             "counts what no implementation can leave out."]
    for operator in OPERATORS:
        rows = [row for row in results["rows"] if row["operator"] == operator]
        if rows:
            parts += ["", f"## {operator}", "", _HEAD, *(_line(row, results["rows"]) for row in rows)]
    parts += ["", "## Expected and found", "", *target_lines(results)]
    if results["skipped"]:
        parts += ["", "## Not run", "", *(f"- {line}" for line in results["skipped"])]
    return "\n".join(parts) + "\n"


def facts(results: Results) -> str:
    """Where the numbers come from, in one paragraph."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    ceilings = results["ceilings"]
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in ceilings["matmul"].items())
    return (f"{results['date']}, commit {results['commit']}, `{results['command']}`; {versions}. "
            f"{results['method']}. Ceilings measured in the same run: copy {ceilings['copy'] / 1e9:.3g} GB/s, "
            f"dense arithmetic {rates}, random reads {ceilings['gather'] / 1e9:.3g} GB/s, "
            f"random additions {ceilings['reduce'] / 1e9:.3g} GB/s.")


def summary(results: Results) -> str:
    """One line a case for the README: ours against every rival that was timed."""
    lines = ["| operator | case | ours, forward / both | times faster than | forward | both | peak memory |",
             "|---|---|---|---|---|---|---|"]
    for ours, rivals in by_case(results["rows"]):
        own = f"{seconds(_median(ours, 'forward'))} / {seconds(_median(ours, 'both'))}"
        for i, rival in enumerate(rivals):
            head = (ours["operator"], ours["case"], own) if i == 0 else ("", "", "")
            memory = _memory_share(ours, rival)
            lines.append(f"| {' | '.join(head)} | {rival['contender']} | {_ratio(rival, 'forward')} | "
                         f"{_ratio(rival, 'both')} | {memory} |")
    return "\n".join(lines)


def by_case(rows: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Our row and the rivals' of every case in which both have numbers."""
    for ours in rows:
        if ours["contender"] == OURS and "forward" in ours:
            rivals = [row for row in rows if row["case"] == ours["case"] and row["operator"] == ours["operator"]
                      and "forward" in row and not row["contender"].startswith(OURS)]
            if rivals:
                yield ours, rivals


def target_lines(results: Results) -> list[str]:
    """One line for every target of every case."""
    lines = []
    for row in results["rows"]:
        for target in row.get("targets", ()):
            mark = {True: "met", False: "**missed**", None: "not measured"}[target["met"]]
            lines.append(f"- {row['operator']}, {row['case']}: {_wanted(target)}: {mark}{_found(target)}"
                         + (f" ({target['cause']})" if target.get("cause") else ""))
    return lines or ["Nothing is expected of these cases on this device."]


def missed(results: Results) -> list[str]:
    """The lines of the targets that were missed."""
    return [line for line in target_lines(results) if "**missed**" in line]


def red(results: Results) -> list[str]:
    """What was not measured because it was wrong or failed, ours alone."""
    return [f"{row['operator']}, {row['case']}: {row['reason']}" for row in results["rows"]
            if not row["ok"] and row["contender"] == OURS]


def _wanted(target: Row) -> str:
    number = f"{target['limit']:g}"
    what = target["what"]
    if what in ("memory", "saved"):
        words = "peak memory" if what == "memory" else "bytes kept for the backward"
        return f"{words} at most {number} x that of {target['rival']}"
    if what == "peak":
        return f"forward holds at most {number} MiB at once"
    if what == "floor":
        return f"forward within {number} x its floor"
    if target["rival"]:
        return f"{what} at least {number} x faster than {target['rival']}"
    return f"{what} in at most {number} ms"


def _found(target: Row) -> str:
    return f", {target['found']:.3g}" if "found" in target else ""


def _line(row: Row, rows: list[Row]) -> str:
    if "forward" not in row:
        return f"| {row['case']} | {row['contender']} | no number: {row.get('reason', '')} |" + " |" * 8
    cells = [row["case"], row["contender"], *(_time(row, name) for name in ("forward", "backward", "both"))]
    own = row["contender"] == OURS
    cells += ["", ""] if own else [_ratio(row, "forward"), _ratio(row, "both")]
    ours = next(r for r in rows if r["operator"] == row["operator"] and r["case"] == row["case"])
    peak = row.get("peak", {})
    cells += [size(peak.get("both", peak.get("forward"))), "" if own else _memory_share(ours, row)]
    cells += [f"{row['psnr']:.0f} dB" if "psnr" in row else f"{row['error']:.0e}" if "error" in row else ""]
    share = row["forward"].get("of_floor")
    cells += [f"{share:.0%}" if share else ""]
    return "| " + " | ".join(cells) + " |"


def _time(row: Row, name: str) -> str:
    if name not in row:
        return ""
    if row["runs"] < 3:
        return f"{seconds(row[name]['median'])} ({row['runs']} run{'s' if row['runs'] > 1 else ''})"
    return f"{seconds(row[name]['median'])} ({seconds(row[name]['low'])} to {seconds(row[name]['high'])})"


def _median(row: Row, name: str) -> float | None:
    return row[name]["median"] if name in row else None


def _ratio(row: Row, name: str) -> str:
    return f"{row[name]['times_ours']['median']:.2f}x" if name in row else ""


def _memory_share(ours: Row, rival: Row) -> str:
    mine, other = (r.get("peak", {}) for r in (ours, rival))
    name = "both" if "both" in mine else "forward"
    return f"{mine[name] / other[name]:.2f} of it" if mine.get(name) and other.get(name) else ""


def seconds(value: float | None) -> str:
    """A time with three digits and a unit that fits."""
    if value is None:
        return "-"
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    factor, unit = next((pair for pair in units if value >= pair[0]), units[-1])
    return f"{value / factor:.3g} {unit}"


def size(value: float | None) -> str:
    """Bytes with three digits and a unit that fits."""
    if value is None:
        return ""
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
    factor, unit = next((pair for pair in units if value >= pair[0]), units[-1])
    return f"{value / factor:.3g} {unit}"
