"""Text files as what they say they are: a byte order mark names UTF-16 or UTF-32, all others are UTF-8."""

import codecs
from collections.abc import Iterable
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

MOST_READ, PIECE, MOST_NAMED = 1 << 28, 1 << 20, 5  # bytes in all and at a time; files


def encoding_of(path: Path) -> str:
    """The encoding that the first bytes of a file name; UTF-8 if they name none."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")


def not_text(files: Iterable[Path]) -> list[Path]:
    """Those that hold what is no text of their encoding, the first few of the first quarter of a gigabyte."""
    found, left = [], MOST_READ
    for file in files:
        decoder = codecs.getincrementaldecoder(encoding_of(file))()
        with file.open("rb") as content:
            try:
                while (piece := content.read(PIECE)) and left > 0:
                    left -= len(piece)
                    decoder.decode(piece)
                decoder.decode(b"", final=left > 0)
            except UnicodeDecodeError:
                found.append(file)
        if left <= 0 or len(found) == MOST_NAMED:
            break
    return found


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """The file for reading, without its mark; what is no text of its encoding reads as U+FFFD. `newline`: as open's."""
    return path.open(encoding=encoding_of(path), errors="replace", newline=newline)
