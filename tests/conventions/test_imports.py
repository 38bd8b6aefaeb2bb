"""The direction of imports: model -> kernels -> torch and triton; never upward, never sideways, never in circles."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OPERATORS = ("rollout_conv", "triplane_sample", "volume_render")
#: The renderer's fallback samples planes: the one edge between operators.
SIDEWAYS = {("volume_render", "triplane_sample")}


class Edge(NamedTuple):
    """One import: who, what (absolute), and whether it runs when the file is loaded."""

    path: Path
    source: str
    target: str
    eager: bool


def module_name(path: Path) -> str:
    """`a/b/c.py` -> `a.b.c`, `a/b/__init__.py` -> `a.b`."""
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST, eager: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import of a tree, with False for those inside functions or under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, eager
        else:
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
            yield from statements(node, eager and not lazy)


def edges(sources: dict[Path, ast.Module]) -> list[Edge]:
    """All imports of all sources; `from . import x` counts as the module x where there is one."""
    modules = {module_name(path) for path in sources}
    found = []
    for path, tree in sources.items():
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, eager in statements(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names]
            found += [Edge(path, name, target, eager) for target in dict.fromkeys(targets)]
    return found


def complain(bad: list[Edge]) -> str:
    """One line for every import that breaks a rule."""
    return "\n".join(f"{edge.path} imports {edge.target}" for edge in bad)


def operator(module: str) -> str | None:
    """The operator that a module of rodin_kernels belongs to, or None for what they share."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "rodin_kernels" and parts[1] in OPERATORS else None


def test_the_kernels_import_torch_and_triton_alone(sources: dict[Path, ast.Module]) -> None:
    allowed = {"rodin_kernels", "torch", "triton", "einops", *sys.stdlib_module_names}
    bad = [e for e in edges(sources)
           if e.source.startswith("rodin_kernels") and e.target.split(".")[0] not in allowed]
    assert not bad, complain(bad)


def test_the_kernels_import_themselves_relatively(sources: dict[Path, ast.Module]) -> None:
    def named(node: ast.Import | ast.ImportFrom) -> list[str]:
        return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]

    absolute = [f"{path}:{node.lineno}" for path, tree in sources.items() if path.parts[0] == "rodin_kernels"
                for node, _ in statements(tree)
                if not getattr(node, "level", 0) and any(n.startswith("rodin_kernels") for n in named(node))]
    assert not absolute, absolute


def test_operators_do_not_import_each_other(sources: dict[Path, ast.Module]) -> None:
    bad = []
    for edge in edges(sources):
        source, target = operator(edge.source), operator(edge.target)
        if source and target and source != target and (source, target) not in SIDEWAYS:
            bad.append(edge)
    assert not bad, complain(bad)


def test_kernel_files_import_triton_alone(sources: dict[Path, ast.Module]) -> None:
    bad = [e for e in edges(sources) if e.path.name.endswith("kernels.py")
           and e.target.split(".")[0] not in {"triton", "__future__"} and not e.target.endswith("kernels")]
    assert not bad, complain(bad)


def test_references_import_torch_layouts_and_references_alone(sources: dict[Path, ast.Module]) -> None:
    def fine(edge: Edge) -> bool:
        top, last = edge.target.split(".")[0], edge.target.split(".")[-1]
        if top != "rodin_kernels":
            return top in {"torch", "einops", *sys.stdlib_module_names}
        own = operator(edge.target) == operator(edge.source) and last not in {"op", "torch_path", "kernels"}
        return own or last in {"layouts", "checks", "reference"}

    bad = [e for e in edges(sources) if e.path.name == "reference.py" and not fine(e)]
    assert not bad, complain(bad)


def test_triton_is_loaded_by_kernel_files_alone(sources: dict[Path, ast.Module]) -> None:
    bad = [e for e in edges(sources) if e.eager and not e.path.name.endswith("kernels.py")
           and (e.target.split(".")[0] == "triton" or (e.target != "rodin_kernels" and e.target.endswith("kernels")))]
    assert not bad, complain(bad)


def test_nothing_imports_the_training_code_but_training_and_evaluation(sources: dict[Path, ast.Module]) -> None:
    bad = [e for e in edges(sources) if e.eager and e.target.startswith("rodin_model.train")
           and not e.source.startswith(("rodin_model.train", "rodin_model.evaluat"))]
    assert not bad, complain(bad)


def test_no_module_imports_in_a_circle(sources: dict[Path, ast.Module]) -> None:
    modules = {module_name(path) for path in sources}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for edge in edges(sources):
        # a package's __init__ gathers its modules, so only edges to modules themselves can close a circle
        if edge.eager and edge.target in modules and edge.target != edge.source:
            graph[edge.source].add(edge.target)
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"a circle among {sorted(graph)}"


_BLOCKED = """
import sys

class Absent:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Absent(finder) for finder in sys.meta_path]
import rodin_kernels
for name in rodin_kernels.__all__:
    getattr(rodin_kernels, name)
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def test_the_kernels_load_without_triton_and_without_the_model_layer(root: Path) -> None:
    code = _BLOCKED.format(blocked=("triton", "diffusers", "rodin_model", "PIL", "safetensors", "transformers"))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(root)}, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "rodin_kernels" in loaded
    assert not loaded & {"triton", "diffusers", "rodin_model", "PIL", "safetensors", "transformers"}
