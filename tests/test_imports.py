"""Arrows point one way (scripts -> modalities -> d2v), and the core names no modality."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("scripts", "d2v.scripts")
FORBIDDEN = {"d2v": ("d2v.modalities", "modalities", *SCRIPTS), "modalities": ("modalities", *SCRIPTS)}
MODALITIES = {
    folder.name
    for folder in (ROOT / "modalities").iterdir()
    if folder.is_dir() and folder.name not in ("common", "__pycache__")
}
PLAIN = {"text"}  # alone, as a variable, it is any string
CORE = sorted(path for path in (ROOT / "d2v").rglob("*.py") if "interop" not in path.relative_to(ROOT).parts)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Modules that a module imports, inside functions too; of `from a import b` both a and a.b, since b may be one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are docstrings: prose may name a modality."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def named(source: str, modalities: set[str]) -> list[tuple[int, str]]:
    """Lines where a module names a modality.

    As a whole string constant, or as a word of an identifier that it makes or uses.
    """
    tree = ast.parse(source)
    prose, hits = docstrings(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose and node.value in modalities:
                hits.append((node.lineno, repr(node.value)))
            continue
        if isinstance(node, ast.Attribute):
            name = (
                node.attr if isinstance(node.ctx, ast.Store) else None
            )  # what is only read may be another library's: Path.read_text
        else:
            name = {ast.Name: "id", ast.arg: "arg"}.get(
                type(node), "name"
            )  # "name": functions, classes, imported names
            name = getattr(node, name, None)
        if isinstance(name, str) and name not in PLAIN and modalities & set(words(name)):
            hits.append((getattr(node, "lineno", 0), name))
    return hits


def words(identifier: str) -> list[str]:
    """Lower-case words of a snake_case or CamelCase identifier."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", identifier)]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows(package: str):
    wrong = {}
    for path in files(package):
        for name in imported(ast.parse(path.read_text("utf-8"))):
            if any(f"{name}.".startswith(f"{other}.") for other in FORBIDDEN[package]):
                wrong[str(path.relative_to(ROOT))] = name
    assert not wrong


def test_no_module_waits_for_another_that_waits_for_it():
    """The graph of imports at the top of modules has no circle."""
    paths = [*files("d2v"), *files("modalities"), *files("scripts")]
    graph = {module_name(path): imported(ast.parse(path.read_text("utf-8"))) for path in paths}
    for (
        name,
        names,
    ) in graph.items():  # a sibling is imported from the package of both, which is no arrow to the package
        graph[name] = {other for other in names if other in graph and not f"{name}.".startswith(f"{other}.")}
    while leaves := [name for name, others in graph.items() if not others]:
        graph = {name: others.difference(leaves) for name, others in graph.items() if name not in leaves}
    assert not graph


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("d2v", *parts) if parts[0] in ("modalities", "scripts") else parts
    return ".".join(parts).removesuffix(".__init__")


def test_there_is_something_to_walk():
    assert CORE and {"image", "speech", "text"} <= MODALITIES


# Task classes of the Hugging Face world, and their outputs, carry a modality in their name;
# users look for exactly them.
TASK_CLASS = re.compile(r"^((D2vFor|AutoModelFor)\w+|\w+ClassifierOutput)$")


def test_core_names_no_modality():
    hits = [
        (str(path.relative_to(ROOT)), line, name)
        for path in CORE
        for line, name in named(path.read_text("utf-8"), MODALITIES)
        if not TASK_CLASS.match(name.strip("'"))
    ]
    assert not hits


def test_the_walk_finds_what_it_should():
    source = (
        "def f(image_size):\n"
        '    """About image."""\n'
        "    self.text_dim = p.read_text(text=1)\n"
        '    text = x["text"]; return SpeechModel, "a text"\n'
    )
    assert {name for _, name in named(source, {"image", "speech", "text"})} == {
        "image_size",
        "text_dim",
        "'text'",
        "SpeechModel",
    }
    source = "def f():\n    from d2v.modalities.image import batches\n    import scripts.x as y"
    assert imported(ast.parse(source)) == {"d2v.modalities.image", "d2v.modalities.image.batches", "scripts.x"}


@pytest.mark.slow
def test_auto_classes_know_us_in_either_order_of_imports():
    """Each order in a fork of a process that has torch, whose import takes longest and is not in question."""
    code = (
        "import os, sys, torch, torchvision\n"
        "assert 'd2v' not in sys.modules and 'transformers' not in sys.modules\n"
        "for first in ('import d2v', 'from transformers import AutoModel, AutoConfig'):\n"
        "    if (child := os.fork()) == 0:\n"
        "        exec(first)\n"
        "        import d2v\n"
        "        from transformers import AutoConfig, AutoModel\n"
        "        assert type(AutoConfig.for_model('d2v')) is d2v.D2vConfig\n"
        "        trunk = {'depth': 1, 'dim': 8, 'num_heads': 2, 'mlp_dim': 8}\n"
        "        config = d2v.D2vConfig({'image': {'image_size': 8, 'patch_size': 4}}, trunk)\n"
        "        assert type(AutoModel.from_config(config)) is d2v.D2vModel\n"
        "        os._exit(0)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, first\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("package", ["d2v", "modalities", "scripts"])
def test_no_private_module_of_a_library_is_imported(package: str):
    """The next version within the ranges of pyproject.toml may not have it."""
    wrong = {}
    for path in files(package):
        for name in imported(ast.parse(path.read_text("utf-8"))):
            if not name.startswith("d2v") and any(part.startswith("_") for part in name.split(".")[:-1]):
                wrong[str(path.relative_to(ROOT))] = name
    assert not wrong
