"""The README holds what it promises: two commands, links that lead somewhere, Python that runs."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = ('python -m rodin_model.generate "a bearded man with curly hair in a black leather jacket" '
        "--output-dir avatar")


def python_blocks(root: Path) -> list[str]:
    """The README's Python examples."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_readme_has_exactly_two_commands(root: Path) -> None:
    done = subprocess.run([sys.executable, ".ci/readme_commands.py"], cwd=root, capture_output=True, text=True,
                          check=True)
    assert done.stdout.splitlines() == [f'pip install -e ".[model]" && {MAIN}', 'pip install -e ".[dev]" && pytest']


def test_links_lead_to_files(root: Path) -> None:
    for page in root.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (root / target).exists(), f"{page.name} links to {target}"


def test_named_modules_exist(root: Path) -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        for name in set(re.findall(r"python -m (rodin_[\w.]*\w)", (root / page).read_text(encoding="utf-8"))):
            if not name.endswith("train"):
                assert (root / name.replace(".", "/")).with_suffix(".py").is_file(), f"{page} names {name}"


def test_the_tree_names_what_exists(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("```text\nrodin_kernels/"):text.index("Data flow in one direction")]
    package, missing = "", []
    for line in tree.splitlines():
        if re.match(r"\w+/", line):
            package = line.split("/")[0]
        names = re.match(r"  ((?:\w+(?:\.py|/) ?)+)", line)
        missing += [n for n in (names.group(1).split() if names else []) if not (root / package / n).exists()]
    assert not missing, missing


def test_the_example_of_the_operators_runs(root: Path) -> None:
    block, = (block for block in python_blocks(root) if "rodin_kernels" in block)
    checks = """
assert features.shape == (1, 1000, 16) and mixed.shape == (1, 3, 32, 64, 64)
assert rendered.rgb.shape == (1, 500, 3) and planes.grad.abs().sum() > 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", "import torch\ntorch.manual_seed(0)\n" + block + checks],
                   cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=900)


@pytest.mark.parametrize("block", [0, 1])
def test_what_the_examples_import_exists(root: Path, block: int) -> None:
    for node in ast.walk(ast.parse(python_blocks(root)[block])):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
