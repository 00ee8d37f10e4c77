"""Measures the code by ast, for the table in dev/LOG.md: python dev/tree.py [ROOT]

Arrows and floors are of imports between modules of the project, at their top or inside functions;
a floor is the longest way down.
"""

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

PACKAGES = ("d2v", "modalities", "scripts")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def main(root: Path) -> None:
    """Prints one line a figure."""
    files: list[Path] = []
    for package in PACKAGES:
        files += sorted((root / package).rglob("*.py"))
    trees, lines, nodes = {}, [], []
    for path in files:
        source = path.read_text("utf-8")
        trees[path] = ast.parse(source)
        lines += source.splitlines()
        nodes += ast.walk(trees[path])
    lengths = [node.end_lineno - node.lineno + 1 for node in nodes if is_function(node)]
    comprehensions = sum(isinstance(node, COMPREHENSIONS) for node in nodes)
    graph = imports(root, trees)
    floors, circular = floors_of(graph)
    yamls = sorted((root / "configs").rglob("*.yaml"))
    print(f"files {len(files)}")
    print(f"lines {len(lines)}")
    print(f"functions {len(lengths)}, median {median(lengths):.0f}, 90th percentile {quantiles(lengths, n=10)[-1]:.0f}")
    print(f"lines above 120 columns {100 * sum(len(line) > 120 for line in lines) / len(lines):.1f} %")
    print(f"comprehensions per 100 lines {100 * comprehensions / len(lines):.1f}")
    print(f"arrows {sum(map(len, graph.values()))}, floors {floors}, modules in circles {circular}")
    print(f"YAML files {len(yamls)}, lines {sum(len(path.read_text().splitlines()) for path in yamls)}")
    print(f"modules directly in d2v/ {len(list((root / 'd2v').glob('*.py')))}")
    tracked = subprocess.run(["git", "-C", str(root), "ls-files", "*.py"], capture_output=True, text=True, check=True)
    print(f"python files under git {len(tracked.stdout.split())}")


def is_function(node: ast.AST) -> bool:
    """Whether a node defines a function."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports(root: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Which modules of the project each imports; a package's own name does not count for what is inside it."""
    names = {module_name(root, path): tree for path, tree in trees.items()}
    graph: dict[str, set[str]] = {}
    for name, tree in names.items():
        wanted = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = {other for other in wanted if other in names and not f"{name}.".startswith(f"{other}.")}
    return graph


def module_name(root: Path, path: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "modalities" and (root / "d2v" / "modalities").exists():
        parts = ("d2v", *parts)
    return ".".join(parts).removesuffix(".__init__")


def floors_of(graph: dict[str, set[str]]) -> tuple[int, int]:
    """The number of floors when leaves are taken away one floor after the other, and how many modules are left."""
    floors = 0
    while leaves := [name for name, others in graph.items() if not others]:
        graph = {name: others.difference(leaves) for name, others in graph.items() if name not in leaves}
        floors += 1
    return floors, len(graph)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
