"""Sizes, spelling and reading budgets of the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tailorbird

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src/tailorbird"
CODE = sorted(path for part in ("src", "tests", "bench", "scripts") for path in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.isascii(), f"{path} has characters beyond ASCII"
    assert len(text.splitlines()) <= 600, f"{path} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{path}:{node.lineno}: {node.name} has {length} lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [a for a in arguments if a.arg not in ("self", "cls")]
            assert len(named) <= 7, f"{path}:{node.lineno}: {node.name} has {len(named)} parameters"


def test_no_two_files_of_the_tests_have_one_name() -> None:
    """There are no packages: the second would not be found."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)
    told = [path for path in CODE if "from conftest import" in path.read_text() and path != Path(__file__)]
    assert not told, "of several conftest.py, which one is found is chance"


def closure(start: str) -> set[Path]:
    """The files of this project that importing a module reads, function bodies included."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        path = SRC.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if not path.exists() or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tailorbird"):
                todo += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize(
    ("start", "files", "lines"),
    [
        ("tailorbird.model.build", 14, 2000),
        ("tailorbird.infer.policy", 44, 5700),
        ("tailorbird.train.loop", 40, 5200),
        ("tailorbird.recipes.finetune", 76, 9500),  # train, of a policy
        ("tailorbird.recipes.vlm", 100, 12900),  # train vision and video, finetune
        ("tailorbird.cli.chat", 54, 7100),
        ("tailorbird.cli.serve", 60, 7800),
        ("tailorbird.client", 4, 850),
    ],
)
def test_what_one_must_read_to_follow_a_command_stays_within_its_budget(
    start: str, files: int, lines: int
) -> None:
    read = closure(start)
    total = sum(len(path.read_text().splitlines()) for path in read)
    assert len(read) <= files, sorted(str(path.relative_to(SRC)) for path in read)
    assert total <= lines


def test_every_public_name_loads_and_an_unknown_one_is_explained() -> None:
    for name in tailorbird.__all__:
        assert getattr(tailorbird, name).__name__ == name
    with pytest.raises(AttributeError, match=r"it offers .*load_policy"):
        _ = tailorbird.load_plan


def test_the_command_line_explains_itself_without_loading_torch() -> None:
    code = """
import sys
from tailorbird.__main__ import main
sys.argv = ["tailorbird", "demo", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "av", "mujoco", "gymnasium", "pyarrow", "matplotlib"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--record.noise.shove-rate" in done.stdout
