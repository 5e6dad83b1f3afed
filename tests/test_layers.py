"""The wall that holds the house: who may import whom."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src/tailorbird"
LAYERS = """errors
    | provenance storage progress wire types
    | codec
    | client control model processing sim
    | checkpoint data robots
    | train infer
    | evals live perf serve
    | recipes
    | cli
    | __init__ __main__"""
RANK = {name: rank for rank, row in enumerate(LAYERS.split("|")) for name in row.split()}
FILES = sorted(SRC.rglob("*.py"))
FENCES = {  # third-party packages, besides NumPy, that a part may import at the top of a file
    "errors": set(),
    "provenance": set(),
    "storage": set(),
    "progress": {"rich"},
    "wire": set(),
    "types": {"torch"},
    "codec": {"msgpack"},
    "client": {"websockets"},
    "control": set(),
    "model": {"torch"},
    "processing": {"torch", "tokenizers", "PIL", "av", "jinja2"},
    "sim": {"gymnasium"},
    "checkpoint": {"torch", "safetensors"},
    "data": {"torch", "pyarrow", "av", "PIL"},
    "train": {"torch", "safetensors"},
    "infer": {"torch", "numpy", "openvino", "onnxruntime", "onnxscript"},
    "evals": {"torch", "rich", "av", "PIL", "matplotlib", "jinja2"},
    "perf": {"torch", "rich", "av", "PIL"},
    "robots": set(),
    "serve": {"torch", "websockets", "prometheus_client", "inspect_robots"},
    "live": {"rich", "rerun"},
    "recipes": set(),
    "cli": {"tyro"},
    "__init__": set(),
    "__main__": {"tyro"},
}


def part_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> list[tuple[int, str]]:
    """Line and module of every import of a file, or of those outside functions."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if top_only and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    here = part_of(path)
    for line, module in imports(path):
        if module.startswith("tailorbird."):
            there = module.split(".")[1]
            assert there == here or RANK[there] < RANK[here], f"{path}:{line}: {here} may not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_third_party_packages_stay_behind_their_fence(path: Path) -> None:
    import sys

    allowed = FENCES[part_of(path)] | {"numpy", "tailorbird"} | set(sys.stdlib_module_names)
    for line, module in imports(path, top_only=True):
        assert module.split(".")[0] in allowed, f"{path}:{line}: {part_of(path)} may not import {module}"


def test_packages_hold_nothing_but_a_docstring() -> None:
    for path in SRC.glob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert [type(node) for node in body] == [ast.Expr], path
