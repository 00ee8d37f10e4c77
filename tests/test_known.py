"""What is known of data is made once, equal to what is made anew, and renewed where files change or it is damaged."""

import itertools
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v import cache, plugins
from d2v.config.loading import load_config
from d2v.modalities.common import known, mapped, scans
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text.corpus import Corpus
from d2v.training.first_look import look_first

NUMBER = 300  # files, of which more than cache.LEAST are kept


@pytest.fixture(autouse=True)
def place(tmp_path_factory, monkeypatch) -> Path:
    """An empty cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("D2V_CACHE", str(folder))
    cache._say.cache_clear()
    monkeypatch.setattr(known, "SMALL", 1000)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Small images in three folders, one of one colour, one that is none."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for number in range(NUMBER):
        file = root / "abc"[number % 3] / f"{number:04d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (6 + number % 3, 8, 3), dtype=np.uint8)).save(file)
    Image.new("RGB", (8, 8)).save(root / "a" / "0000.png")
    (root / "b" / "0001.png").write_bytes(b"no image")
    return root


@pytest.fixture
def folder(source, tmp_path) -> Path:
    """The same, of this test alone, as old as data is."""
    root = tmp_path / "data"
    for file in source.rglob("*.png"):
        copy = root / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
        age(copy)
    return root


def age(file: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def opened(folder: Path, **settings):
    modality = plugins.load("d2v.modalities", "image")
    data = modality.DataConfig(path=str(folder), max_bad_share=0.5, **settings)
    return modality.Samples(data, modality.FrontendConfig(), split="train", folder=folder)


def facts(samples) -> tuple:
    """All that a run takes of samples."""
    return [*samples.ids], samples.rows.tolist(), samples.column("label").tolist(), vars(samples.report)


def count_looks(monkeypatch) -> list[int]:
    """How many rows are looked at from now on."""
    modality = plugins.load("d2v.modalities", "image")
    looks, look = [], modality.Samples._look
    monkeypatch.setattr(modality.Samples, "_look", lambda self, row: (looks.append(row), look(self, row))[1])
    return looks


def test_a_later_start_maps_what_the_first_one_found(folder, place, monkeypatch):
    monkeypatch.setattr(cache, "LEAST", 10**9)
    anew = facts(opened(folder))
    assert not any(place.rglob("about.json"))
    monkeypatch.undo()
    monkeypatch.setenv("D2V_CACHE", str(place))
    first = facts(opened(folder))
    looks = count_looks(monkeypatch)
    samples = opened(folder)
    assert facts(samples) == first == anew and not looks and samples.origin
    assert first[3]["unreadable"][0][0] == "b/0001.png" and first[3]["remarks"] == {"of one colour": ["a/0000.png"]}
    assert len(first[0]) == NUMBER - 1
    assert len(opened(folder, min_size=7)) == NUMBER - 100 and not looks  # nothing that a look finds depends on it
    opened(folder, check_files=False)
    assert len(looks) == NUMBER


def test_only_files_that_changed_are_looked_at_again(folder, monkeypatch):
    origin = opened(folder).origin
    looks = count_looks(monkeypatch)
    (folder / "c" / "0002.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "a" / "0003.png")
    Image.new("RGB", (9, 9)).save(folder / "b" / "new.png")
    (folder / "b" / "0001.png").write_bytes((folder / "b" / "0004.png").read_bytes())
    samples = opened(folder)
    assert len(looks) == 3 and len(samples) == NUMBER and samples.origin != origin
    assert samples.report.remarks == {"of one colour": ["a/0000.png", "a/0003.png", "b/new.png"]}
    opened(folder)
    assert len(looks) == 6  # what is as young may still change without its time telling
    for name in ("a/0003.png", "b/new.png", "b/0001.png"):
        age(folder / name)
    opened(folder)
    opened(folder)
    assert len(looks) == 9


def test_a_fault_of_the_system_is_looked_at_again(folder, monkeypatch):
    file = folder / "a" / "0006.png"
    target = folder.parent / "elsewhere.png"
    file.rename(target)
    file.symlink_to(target)
    target.rename(folder.parent / "gone.png")  # as when a disk is not mounted
    assert len(opened(folder)) == NUMBER - 2
    looks = count_looks(monkeypatch)
    samples = opened(folder)
    assert len(samples) == NUMBER - 2 and len(looks) == 1 and len(samples.report.unreadable) == 2
    (folder.parent / "gone.png").rename(target)
    assert len(opened(folder)) == NUMBER - 1 and len(looks) == 2


def test_what_another_version_kept_is_made_anew(folder, monkeypatch):
    monkeypatch.setattr(cache, "VERSION", cache.VERSION - 1)
    first = facts(opened(folder))
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    looks = count_looks(monkeypatch)
    assert facts(opened(folder)) == first and len(looks) == NUMBER


@pytest.mark.parametrize("slow", [False, True])
def test_threads_help_where_a_look_takes_long_and_find_the_same(folder, monkeypatch, slow):
    alone, threads = facts(opened(folder)), []
    modality = plugins.load("d2v.modalities", "image")
    look = modality.Samples._look

    def watched(self, row: int):
        threads.append(threading.get_ident())
        time.sleep(2 * scans.QUICK if slow else 0)
        return look(self, row)

    monkeypatch.setattr(modality.Samples, "_look", watched)
    monkeypatch.setattr(scans, "QUICK", scans.QUICK if slow else 1.0)  # of a busy machine
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setenv("D2V_CACHE", str(folder.parent / "another"))
    assert facts(opened(folder)) == alone
    assert len(set(threads[: scans.FEW])) == 1 and len(set(threads[scans.FEW :])) == (3 if slow else 1)


@pytest.mark.parametrize("harm", ["cut", "flipped", "foreign", "no json"])
def test_what_is_damaged_is_made_anew(folder, place, monkeypatch, harm):
    expected = facts(opened(folder))
    abouts = [*place.rglob("about.json")]
    for about in abouts:
        file = next(file for file in about.parent.iterdir() if file.suffix in (".npy", ".arrow"))
        if harm == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        elif harm == "flipped":
            content = bytearray(file.read_bytes())
            content[-9] ^= 1
            file.write_bytes(content)
        elif harm == "foreign":
            said = json.loads(about.read_text())
            about.write_text(json.dumps({**said, "entry": ["scans", "other", "other"]}))
        else:
            about.write_text("{")
    looks = count_looks(monkeypatch)
    assert facts(opened(folder)) == expected and len(looks) == NUMBER
    assert facts(opened(folder)) == expected and len(looks) == NUMBER and len(abouts) == 2


def test_a_cache_that_takes_nothing_is_said_once(folder, place, monkeypatch, caplog):
    (place / "file").write_text("no folder")
    monkeypatch.setenv("D2V_CACHE", str(place / "file"))
    with caplog.at_level(logging.WARNING):
        first, second = facts(opened(folder)), facts(opened(folder))
    assert first == second and len(first[0]) == NUMBER - 1
    (said,) = [record.message for record in caplog.records if "D2V_CACHE" in record.message]
    assert "Not a directory" in said and str(place) in said and not cache.is_usable()


def test_a_full_disk_leaves_nothing_half_made(folder, place, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert len(opened(folder)) == NUMBER - 1 and "No space left" in caplog.text
    assert [file.parent.name for file in place.rglob("*.d2v-tmp") if file.is_dir()] == []


def start(folder: Path, counts: Path) -> None:
    """One of several runs that begin at once; a look takes a while."""
    modality = plugins.load("d2v.modalities", "image")
    look = modality.Samples._look

    def slowly(self, row):
        time.sleep(0.001)
        with counts.open("a") as file:
            file.write("x")
        return look(self, row)

    modality.Samples._look = slowly
    assert len(opened(folder)) == NUMBER - 1


def test_of_several_that_start_at_once_one_looks(folder, tmp_path):
    context, counts = multiprocessing.get_context("fork"), tmp_path / "counts"
    runs = [context.Process(target=start, args=(folder, counts)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0] and len(counts.read_text()) == NUMBER


def test_a_start_looks_at_times_once(folder, monkeypatch):
    opened(folder)
    looks = count_looks(monkeypatch)
    with cache.one_look():
        opened(folder)
        monkeypatch.setattr(scans, "states_of_all", None)  # would fail
        monkeypatch.setattr(known, "fingerprint", None)
        assert len(opened(folder)) == NUMBER - 1 and not looks


def test_several_processes_look_before_they_meet(folder, books, tmp_path, place, monkeypatch):
    for name, path, kinds in (("image", folder, ["rows", "scans"]), ("text", books, ["tokenizers", "tokens"])):
        config = load_config(f"{name}/demo", [f"data.path={path}", f"run.dir={tmp_path / 'run'}", "data.split=train"])
        look_first(config, plugins.load("d2v.modalities", name))
        assert not place.exists() or not [*place.iterdir()]  # one alone looks when it opens the data
        monkeypatch.setenv("WORLD_SIZE", "2")
        look_first(config, plugins.load("d2v.modalities", name))
        assert {*kinds} <= {kind.name for kind in place.iterdir()} and not (tmp_path / "run").exists()
        monkeypatch.delenv("WORLD_SIZE")
        shutil.rmtree(place)


def test_workers_are_sent_names_of_files(folder):
    opened(folder)
    samples = opened(folder)
    sent = pickle.dumps(samples)
    assert len(sent) < 20_000 and facts(pickle.loads(sent)) == facts(samples)
    assert np.array_equal(pickle.loads(sent).view([5]).inputs["pixel_values"], samples.view([5]).inputs["pixel_values"])


@pytest.mark.parametrize("more", [{}, {"pack_seconds": 0.5}, {"views": ["crop", "noise"]}])
def test_workers_are_sent_names_of_lengths(tmp_path, more):
    for number in range(NUMBER):
        file = tmp_path / "clips" / f"{number:04d}.wav"
        file.parent.mkdir(exist_ok=True)
        soundfile.write(file, 0.1 * np.sin(np.arange(4000 + 40 * number)), 16000)
        age(file)
    speech = plugins.load("d2v.modalities", "speech")
    data = speech.DataConfig(path=str(tmp_path / "clips"), max_seconds=0.6, cache_hours=0.0, check_files=False, **more)
    frontend = speech.FrontendConfig()
    for _ in range(2):
        samples = speech.Samples(data, frontend, split="train", folder=tmp_path)
        batches = speech.batches(samples, data, frontend, 4, 0)
    assert isinstance(samples.lengths, mapped.Mapped) and samples.lengths.tolist() == [*range(4000, 16000, 40)]
    assert samples.cut.sum() == (np.arange(4000, 16000, 40) > 9600).sum()
    batches(0, 0, 1)  # as a run does that looks whether the method can be trained on them
    sent = pickle.dumps(batches)
    assert len(sent) < 6000  # of which lengths alone would be 2,400
    (here, *_), ids = batches(3, 0, 1)
    (there, *_), others = pickle.loads(sent)(3, 0, 1)
    assert ids == others and np.array_equal(here.inputs["input_values"], there.inputs["input_values"])


def test_other_parts_of_the_same_recordings_are_other_samples(tmp_path):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(160_000)), 16000)
    age(tmp_path / "long.wav")
    speech, found = plugins.load("d2v.modalities", "speech"), []
    for seconds in (1, 2):
        rows = [f"long.wav,{number / 100},{number / 100 + seconds}" for number in range(NUMBER)]
        (tmp_path / "rows.csv").write_text("\n".join(["audio,start,end", *rows]) + "\n")
        age(tmp_path / "rows.csv", 3600 * seconds)
        data = speech.DataConfig(path=str(tmp_path / "rows.csv"), check_files=False)
        samples = speech.Samples(data, speech.FrontendConfig(), split="train", folder=tmp_path)
        found.append((set(samples.lengths.tolist()), samples.origin))
    assert found[0][0] == {16000} and found[1][0] == {32000} and found[0][1] != found[1][1]


def test_an_array_that_is_a_part_is_sent_as_it_is(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(100_000))
    numbers = mapped.mapped(tmp_path / "numbers.npy")
    assert len(pickle.dumps(numbers)) < 1000 and np.array_equal(pickle.loads(pickle.dumps(numbers)), numbers)
    assert np.array_equal(pickle.loads(pickle.dumps(numbers[3:9:2])), [3, 5, 7])
    growing = mapped.Growing(tmp_path / "pieces.npy", np.int32)
    for piece in (np.arange(3), np.zeros(0), np.arange(4)):
        growing.append(piece)
    growing.close()
    assert np.load(tmp_path / "pieces.npy").tolist() == [0, 1, 2, 0, 1, 2, 3]


# Text.


def slow_blocks(corpus: Corpus, capacity: int, break_mode: str) -> np.ndarray:
    """The oracle: row by row."""
    end = int(corpus.offsets[-1])
    if break_mode == "none":
        pairs = [(start, min(start + capacity, end)) for start in range(0, end, capacity)]
    else:
        pairs, start, last = [], 0, -1
        for row, document in enumerate(corpus.documents):
            begin, stop = int(corpus.offsets[row]), int(corpus.offsets[row + 1])
            if document != last or stop - start > capacity:
                pairs.append((start, begin))
                start, last = begin, document
            while stop - start > capacity:
                pairs.append((start, start + capacity))
                start += capacity
        pairs.append((start, end))
    return np.array([pair for pair in pairs if pair[1] - pair[0] > 1], dtype=np.int64).reshape(-1, 2)


def drawn(draw: np.random.Generator, longest: int) -> Corpus:
    """Rows of any length in documents of any length, with gaps between their numbers."""
    lengths = draw.integers(1, longest, draw.integers(0, 60))
    documents = np.cumsum(draw.integers(0, 3, len(lengths)) * (draw.random(len(lengths)) < 0.3))
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(offsets[-1], dtype=np.int32)
    return Corpus(tokens, offsets, documents, np.arange(len(lengths)), len(lengths), [], [])


@pytest.mark.parametrize("rows", [3, 1 << 20])
def test_blocks_equal_those_made_row_by_row(monkeypatch, rows):
    monkeypatch.setattr(corpora, "ROWS", rows)
    draw = np.random.default_rng(0)
    for longest, capacity in itertools.product((2, 5, 9, 40), (1, 2, 7, 8, 31)):
        for _ in range(4):
            corpus = drawn(draw, longest)
            mixed = corpora.shuffled(corpus, 3)
            order = np.random.default_rng(3).permutation(len(corpus.rows))
            parts = [corpus.tokens[corpus.offsets[row] : corpus.offsets[row + 1]] for row in order]
            assert np.array_equal(mixed.tokens, np.concatenate([corpus.tokens[:0], *parts]))
            for one, mode in ((corpus, "complete_doc"), (corpus, "none"), (mixed, "shuffled")):
                expected = slow_blocks(one, capacity, mode)
                found = np.concatenate([*corpora.blocks(one, capacity, mode)])
                assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Path:
    """Lines, with borders of documents and one bad line."""
    root = tmp_path_factory.mktemp("books")
    draw = np.random.default_rng(0)
    words = [f"word{number}" for number in range(50)]
    for number in range(3):
        lines = [" ".join(draw.choice(words, draw.integers(0, 20))) for _ in range(600)]
        (root / f"{number}.txt").write_text("\n".join(lines) + "\n")
    with (root / "2.txt").open("ab") as file:
        file.write(b"not \xff utf-8\n")
    for file in root.iterdir():
        age(file)
    return root


def read(books: Path, run: Path, **settings):
    modality = plugins.load("d2v.modalities", "text")
    data = modality.DataConfig(path=str(books), vocab_size=300, block_size=32, **settings)
    frontend = modality.FrontendConfig()
    run.mkdir(exist_ok=True)
    modality.prepare(data, frontend, run, 0)
    samples = modality.Samples(data, frontend, split="train", folder=run)
    return samples, modality.batches(samples, data, frontend, 4, 0)


def test_text_is_tokenized_once_and_equal(books, tmp_path, monkeypatch, place):
    monkeypatch.setenv("D2V_CACHE", "/dev/null/no")
    anew, batches = read(books, tmp_path / "anew", break_mode="shuffled")
    monkeypatch.setenv("D2V_CACHE", str(place))
    first, _ = read(books, tmp_path / "first", break_mode="shuffled")
    monkeypatch.setattr(corpora, "_strings", None)  # nobody reads a line
    second, mapped_batches = read(books, tmp_path / "second", break_mode="shuffled")
    sizes = np.diff(anew.corpus.offsets) + 1
    assert np.array_equal(second.lengths, np.minimum(sizes, 32)) and np.array_equal(second.cut, sizes > 32)
    assert f"typical text: {int(np.median(sizes))} tokens" in second.report.sizes
    for name in ("tokens", "offsets", "documents", "rows"):
        expected = getattr(anew.corpus, name)
        for samples in (first, second):
            found = getattr(samples.corpus, name)
            assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert (
        second.corpus.unreadable
        == anew.corpus.unreadable
        == [(1800, "not UTF-8, or U+FFFD in it, which stands for what is not")]
    )
    assert vars(second.report) == vars(anew.report) and list(second.ids) == list(anew.ids)
    assert np.array_equal(second.lengths, anew.lengths) and np.array_equal(second.cut, anew.cut)
    for step in (0, 7):
        (view,), names = mapped_batches(step, 0, 1)
        (other,), other_names = batches(step, 0, 1)
        assert names == other_names and np.array_equal(view.mask.hidden, other.mask.hidden)
        assert np.array_equal(view.inputs["input_ids"], other.inputs["input_ids"])
    assert len(pickle.dumps(mapped_batches)) < 100_000
    assert second.origin and second.origin == first.origin and anew.origin is None


def test_another_text_or_tokenizer_is_tokenized(books, tmp_path, place):
    first, _ = read(books, tmp_path / "first")
    other = replace(first.config, min_tokens=5)
    assert len([*place.glob("tokens/*/*/about.json")]) == 1
    modality = plugins.load("d2v.modalities", "text")
    assert len(modality.Samples(other, first.frontend, split="train", folder=tmp_path / "first")) < len(first)
    file = books / "0.txt"
    text = file.read_text()
    try:
        file.write_text(text.replace("word1", "word2", 1))
        age(file, 1800)
        changed, _ = read(books, tmp_path / "first")
    finally:
        file.write_text(text)
        age(file)
    assert changed.origin != first.origin and not np.array_equal(changed.corpus.tokens, first.corpus.tokens)
