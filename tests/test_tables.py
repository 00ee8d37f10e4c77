"""Tables as they are written: cells, delimiters, headers, encodings, paths, names of rows, segments."""

import codecs

import pytest

from d2v.modalities.common.encodings import open_text

MARKS = {
    "utf-8": b"",
    "utf-8-sig": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
}


def written(text: str, encoding: str) -> bytes:
    """Text in an encoding, with its mark."""
    return MARKS[encoding] + text.encode(encoding.removesuffix("-sig"))


# Encodings.


@pytest.mark.parametrize("encoding", MARKS)
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(written("grün\r\nmüde\n", encoding))
    with open_text(tmp_path / "a.txt") as file:
        assert file.read() == "grün\nmüde\n"
    with open_text(tmp_path / "a.txt", newline="") as file:
        assert file.read() == "grün\r\nmüde\n"


def test_bytes_that_are_no_utf8_are_replaced(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"gr\xfcn\n")
    with open_text(tmp_path / "a.txt") as file:
        assert file.read() == "gr\ufffdn\n"
