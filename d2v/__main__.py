"""d2v COMMAND ...: one of the scripts by its name.

`d2v COMMAND --help` says what it takes. On several processes: accelerate launch -m d2v COMMAND ...
"""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from d2v.starting import stop_quietly

SCRIPTS = Path(__file__).parent / "scripts"
# in the order in which a user meets them; finetune_image, ... are finetune with a check
COMMANDS = (
    "demo",
    "configs",
    "show",
    "data",
    "codes",
    "pretrain",
    "evaluate",
    "embed",
    "search",
    "finetune",
    "predict",
    "convert",
    "completion",
)


def main() -> None:
    """Runs `d2v COMMAND ...`; without a command, or with --help in its place, lists them."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it may be {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    stop_quietly()
    run_cli = importlib.import_module("d2v.config.cli").run_cli
    run_cli(importlib.import_module(f"d2v.scripts.{name}").main)


def usage() -> str:
    """What each command does, by the first line of its file; none of them is imported."""
    lines = [(__doc__ or "").strip(), ""]
    for name in COMMANDS:
        said = ast.get_docstring(ast.parse((SCRIPTS / f"{name}.py").read_text("utf-8"))) or ""
        lines.append(f"  {name:<11} {said.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
