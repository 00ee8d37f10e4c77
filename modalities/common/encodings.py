"""Text files as what they say they are: a byte order mark names UTF-16 or UTF-32, all others are UTF-8."""

import codecs
from pathlib import Path
from typing import TextIO

# UTF-32 first: its mark begins with that of UTF-16
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(path: Path) -> str:
    """The encoding that the first bytes of a file name; UTF-8 if they name none."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """The file for reading, without its mark; what is no text of its encoding reads as U+FFFD. `newline`: as open's."""
    return path.open(encoding=encoding_of(path), errors="replace", newline=newline)
