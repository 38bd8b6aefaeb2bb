"""The benchmarks' section of the README, written from the newest results of each device."""

from __future__ import annotations

import json
from pathlib import Path

from rodin_model.files import replace_between as replace

from . import report
from .machine import ROOT
from .run import RESULTS

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
#: Where the section goes in a page that does not have one.
BEFORE = "## Limits"


def section(folder: Path = RESULTS, root: Path = ROOT) -> str:
    """Table and plots of every device that has whole results; says so if there are none."""
    files = [p for p in sorted(folder.glob("*.json")) if not p.stem.endswith("-some")]
    found = [json.loads(p.read_text(encoding="utf-8")) for p in files]
    parts = []
    for results in sorted(found, key=lambda r: (r["kind"] != "cuda", r["device"])):
        at = folder.resolve().relative_to(root.resolve()).as_posix()
        parts += [f"### {results['device']}", "", report.facts(results), "", report.summary(results), "",
                  f"![Time against size]({at}/{results['slug']}-time.svg)", ""]
        if results["kind"] == "cuda":
            parts += [f"![Roofline]({at}/{results['slug']}-roofline.svg)", ""]
        if lines := report.missed(results):
            parts += ["Expected and missed:", "", *lines, ""]
        parts += [f"Everything, with spreads, errors and memory: [{results['slug']}.md]({at}/{results['slug']}.md)", ""]
    if not any(results["kind"] == "cuda" for results in found):
        parts += ["No whole run on a GPU is among these results, so there is no GPU's row.", ""]
    return "\n".join(parts).strip()


def write(page: Path = ROOT / "README.md", folder: Path = RESULTS, root: Path = ROOT) -> None:
    """Replace what stands between the markers; a page without them gets a section of its own."""
    replace(page, BEGIN, END, section(folder, root),
            "## Benchmarks\n\n`python -m benchmarks` runs what your machine can: every contender is checked against "
            "float64 before it is timed.\n\n", BEFORE)
