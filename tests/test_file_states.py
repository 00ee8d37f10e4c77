"""Sizes and times of files: several processes find what os.stat finds in one, whatever the names and whatever dies."""

import os
from pathlib import Path

import pytest

from d2v.modalities.common import file_states
from d2v.modalities.common.file_states import NONE, states, states_of_all


@pytest.fixture
def names(tmp_path):
    """Of files, some of which are not there or have names that no file can have."""
    made = []
    for number in range(50):
        path = tmp_path / f"{number} \udcff\n é.bin"
        path.write_bytes(bytes(number))
        os.utime(path, ns=(0, 10**18 + number))
        made.append(str(path))
    return [*made, str(tmp_path / "missing"), "", "a\0b", *made[::-1]]


@pytest.fixture
def many(monkeypatch):
    """Each data set is asked for by two processes."""
    monkeypatch.setattr(file_states, "MANY", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def one_by_one(names):
    """The slow way."""
    found = []
    for name in names:
        is_file = "\0" not in name and Path(name).is_file()
        status = Path(name).stat() if is_file else None
        found.append((status.st_size, status.st_mtime_ns) if is_file else (NONE, NONE))
    return found


def together(chunks):
    """Names, and pairs, of all chunks."""
    names, pairs = [], []
    for some, found in states_of_all(chunks, sum(map(len, chunks))):
        names += some
        pairs += zip(*found, strict=True)
    return names, pairs


def test_one_process_finds_what_stat_says(names):
    assert list(zip(*states(names), strict=True)) == one_by_one(names)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_several_find_the_same_in_the_same_order(names, many, size):
    chunks = [names[start : start + size] for start in range(0, len(names), size)]
    assert together(chunks) == (names, one_by_one(names)) == together([names])


def test_no_file_at_all(many):
    assert together([]) == ([], [])


def test_relative_names(names, many, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert together([["missing", Path(names[5]).name]])[1] == [(NONE, NONE), (5, 10**18 + 5)]


def test_what_a_process_that_dies_was_asked_is_asked_here(names, many, monkeypatch):
    ask = file_states._Helpers._ask

    def kill_and_ask(self, process, some):
        process.kill()
        process.wait()
        ask(self, process, some)

    monkeypatch.setattr(file_states._Helpers, "_ask", kill_and_ask)
    assert together([names, names])[1] == 2 * one_by_one(names)


def test_the_processes_end_if_nobody_reads_on(names, many, monkeypatch):
    started = []
    popen = file_states.subprocess.Popen
    monkeypatch.setattr(file_states.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    answers = states_of_all([names] * 5, 5)
    next(answers)
    answers.close()
    assert len(started) == 2 and all(process.poll() is not None for process in started)
