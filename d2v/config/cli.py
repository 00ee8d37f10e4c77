"""What every script does with its command line."""

import sys
from collections.abc import Callable

from d2v.config.written import in_home


def take_arguments(arguments: list[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """The values of `name=value` for `names`, paths that are no settings ("" if not given), and the other arguments."""
    taken, others = {name: "" for name in names}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in names:
            taken[name] = in_home(value)
        else:
            others.append(argument)
    return taken, others


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Runs a script's `main` on the command line; --help shows the script's docstring.

    A ValueError becomes one line on stderr and exit code 2.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((sys.modules[main.__module__].__doc__ or "").strip())
        return
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
