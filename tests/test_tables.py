"""Tables as they are written: cells, delimiters, headers, encodings, paths, names of rows, segments."""

import codecs
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v.modalities.common import labels, tables
from d2v.modalities.common.sources import AUDIO, IMAGES, TEXTS, open_source
from d2v.modalities.image import samples as images
from d2v.modalities.image.config import ReadConfig as ImageConfig
from d2v.modalities.image.frontend import FrontendConfig as ImageFrontend
from d2v.modalities.speech import samples as speech
from d2v.modalities.speech.config import ReadConfig as SpeechConfig
from d2v.modalities.speech.frontend import FrontendConfig as SpeechFrontend

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
    from d2v.modalities.common.encodings import open_text

    (tmp_path / "a.txt").write_bytes(written("grün\r\nmüde\n", encoding))
    with open_text(tmp_path / "a.txt") as file:
        assert file.read() == "grün\nmüde\n"
    with open_text(tmp_path / "a.txt", newline="") as file:
        assert file.read() == "grün\r\nmüde\n"


def test_bytes_that_are_no_utf8_are_replaced(tmp_path):
    from d2v.modalities.common.encodings import open_text

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
        ({"onset": ["1", "2"], "offset": ["4", "5"]}, [[1, 4], [2, 5]]),  # DCASE's
        ({"onset": [1, 2], "duration": [0.5, 1]}, [[1, 1.5], [2, 3]]),
        ({"Start": [1, 2], "End": [4, 5]}, [[1, 4], [2, 5]]),
        ({"begin_time": [1, 2], "end_time": [4, 5]}, [[1, 4], [2, 5]]),
        ({"Begin Time (s)": ["1", "2"], "End Time (s)": ["4", "5"]}, [[1, 4], [2, 5]]),  # Raven's
        ({"start": [1, 2], "end_time": ["noon", "six"]}, [[1, np.nan], [2, np.nan]]),
    ],
)
def test_segments_are_read_in_seconds(columns, wanted):
    dataset = datasets.Dataset.from_dict({"file": ["a.wav"] * 2, **columns})
    if wanted is None:
        with pytest.raises(ValueError, match="row 1 of column 'start' is ''; it must be seconds"):
            tables.segments(dataset)
    else:
        np.testing.assert_array_equal(tables.segments(dataset), wanted)


def test_times_of_day_are_no_parts_and_few_recordings_of_many_rows_are_told():
    clock = datasets.Dataset.from_dict({"file": ["a.wav"] * 4, "start_time": ["12:30"] * 4})
    assert tables.segments(clock) is None
    (said,) = tables.repeated(clock)
    assert said.startswith("4 rows name 1 recordings, each read whole: for parts give columns offset or start")
    assert not tables.repeated(datasets.Dataset.from_dict({"file": ["a.wav", "b.wav", "a.wav"]}))


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
        ({"start": ["0", "3"], "offset": ["1", "2.5"]}, "columns offset and start, and both say where a row begins"),
    ],
)
def test_cells_that_are_no_times_are_errors_with_their_row(columns, message):
    with pytest.raises(ValueError, match=message):
        tables.segments(datasets.Dataset.from_dict({"file": ["a.wav"] * 2, **columns}))


def test_a_row_that_ends_before_it_begins_is_one_bad_sample(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(32000) * 0.1, 8000)
    (tmp_path / "parts.csv").write_text("file,start,end\n" + "a.wav,0,1\n" * 3 + "a.wav,3,2.5\n")
    config = SpeechConfig(path=str(tmp_path / "parts.csv"), max_bad_share=0.5)
    samples = speech.Samples(config, SpeechFrontend(sample_rate=8000, mel_high=3900.0), split="train", folder=tmp_path)
    assert len(samples) == 3 and samples.report.unreadable == [
        ("a.wav[3.0-2.5]", "begins at 3 s and ends before, at 2.5 s")
    ]


# Cells.

CELLS = ["007", "1.50", "true", "null", "None", "NA", "01", "nan", "2020-01-01", " x ", "1e3", ""]
READ = [*CELLS[:-1], None]


def texts(path: Path, split: str = "train", columns: tuple[str, ...] = ()) -> datasets.Dataset:
    return open_source(str(path), split, TEXTS, "text", *([columns] if columns else []))


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "|"), ("csv", "\t"), ("tsv", "\t")]
)
def test_every_cell_is_the_string_that_is_written(tmp_path, suffix, delimiter):
    table = tmp_path / f"a.{suffix}"
    table.write_text("".join(delimiter.join(row) + "\n" for row in [("text", "label"), *(("a b", c) for c in CELLS)]))
    dataset = texts(table)
    assert dataset.column_names == ["text", "label"]
    assert list(dataset["label"]) == READ and list(dataset["text"]) == ["a b"] * len(CELLS)


def test_every_cell_of_metadata_is_the_string_that_is_written(tmp_path):
    for place in range(len(CELLS)):
        (tmp_path / f"{place:02d}.wav").write_bytes(b"x")
    lines = [f"{place:02d}.wav,{cell}" for place, cell in enumerate(CELLS)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,speaker", *lines]))
    assert list(open_source(str(tmp_path), "train", AUDIO, "audio")["speaker"]) == READ


def test_integers_with_a_gap_stay_integers(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,2\nb,\nc,3\n")
    assert list(texts(tmp_path / "a.csv")["label"]) == ["2", None, "3"]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("text;label\nvery good, really;1\nso so;2\n", [("very good, really", "1"), ("so so", "2")]),
        ("text;label\ngood;1,5\nbad;2,5\n", [("good", "1,5"), ("bad", "2,5")]),
        ('"text, long";label\n"a;b";1\n', [("a;b", "1")]),
        ('text,label\n"one\nand ""two"", yes",1\nthree,2\n', [('one\nand "two", yes', "1"), ("three", "2")]),
        ("text,label\r\n\r\na; b; c,1\r\n", [("a; b; c", "1")]),
        (' text ,label\n"",1\n', [(None, "1")]),
        ("text,a|b\nx,1|2\n", [("x", "1|2")]),
    ],
)
def test_the_delimiter_is_found_and_quotes_are_honoured(tmp_path, text, rows):
    (tmp_path / "a.csv").write_text(text, newline="")
    dataset = texts(tmp_path / "a.csv")
    assert [tuple(row.values()) for row in dataset] == rows and dataset.column_names[0].startswith("text")


def test_an_index_that_pandas_wrote_is_a_column_and_not_a_shift(tmp_path):
    (tmp_path / "a.csv").write_text(",text,label\n0,a b,x\n1,c d,y\n")
    assert texts(tmp_path / "a.csv")[1] == {"Unnamed: 0": "1", "text": "c d", "label": "y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,1\nb,2,\n", r"a\.csv, line 3 has 3 cells, the first line names 2 columns; quote a cell"),
        ('text,label\n"a\nb",1\nc\n', r"a\.csv, line 4 has 1 cells, the first line names 2 columns"),
        ("text\nfine\nhello, world\n", r"a\.csv, line 3 has 2 cells, the first line names 1 columns"),
        ('text,label\n"a" b,1\n', r"a\.csv, line 2: .*; a cell that holds a quote is quoted whole"),
        ('text,label\nx,1\n"a,1\nb,2\n', r"a\.csv, line 3: .*; a cell that holds a quote is quoted whole"),
        ("text,label,text\na,1,b\n", r"the first line of .*a\.csv names the column 'text' twice"),
        ("", r"a\.csv is empty; its first line names the columns"),
        ("\n\n", r"a\.csv is empty; its first line names the columns"),
        (
            "great movie,pos\nbad movie,neg\n",
            r"the first line of .*a\.csv is taken for names of columns, .*great movie",
        ),
        ("hello there\ngood bye\n", r"the first line of .*a\.csv is taken for names of columns"),
        ("fine,1\nbad,0\n", r"write names of columns there, one of them 'text'"),
    ],
)
def test_an_odd_row_and_a_missing_header_are_errors_with_their_line(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        texts(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


def test_a_table_of_paths_without_a_header_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("clips/a.wav,yes\nclips/b.wav,no\n")
    with pytest.raises(
        ValueError, match=r"the first line of .*a\.csv is taken for names.*: clips/a.wav, yes; .* 'file'"
    ):
        open_source(str(tmp_path / "a.csv"), "train", AUDIO, "audio")


def test_a_column_that_a_setting_names_makes_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("eins,zwei\na b,c d\n")
    with pytest.raises(ValueError, match="none is known: eins, zwei"):
        texts(tmp_path / "a.csv")
    assert list(texts(tmp_path / "a.csv", columns=("eins",))["eins"]) == ["a b"]


def test_quotes_of_a_tab_separated_file_that_quote_no_cell_are_characters(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"Yes," he said.\t1\n6" long\t2\n')
    assert list(texts(tmp_path / "a.tsv")["text"]) == ['"Yes," he said.', '6" long']
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a\tb"\t1\n')
    assert list(texts(tmp_path / "a.tsv")["text"]) == ["a\tb"]
    (tmp_path / "a.tsv").write_text('text\tlabel\n"Yes," he said.\t1\t2\n')
    with pytest.raises(ValueError, match=r"a\.tsv, line 2"):
        texts(tmp_path / "a.tsv")


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_tables_are_read_by_their_byte_order_mark(tmp_path, encoding, suffix):
    rows = [{"text": "grün und müde", "label": "ä"}, {"text": "blau", "label": "ö"}]
    table = {
        "csv": "text,label\ngrün und müde,ä\nblau,ö\n",
        "tsv": "text\tlabel\ngrün und müde\tä\nblau\tö\n",
        "jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "json": json.dumps(rows),
    }
    (tmp_path / f"a.{suffix}").write_bytes(written(table[suffix], encoding))
    assert [*texts(tmp_path / f"a.{suffix}")] == rows


def test_utf16_without_a_mark_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\na,1\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="is no text: its first line holds zero bytes; save it as UTF-8"):
        texts(tmp_path / "a.csv")


def test_labels_that_are_no_utf8_are_named_where_they_are_asked_for(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\na b,caf\xe9\nc d,caf\xe8\ne f,tea\n")
    samples = Columns(texts(tmp_path / "a.csv"))  # pretraining needs no labels
    with pytest.raises(ValueError, match="'label' holds 'caf\ufffd': not UTF-8; save the table as UTF-8"):
        labels.learn(samples, "label", numbers=False)


# JSON.


def test_json_keeps_its_types_and_mixed_ones_are_what_is_written(tmp_path):
    rows = [
        {"text": "a", "n": 1, "mixed": 1, "when": "2020-01-01", "x": 1.5, "tags": ["p"]},
        {"text": "null", "n": None, "mixed": "01", "when": "2021-01-01", "x": 2, "tags": []},
        {"text": "c", "n": 3, "mixed": True, "when": "", "late": "x"},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    dataset = texts(tmp_path / "a.jsonl")
    assert list(dataset["text"]) == ["a", "null", "c"] and list(dataset["n"]) == [1, None, 3]
    assert list(dataset["mixed"]) == ["1", "01", "true"] and list(dataset["when"]) == ["2020-01-01", "2021-01-01", ""]
    assert list(dataset["x"]) == [1.5, 2, None] and list(dataset["late"]) == [None, None, "x"]
    assert list(dataset["tags"]) == [["p"], [], None]


def test_columns_of_json_that_begin_late_or_change_their_type_after_many_rows(tmp_path):
    rows = [{"text": f"row {n}", "label": n if n < 15_000 else str(n)} for n in range(20_001)]
    rows[-1]["late"] = 7
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = texts(tmp_path / "a.jsonl")
    assert list(dataset["label"]) == [str(n) for n in range(20_001)]
    assert list(dataset["late"]) == [None] * 20_000 + [7]


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "a", "label": "01"}, {"text": "b", "label": None}],
        {"text": ["a", "b"], "label": ["01", None]},
        {"version": 1, "data": [{"text": "a", "label": "01"}, {"text": "b", "label": None}]},
    ],
)
def test_json_as_a_list_of_objects_or_columns(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value, indent=1))
    assert [*texts(tmp_path / "a.json")] == [{"text": "a", "label": "01"}, {"text": "b", "label": None}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', r"a\.jsonl, line 2 is no JSON: "),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r"a\.jsonl, line 2 is no JSON object, as .*: \[\"b\"\]"),
        ("a.json", '{"text": ["a", "b"], "label": ["x"]}', r"a\.json holds neither a list of JSON objects nor columns"),
        ("a.json", "[1, 2]", r"a\.json holds neither a list"),
        ("a.json", '{"a": ' * 5000, r"a\.json, line 1 is no JSON: maximum recursion depth"),
        ("a.jsonl", '{"a": ' * 5000, r"a\.jsonl, line 1 is no JSON: maximum recursion depth"),
        ("a.jsonl", "\n", r"a\.jsonl holds no JSON object with a name in it"),
        ("a.json", "[{}]", r"a\.json holds no JSON object with a name in it"),
    ],
)
def test_lines_that_are_no_json_are_errors_with_their_number(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        texts(tmp_path / name)
    assert "\n" not in str(caught.value)


# Paths.


def tone(path: Path, seconds: float = 0.5, pitch: float = 440.0, rate: int = 16000) -> np.ndarray:
    """A sound, written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return wave


def heard(path, folder: Path, **settings) -> speech.Samples:
    """The samples of data.path."""
    config = SpeechConfig(path=path, normalize=False, **settings)
    return speech.Samples(config, SpeechFrontend(), split="train", folder=folder)


def table_of(path: Path, columns: dict[str, list]) -> Path:
    """A table of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_dict(columns)
    if path.suffix in (".csv", ".tsv"):
        dataset.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".jsonl":
        dataset.to_json(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([*dataset]))
    else:
        dataset.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("column", ["file", "path", "file_name", "filename", "file_path", "audio_filepath", "audio"])
def test_paths_are_relative_to_the_table_from_any_working_directory(tmp_path, monkeypatch, suffix, column):
    tone(tmp_path / "data" / "clips" / "a.wav", pitch=300)
    tone(tmp_path / "elsewhere" / "clips" / "a.wav", pitch=3000)  # not this one
    table_of(tmp_path / "data" / f"list.{suffix}", {column: ["clips/a.wav"]})  # a path column alone
    monkeypatch.chdir(tmp_path / "elsewhere")
    wanted, _ = soundfile.read(tmp_path / "data" / "clips" / "a.wav", dtype="float32")
    for path in (tmp_path / "data" / f"list.{suffix}", tmp_path / "data" / f"*.{suffix}", f"../data/list.{suffix}"):
        samples = heard(str(path), tmp_path)
        assert samples.ids == ["clips/a.wav"]
        np.testing.assert_array_equal(samples.wave(0), wanted)


def test_paths_in_cells_of_json_are_relative_to_the_table(tmp_path, monkeypatch):
    wave = tone(tmp_path / "data" / "a.wav")
    tone(tmp_path / "elsewhere" / "a.wav", pitch=3000)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for cell in ({"path": "a.wav"}, {"path": "a.wav", "bytes": None}, {"path": "a.wav", "array": None}):
        (tmp_path / "data" / "l.jsonl").write_text(json.dumps({"audio": cell}))
        samples = heard(str(tmp_path / "data" / "l.jsonl"), tmp_path)
        np.testing.assert_array_equal(samples.wave(0), wave)
        assert samples.ids == ["a.wav"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_each_table_of_a_folder_has_its_own_paths(tmp_path, monkeypatch, suffix):
    waves = [
        tone(tmp_path / "data" / part / "clips" / "a.wav", pitch=pitch) for part, pitch in (("x", 300), ("y", 500))
    ]
    for part in ("x", "y"):
        table_of(tmp_path / "data" / part / f"list.{suffix}", {"path": ["clips/a.wav"], "label": [part]})
    tone(tmp_path / "elsewhere" / "clips" / "a.wav", pitch=3000)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (
        tmp_path / "data" / "*" / f"*.{suffix}",
        [str(tmp_path / "data" / part / f"list.{suffix}") for part in "xy"],
    ):
        samples = heard(path if isinstance(path, list) else str(path), tmp_path)
        assert [np.array_equal(samples.wave(row), waves[row]) for row in range(2)] == [True, True]
        assert list(samples.column("label")) == ["x", "y"]
    assert [Path(name).name for name in samples.ids] == ["a.wav", "a.wav"] and len({*samples.ids}) == 2


def test_tables_of_a_folder_beside_their_media(tmp_path, monkeypatch):
    wave = tone(tmp_path / "data" / "clips" / "a.ogg.wav")
    (tmp_path / "data" / "clips").rename(tmp_path / "clips")
    table_of(tmp_path / "data" / "train" / "list.parquet", {"path": ["../../clips/a.ogg.wav"]})
    monkeypatch.chdir(tmp_path / "data")
    samples = heard(str(tmp_path / "data"), tmp_path)
    np.testing.assert_array_equal(samples.wave(0), wave)


def test_a_readme_that_names_text_tables_is_read_as_they_are(tmp_path, monkeypatch):
    tone(tmp_path / "data" / "clips" / "a.wav")
    table_of(tmp_path / "data" / "a.csv", {"path": ["clips/a.wav"] * 3, "label": ["01", "NA", "1.50"]})
    (tmp_path / "data" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.csv\n---\n# data\n"
    )
    monkeypatch.chdir(tmp_path)
    assert list(heard("data", tmp_path).column("label")) == ["01", "NA", "1.50"]
    dataset = open_source("data", "train[1:]", AUDIO, "audio")
    assert list(dataset["label"]) == ["NA", "1.50"]
    with pytest.raises(ValueError, match=r"data.split 'test': data.path .*data has the splits train"):
        open_source("data", "test", AUDIO, "audio")


def test_an_empty_path_is_one_unreadable_sample(tmp_path):
    for name in "abcd":
        tone(tmp_path / "clips" / f"{name}.wav")
    for suffix in ("csv", "jsonl", "parquet"):
        cells = ["clips/a.wav", None, "clips/c.wav", "clips/d.wav", "clips/b.wav"]
        samples = heard(
            str(table_of(tmp_path / f"l.{suffix}", {"file": cells, "n": [0, 1, 2, 3, 4]})), tmp_path, max_bad_share=0.3
        )
        assert samples.report.unreadable == [("train:1", "empty cell")]
        assert samples.ids == ["clips/a.wav", "clips/c.wav", "clips/d.wav", "clips/b.wav"]
        assert [int(cell) for cell in samples.column("n")] == [0, 2, 3, 4]


def test_an_empty_name_in_metadata_is_one_unreadable_sample(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.wav,x\n,y\n")
    samples = heard(str(tmp_path), tmp_path, max_bad_share=0.6)
    assert samples.ids == ["a.wav"] and samples.report.unreadable == [("train:1", "empty cell")]


def test_a_fairseq_manifest(tmp_path, monkeypatch):
    wave = tone(tmp_path / "corpus" / "sub" / "a.wav")
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "train.tsv"
    manifest.write_text(f"{tmp_path}/corpus\nsub/a.wav\t8000\n")
    monkeypatch.chdir(tmp_path / "lists")
    samples = heard(str(manifest), tmp_path)
    np.testing.assert_array_equal(samples.wave(0), wave)
    manifest.write_text("../corpus\nsub/a.wav\t8000\n")
    np.testing.assert_array_equal(heard(str(tmp_path / "lists"), tmp_path).wave(0), wave)
    manifest.write_text("/no/where\nsub/a.wav\t8000\n")
    with pytest.raises(
        ValueError, match=r"train\.tsv: its first line names the folder '/no/where', which does not exist"
    ):
        heard(str(manifest), tmp_path)
    manifest.write_text(f"{tmp_path}/corpus\nsub/a.wav\t8000\nsub/b.wav\n")
    with pytest.raises(ValueError, match=r"train\.tsv, line 3 holds 1 cells; it must be a path and its frames"):
        heard(str(manifest), tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("column", ["audio", "sound"])
def test_decoded_sound_in_cells(tmp_path, suffix, column):
    wave = tone(tmp_path / "a.wav", rate=8000)
    whole = np.round(wave * 32767).astype(np.int16)
    cells = [
        {"path": "a.wav", "array": wave.astype(np.float64).tolist(), "sampling_rate": 8000},
        {"path": None, "array": None, "sampling_rate": 8000},
    ]
    table = table_of(tmp_path / f"t.{suffix}", {column: cells, "label": ["x", "y"]})
    frontend = SpeechFrontend(sample_rate=8000)
    config = SpeechConfig(path=str(table), normalize=False, max_bad_share=0.5)
    samples = speech.Samples(config, frontend, split="train", folder=tmp_path)
    np.testing.assert_allclose(samples.wave(0), wave, rtol=0, atol=0 if suffix == "parquet" else 1e-9)  # 10 digits
    assert samples.report.unreadable == [("train:1", "empty cell")]
    cells = [{"array": whole.tolist(), "sampling_rate": 8000}]
    config.path = str(table_of(tmp_path / f"whole.{suffix}", {column: cells}))
    again = speech.Samples(config, frontend, split="train", folder=tmp_path)
    np.testing.assert_array_equal(again.wave(0), whole.astype(np.float32) / 32768)


# Names of rows.


def test_repeated_files_have_names_of_their_own(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.wav")
    table = table_of(tmp_path / "l.csv", {"file": ["a.wav", "b.wav", "a.wav", "a.wav"], "label": ["x", "y", "x", "y"]})
    assert heard(str(table), tmp_path).ids == ["a.wav", "b.wav", "a.wav#2", "a.wav#3"]
    dataset = open_source(str(table), "train", AUDIO, "audio")
    parts = [tables.identifiers(dataset.select([row]), str(table), "train", row) for row in range(4)]  # as embed reads
    assert parts == [["a.wav"], ["b.wav"], ["a.wav#2"], ["a.wav#3"]]
    with pytest.raises(ValueError, match=r"the data has no column 'x'; its columns are file, label$"):
        tables.values(dataset, "x", np.arange(4), parts)


def test_texts_of_one_file_have_names_of_their_own(tmp_path):
    table = table_of(tmp_path / "l.parquet", {"file": ["book", "book", None], "text": ["a b", "c d", "e f"]})
    names = tables.identifiers(texts(table), str(table), "train")
    assert names == ["book", "book#2", "train:2"] and list(texts(table)["file"]) == ["book", "book", None]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "metadata.csv", "metadata.jsonl"])
def test_parts_of_one_recording_are_read_and_named(tmp_path, kind):
    wave = tone(tmp_path / "talk.wav", seconds=4.0)
    column = "file_name" if "metadata" in kind else "audio_filepath"
    rows = {column: ["talk.wav"] * 3, "offset": [0.0, 1.5, 3.0], "duration": [1.0, 0.5, None], "text": ["a", "b", "c"]}
    table = table_of(tmp_path / (kind if "metadata" in kind else f"list.{kind}"), rows)
    samples = heard(str(tmp_path if "metadata" in kind else table), tmp_path)
    assert samples.ids == ["talk.wav[0.0-1.0]", "talk.wav[1.5-2.0]", "talk.wav[3.0-]"]
    assert samples.lengths.tolist() == [16000, 8000, 16000] and samples.report.amount == "0.00 hours"
    assert list(samples.column("text")) == ["a", "b", "c"]
    for row, (start, stop) in enumerate([(0, 16000), (24000, 32000), (48000, 64000)]):
        np.testing.assert_array_equal(samples.wave(row), wave[start:stop])


def test_an_odd_time_is_an_error_when_the_table_is_opened(tmp_path):
    tone(tmp_path / "talk.wav", seconds=2.0)
    table = table_of(tmp_path / "l.csv", {"file": ["talk.wav"] * 2, "start": ["0", "soon"], "end": ["1", "2"]})
    with pytest.raises(ValueError, match="row 2 of column 'start' is 'soon'; it must be seconds, 0 or more, or empty"):
        open_source(str(table), "train", AUDIO, "audio")


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(64).reshape(8, 8) + shade).astype(np.uint8)).save(path)


def pictures(path: str, folder: Path) -> images.Samples:
    frontend = ImageFrontend(image_size=8, patch_size=4, channels=1)
    config = ImageConfig(path=path, mean=[0.5], std=[0.5], eval_crop=1.0)
    return images.Samples(config, frontend, split="train", folder=folder)


def test_images_are_never_their_own_masks(tmp_path):
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "masks").mkdir()
    absolute = table_of(tmp_path / "lists" / "l.csv", {"file": [str(tmp_path / "photos" / "a.png")]})
    above = table_of(tmp_path / "lists" / "m.csv", {"file": ["../photos/a.png"]})
    for path in (absolute, above, [str(tmp_path / "photos")]):
        samples = pictures(path if isinstance(path, list) else str(path), tmp_path)
        with pytest.raises(ValueError, match=r"evaluate.masks .*masks: the image .*a\.png has no place in it"):
            samples.masks([0], str(tmp_path / "masks"))
    samples = pictures(str(tmp_path / "photos"), tmp_path)
    with pytest.raises(ValueError, match=r"evaluate.masks .*: .*photos/a\.png is the image itself, and no mask of it"):
        samples.masks([0], str(tmp_path / "photos"))
    picture(tmp_path / "masks" / "a.png", shade=7)
    assert samples.masks([0], str(tmp_path / "masks"))[0, 0, 0] == 7


def test_masks_of_images_that_a_table_names_lie_by_the_paths_in_it(tmp_path):
    picture(tmp_path / "data" / "photos" / "a.png")
    picture(tmp_path / "masks" / "photos" / "a.png", shade=5)
    table = table_of(tmp_path / "data" / "l.csv", {"image": ["photos/a.png"]})
    assert pictures(str(table), tmp_path).masks([0], str(tmp_path / "masks"))[0, 0, 0] == 5


# Labels and numbers.


class Columns:
    """Samples of which only the columns are asked for."""

    def __init__(self, dataset: datasets.Dataset):
        self.dataset, self.classes = dataset, tables.classes(dataset, "label")

    def column(self, name: str) -> np.ndarray:
        rows = np.arange(len(self.dataset))
        return tables.values(self.dataset, name, rows, [f"train:{row}" for row in rows])


def of_labels(path: Path, cells: list) -> Columns:
    return Columns(texts(table_of(path, {"text": ["a b"] * len(cells), "label": cells})))


def test_classes_are_what_is_written_in_the_order_of_numbers(tmp_path):
    names, codes = labels.learn(of_labels(tmp_path / "a.csv", ["10", "2", "2", "10", "1"]), "label", numbers=False)
    assert names == ["1", "2", "10"] and codes.tolist() == [2, 1, 1, 2, 0]
    written_so = ["01", "1", "NA", "None", "true", "NA"]
    names, codes = labels.learn(of_labels(tmp_path / "b.csv", written_so), "label", numbers=False)
    assert [names[code] for code in codes] == written_so and len(names) == 5


def test_classes_of_json_and_csv_are_compared_by_what_is_written(tmp_path):
    names, _ = labels.learn(of_labels(tmp_path / "a.jsonl", [10, 2, 2, 10]), "label", numbers=False)
    assert names == ["2", "10"]
    assert labels.encode(of_labels(tmp_path / "b.csv", ["10", "2"]), "label", names, "test").tolist() == [1, 0]
    names, _ = labels.learn(of_labels(tmp_path / "c.csv", ["true", "false", "true"]), "label", numbers=False)
    assert labels.encode(of_labels(tmp_path / "d.jsonl", [True, False]), "label", names, "test").tolist() == [1, 0]


def test_numbers_are_read_where_a_number_is_asked_for(tmp_path):
    _, numbers = labels.learn(of_labels(tmp_path / "a.csv", ["1.50", "-2", "1e3"]), "label", numbers=True)
    assert numbers.dtype == np.float32 and numbers.tolist() == [1.5, -2, 1000]
    for cell in ("1_000", "1,5", "NA", "nan"):
        with pytest.raises(ValueError, match=f"data.label 'label' .* does not hold numbers.*'{cell}'"):
            labels.learn(of_labels(tmp_path / "b.csv", ["1", cell]), "label", numbers=True)
    with pytest.raises(ValueError, match=r"holds fractions such as 1\.50; set data.regression=true"):
        labels.learn(of_labels(tmp_path / "c.csv", ["1.50", "2", "2"]), "label", numbers=False)


def test_the_column_of_words_holds_the_text(tmp_path):
    (tmp_path / "a.csv").write_text("sentence,label,score\nhello there,1,0.5\n12,0,\n")
    assert tables.media_column(texts(tmp_path / "a.csv"), "text") == "sentence"
    (tmp_path / "a.csv").write_text("sentence,title\nhello there,one\n")
    with pytest.raises(ValueError, match="no column holds text; the columns are sentence, title"):
        tables.media_column(texts(tmp_path / "a.csv"), "text")
    (tmp_path / "a.csv").write_text("label\n1\n2.5\n")
    with pytest.raises(ValueError, match="no column holds text; the columns are label"):
        tables.media_column(texts(tmp_path / "a.csv"), "text")


# Several data sets as one.


def joined(folder: Path, *parts: dict[str, list]) -> datasets.Dataset:
    paths = [str(table_of(folder / f"{place}.parquet", part)) for place, part in enumerate(parts)]
    return open_source(paths, "train", TEXTS, "text")


def test_parts_are_united_by_what_is_written(tmp_path):
    one, two = {"text": ["a"], "label": ["1"]}, {"text": ["b"], "label": [1]}
    assert list(joined(tmp_path, one, two)["label"]) == ["1", "1"]
    assert list(joined(tmp_path, {"text": ["a"], "label": [1]}, {"text": ["b"], "label": [2.5]})["label"]) == [1, 2.5]
    assert list(joined(tmp_path, one, {"text": ["b"], "label": [True]})["label"]) == ["1", "true"]


def test_class_names_and_strings_are_united(tmp_path):
    for name in ("one/cat/a.png", "one/dog/a.png", "two/a.png"):
        picture(tmp_path / name)
    (tmp_path / "two" / "metadata.csv").write_text("file_name,label\na.png,dog\n")
    dataset = open_source([str(tmp_path / "one"), str(tmp_path / "two")], "train", IMAGES, "image")
    assert list(dataset["label"]) == ["cat", "dog", "dog"] and tables.classes(dataset, "label") == ["cat", "dog"]
    (tmp_path / "two" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": 1}))
    (tmp_path / "two" / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"column 'label' holds class names \(cat, dog\) in one part .* and numbers"):
        open_source([str(tmp_path / "one"), str(tmp_path / "two")], "train", IMAGES, "image")


def test_a_column_that_one_part_lacks_is_empty_there(tmp_path):
    for name in ("one/cat/a.png", "one/dog/a.png", "two/a.png"):
        picture(tmp_path / name)
    dataset = open_source([str(tmp_path / "one"), str(tmp_path / "two")], "train", IMAGES, "image")
    assert list(dataset["label"]) == [0, 1, None] and tables.classes(dataset, "label") == ["cat", "dog"]
    with pytest.raises(ValueError, match="1 of 3 samples have no 'label', the first is c"):
        tables.values(dataset, "label", np.arange(3), ["a", "b", "c"])
    samples = pictures([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path)  # pretraining needs no labels
    assert len(samples) == 3 and samples.report.classes == {"cat": 1, "dog": 1}


def test_images_in_cells_and_in_files_are_united(tmp_path):
    picture(tmp_path / "one" / "a.png", shade=1)
    picture(tmp_path / "b.png", shade=2)
    cell = {"bytes": (tmp_path / "b.png").read_bytes(), "path": "b.png"}
    table = table_of(tmp_path / "t.parquet", {"image": [cell], "label": ["x"]})
    samples = pictures([str(tmp_path / "one"), str(table)], tmp_path)
    assert [int(np.asarray(samples.image(row))[0, 0]) for row in range(2)] == [1, 2]
    assert samples.ids == [str(tmp_path / "one" / "a.png"), "train:1"]


def test_segments_of_one_part_stay_beside_whole_recordings(tmp_path):
    tone(tmp_path / "one" / "talk.wav", seconds=3.0)
    tone(tmp_path / "two" / "b.wav")
    table = table_of(tmp_path / "one" / "l.csv", {"file": ["talk.wav"] * 2, "start": ["0", "1"], "end": ["1", "2"]})
    samples = heard([str(table), str(tmp_path / "two")], tmp_path)
    assert samples.lengths.tolist() == [16000, 16000, 8000]
    assert [Path(name).name for name in samples.ids] == ["talk.wav[0.0-1.0]", "talk.wav[1.0-2.0]", "b.wav"]


@pytest.mark.parametrize("cut", ["train", "train[1:]"])
def test_cells_of_paths_in_parquet_are_relative_to_its_folder(tmp_path, monkeypatch, cut):
    for part, shade in (("x", 1), ("y", 2)):
        picture(tmp_path / "data" / part / "p" / "a.png", shade)
        picture(tmp_path / "elsewhere" / "p" / "a.png", 99)
        embedded = {"bytes": (tmp_path / "data" / part / "p" / "a.png").read_bytes(), "path": "a.png"}
        features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
        cells = {"image": [embedded, {"bytes": None, "path": "p/a.png"}]}
        dataset = datasets.Dataset.from_dict(cells, features=features).cast_column(
            "image", datasets.Image(decode=False)
        )
        dataset.to_parquet(tmp_path / "data" / part / "train.parquet", batch_size=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = str(tmp_path / "data" / "*" / "*.parquet")
    dataset = open_source(path, cut, IMAGES, "image")
    found = pictures(path, tmp_path)
    assert isinstance(dataset.features["image"], datasets.Image) and len(dataset) == 4 - (cut != "train")
    assert [int(np.asarray(found.image(row))[0, 0]) for row in range(4)] == [1, 1, 2, 2]
    assert found.ids == ["train:0", "x/p/a.png", "train:2", "y/p/a.png"]


def test_paths_of_a_hub_data_set_that_brings_no_files_are_an_error(tmp_path, monkeypatch):
    table = table_of(tmp_path / "t.parquet", {"path": ["clips/a.wav"]})
    made = datasets.load_dataset_builder("parquet", data_files=[str(table)])
    made.download_and_prepare()
    made.config.data_files = {"train": ["hf://datasets/someone/data@main/t.parquet"]}
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: made)
    with pytest.raises(
        ValueError, match=r"'someone/data' .* names files by paths, such as 'clips/a\.wav', and has none"
    ):
        open_source("someone/data", "train", AUDIO, "audio")
