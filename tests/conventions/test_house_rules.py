"""The house rules that a machine can check: documented names, short files, no unsafe loading, no machine's paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 400
FOLDERS = ("rodin_kernels", "rodin_model", "tests", "benchmarks", "examples", ".ci")
#: Calls that run code found in data, by the dotted name in the source.
UNSAFE_CALLS = {"torch.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_FLAGS = {"shell", "trust_remote_code", "allow_pickle"}
#: Written with classes of one letter so that the patterns do not find themselves.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:w[o]rk|r[o]ot|t[m]p|h[o]me|f[a]rm|m[n]t)/")
LEFTOVER = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")


def written_files(root: Path) -> list[Path]:
    """Every text file that people wrote."""
    inside = [p for folder in FOLDERS for p in (root / folder).rglob("*") if "__pycache__" not in p.parts]
    kinds = {".py", ".md", ".toml", ".json", ".sh", ""}
    return [p for p in [*inside, *root.glob("*.md"), root / "pyproject.toml"] if p.is_file() and p.suffix in kinds]


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a name or attribute, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without a docstring; inner functions are nobody's business."""

    def visit(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                yield from visit(node.body, prefix)
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            marks = {dotted(d).rpartition(".")[2] for d in node.decorator_list}
            if node.name.startswith("_") or marks & {"overload", "setter"}:
                continue
            if not ast.get_docstring(node):
                yield f"{prefix}{node.name} (line {node.lineno})"
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{prefix}{node.name}.")

    if tree.body and not ast.get_docstring(tree):
        yield "the module itself"
    yield from visit(tree.body, "")


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Calls, imports and flags that would let data run code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in UNSAFE_CALLS:
                yield f"{dotted(node.func)} in line {node.lineno}"
            for word in node.keywords:
                off = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in UNSAFE_FLAGS and not off:
                    yield f"{word.arg} in line {node.lineno}"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from (f"import {n}" for n in names if n.split(".")[0] in UNSAFE_MODULES)


def test_every_public_name_has_a_docstring(sources: dict[Path, ast.Module]) -> None:
    bad = [f"{path}: {name}" for path, tree in sources.items() for name in undocumented(tree)]
    assert not bad, "\n".join(bad)


def test_files_stay_short_enough_to_read(root: Path) -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in written_files(root) if p.suffix == ".py"}
    long = {str(p.relative_to(root)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not long, long


def test_nothing_loads_code_from_data(root: Path) -> None:
    bad = [f"{p.relative_to(root)}: {what}" for p in written_files(root) if p.suffix == ".py"
           for what in unsafe(ast.parse(p.read_text(encoding="utf-8")))]
    assert not bad, "\n".join(bad)


def test_the_search_for_unsafe_calls_finds_them() -> None:
    bad = "import pickle\nx = torch.load(f)\neval(s)\nsubprocess.run(c, shell=True)\nnp.load(f, allow_pickle=True)"
    assert len(list(unsafe(ast.parse(bad)))) == 5
    assert not list(unsafe(ast.parse("model.eval()\nrun(c, shell=False)\nre.compile(x)")))


def test_no_file_names_a_machine_or_leaves_work_for_later(root: Path) -> None:
    bad = []
    for path in written_files(root):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or LEFTOVER.search(line):
                bad.append(f"{path.relative_to(root)}:{number}: {line.strip()[:80]}")
    assert not bad, "\n".join(bad)


def test_shipped_files_stay_small(root: Path) -> None:
    shipped = [p for p in (root / "rodin_model" / "pretrained").rglob("*") if p.is_file()]
    assert all(p.stat().st_size < 15 * 2**20 for p in shipped), [str(p) for p in shipped]
    assert sum(p.stat().st_size for p in shipped) < 40 * 2**20
