"""Files, functions and signatures stay small enough to read."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path for package in ("d2v", "modalities", "scripts", "benchmarks") for path in (ROOT / package).rglob("*.py")
)
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 400, 60, 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


def num_arguments(node: Function) -> int:
    """All named arguments; not self or cls, which nobody passes."""
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names[1:] if names[:1] in (["self"], ["cls"]) else names)


def too_large(source: str) -> list[str]:
    found = (
        [f"{source.count(chr(10))} lines in the file, at most {MAX_FILE - 1}"] if source.count("\n") >= MAX_FILE else []
    )
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                found.append(f"{node.name} (line {node.lineno}): {lines} lines, at most {MAX_FUNCTION}")
            if num_arguments(node) > MAX_ARGUMENTS:
                found.append(
                    f"{node.name} (line {node.lineno}): {num_arguments(node)} arguments, at most {MAX_ARGUMENTS}"
                )
    return found


def test_sizes():
    found = {str(path.relative_to(ROOT)): too_large(path.read_text("utf-8")) for path in FILES}
    assert len(found) > 100 and not {path: what for path, what in found.items() if what}


def test_no_large_file_is_kept():
    """As data or a run would be, that was written where it was tried."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sizes = {name: (ROOT / name).stat().st_size for name in names if (ROOT / name).is_file()}
    assert len(sizes) > 300 and {name: size for name, size in sizes.items() if size > 300_000} == {}


def test_the_limits_bite():
    assert too_large("x = 1\n" * 400) and not too_large("x = 1\n" * 399)
    assert too_large("def f():\n" + "    x = 1\n" * 60) and not too_large("def f():\n" + "    x = 1\n" * 59)
    assert too_large("def f(a, b, c, d, *, e, g, h, i, j): ...") and not too_large(
        "def f(self, a, b, c, d, *, e, g, h, i): ..."
    )
