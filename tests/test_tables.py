"""Tables as they are written: cells, delimiters, headers, encodings, paths, names of rows, segments."""

import codecs

import datasets
import numpy as np
import pytest

from d2v.modalities.common import tables
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


# Segments.


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"offset": ["0", "12.5"], "duration": ["2", "1.5"]}, [[0, 2], [12.5, 14]]),
        ({"offset": [0, 12.5], "duration": [None, 1.5]}, [[0, np.nan], [12.5, 14]]),
        ({"start": ["", "3"], "end": ["1.5", None]}, None),
        ({"start": [None, "3"], "end": ["1.5", None]}, [[0, 1.5], [3, np.nan]]),
        ({"start": [1, 2]}, [[1, np.nan], [2, np.nan]]),
        ({"start": [1, 2], "end": [4, 5], "duration": [100, 100]}, [[1, 4], [2, 5]]),  # of the whole file
    ],
)
def test_segments_are_read_in_seconds(columns, wanted):
    dataset = datasets.Dataset.from_dict({"file": ["a.wav"] * 2, **columns})
    if wanted is None:
        with pytest.raises(ValueError, match="row 1 of column 'start' is ''; it must be seconds"):
            tables.segments(dataset)
    else:
        np.testing.assert_array_equal(tables.segments(dataset), wanted)


def test_tables_without_segments_and_cells_that_hold_sound_are_whole():
    assert tables.segments(datasets.Dataset.from_dict({"file": ["a.wav"], "duration": [3.0]})) is None
    cut = {"audio": [{"bytes": b"x", "path": "a.wav"}], "start": [3.0], "end": [4.0]}
    assert tables.segments(datasets.Dataset.from_dict(cut)) is None
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": cell, "start": datasets.Value("int64"), "end": datasets.Value("float32")})
    by_path = {**cut, "audio": [{"bytes": None, "path": "a.wav"}]}
    dataset = datasets.Dataset.from_dict(by_path, features=features)
    assert tables.segments(dataset).tolist() == [[3, 4]]
    assert tables.segments(dataset.cast_column("audio", datasets.Audio(decode=False))).tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"offset": ["0", "-1"]}, "row 2 of column 'offset' is '-1'; it must be seconds, 0 or more, or empty"),
        ({"start": ["0", "00:12"]}, "row 2 of column 'start' is '00:12'; it must be seconds"),
        ({"start": ["nan", "1"]}, "row 1 of column 'start' is 'nan'; it must be seconds"),
        ({"start": ["0", "1"], "end": ["inf", "2"]}, "row 1 of column 'end' is 'inf'; it must be seconds"),
        ({"offset": ["0", "1"], "duration": ["1", "-2"]}, "row 2 of column 'duration' is '-2'; it must be seconds"),
        ({"start": ["0", "3"], "end": ["1", "2.5"]}, "row 2 of the data begins at 3 s and ends before, at 2.5 s"),
        ({"start": ["0", "3"], "offset": ["1", "2.5"]}, "columns offset and start, and both say where a row begins"),
    ],
)
def test_cells_that_are_no_times_are_errors_with_their_row(columns, message):
    with pytest.raises(ValueError, match=message):
        tables.segments(datasets.Dataset.from_dict({"file": ["a.wav"] * 2, **columns}))
