"""Lists the configs that d2v brings, one line each.

d2v configs [WORD ...]

Those whose name or purpose holds every WORD. Any of them may stand where a command takes CONFIG; `d2v show CONFIG`
says what its settings are.
"""

from d2v.config.cli import run_cli
from d2v.config.find import config_names, purpose


def main(argv: list[str]) -> None:
    """`argv`: words. ValueError: no config has them all."""
    chosen = []
    for name in config_names():
        line = f"{name:<30} {purpose(name)}"
        if all(word.lower() in line.lower() for word in argv):
            chosen.append(line)
    if not chosen:
        raise ValueError(f"no config has the words {' '.join(argv)}; without words all are listed")
    print("\n".join(chosen))


if __name__ == "__main__":
    run_cli(main)
