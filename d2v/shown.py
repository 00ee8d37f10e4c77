"""Names out of the user's data as they are shown: on a terminal, in Markdown, in a picture, in a spreadsheet.

Classes, labels, files and transcripts are anybody's: none of these may take a part of one for its own language.
"""

import re
import unicodedata
from typing import Any

KEPT = "\u200c\u200d"  # formatting that letters need: joiners of Persian, Hindi and emoji
MARKUP = re.compile(r"[\\`*{}\[\]<>|~$&]|(?<!\w)_|_(?!\w)")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a cell that a spreadsheet executes begins with


def printable(text: str) -> str:
    """On one line of a terminal: control characters, line breaks, turned directions and half surrogates as escapes."""
    return "".join(character if _is_shown(character) else _escaped(character) for character in text)


def in_markdown(text: str) -> str:
    r"""As text of Markdown, of a table too: `<` becomes `\<`."""
    return MARKUP.sub(r"\\\g<0>", printable(text))


def in_figure(text: str) -> str:
    r"""As matplotlib's text: between two `$` it would read mathematics, and fail on `$\x$`."""
    return printable(text).replace("$", r"\$")


def in_cell(value: Any) -> Any:
    """As a cell of a csv: what a spreadsheet would execute gets an apostrophe in front; numbers stay, as text too."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in KEPT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
