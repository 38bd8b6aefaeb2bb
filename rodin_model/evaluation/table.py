"""The report as a table for people, and its place in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rodin_model.evaluation.sampler import Row
from rodin_model.files import replace_between

BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"
#: What stands before the markers in a page that has none yet, and the line that the section goes before.
HEAD = "## What the model can do\n\n"
BEFORE = "## Benchmarks"
README = Path(__file__).parents[2] / "README.md"


def markdown(rows: Sequence[Row]) -> str:
    """One line for each row: what, chance, the ceiling on true pictures, this model, and of how many."""
    lines = ["| what | chance | true pictures | this model | n |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.unit.format(v) if v is not None else "" for v in (row.chance, row.ceiling, row.result))
        lines.append(f"| {row.what} | {' | '.join(cells)} | {row.n} |")
    return "\n".join(lines)


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """The rows in what `evaluation.json` holds, all parts in order."""
    return [Row(**row) for part in report["parts"].values() for row in part["rows"]]


def section(report: Mapping[str, Any]) -> str:
    """The table with the facts under which it was measured."""
    return (f"`python -m rodin_model.evaluate`, model {report['model']}, {report['date']}. The judge is the attribute "
            f"reader, a network trained on true pictures alone. \"True pictures\" is what it names rightly on those, "
            f"the most that any model could show; of distances, what true avatars give. \"n\" is how often something "
            f"was asked for.\n\n{markdown(rows_of(report))}")


def write(report: Mapping[str, Any], page: Path = README) -> None:
    """Put the section between its markers in `page`. FileNotFoundError without such a page (an installed package)."""
    if not page.is_file():
        raise FileNotFoundError(f"there is no {page.name} to write into; --write-readme is for a checkout")
    replace_between(page, BEGIN, END, section(report), HEAD, BEFORE)
