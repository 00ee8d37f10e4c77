"""Prints what makes a shell complete commands and names of configs.

eval "$(d2v completion bash)"      (or zsh; in ~/.bashrc or ~/.zshrc it lasts)
"""

from d2v.__main__ import COMMANDS
from d2v.config.cli import run_cli
from d2v.config.find import config_names

BASH = """_d2v() {{
  local words="{configs}"
  [ "$COMP_CWORD" = 1 ] && words="{commands}"
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}") $(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _d2v d2v"""
SHELLS = {"bash": BASH, "zsh": f"autoload -Uz compinit bashcompinit; compinit; bashcompinit\n{BASH}"}


def main(argv: list[str]) -> None:
    """`argv`: the shell. ValueError: another one."""
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise ValueError(f"usage: d2v completion {'|'.join(SHELLS)}; it was {' '.join(argv)!r}")
    print(SHELLS[argv[0]].format(configs=" ".join(config_names()), commands=" ".join(COMMANDS)))


if __name__ == "__main__":
    run_cli(main)
