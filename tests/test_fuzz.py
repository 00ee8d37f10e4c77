"""The short form of `make fuzz`, and that it sees what it looks for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fuzz import files, journeys


@pytest.mark.parametrize("number", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_hostile_settings_and_damaged_files_end_in_a_run_or_in_one_line(number: int, root: Path):
    attacks = [f"settings={number}", f"files={number}"]
    command = [sys.executable, "-m", "fuzz", *attacks, "workers=1", "first=100000"]
    paths = os.pathsep.join([str(root / "tests"), str(root)])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def raises(error: BaseException):
    def main(argv: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("a is 1; it may be 2"), "refused"),
        (ValueError("a is 1;\nit may be 2"), "refused"),  # what is printed is one line
        (TypeError("unhashable"), "traceback"),
        (MemoryError(), "refused"),  # one line with what takes less
        (KeyError("a"), "traceback"),
        (RecursionError(), "traceback"),
    ],
)
def test_a_journey_tells_a_line_from_a_traceback(error: BaseException, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(journeys.SCRIPTS, "embed", raises(error))
    assert journeys.journey("embed", []).kind == kind


def test_an_error_of_two_lines_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    def main(argv: list[str]) -> None:
        print("error: a\nb", file=sys.stderr)
        raise SystemExit(2)

    monkeypatch.setitem(journeys.SCRIPTS, "embed", main)
    assert journeys.journey("embed", []).kind == "an error that is not one line"


def test_a_journey_that_ends_well_with_nonsense_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(journeys.SCRIPTS, "embed", lambda argv: print("-3.00 hours"))
    assert journeys.journey("embed", [], lambda printed: "hours" if "-3" in printed else None).kind == "silent nonsense"


@pytest.mark.parametrize(
    ("ids", "features", "wrong"),
    [
        (["a", "b"], [[0.0], [1.0]], None),
        (["a", "c"], [[0.0], [1.0]], "good samples are lost: ['b']"),
        (["a", "a"], [[0.0], [1.0]], "ids that repeat"),
        (["a", "b"], [[0.0], [float("nan")]], "features that are not finite"),
    ],
)
def test_a_table_must_hold_every_good_sample_once(ids: list, features: list, wrong: str | None, tmp_path: Path):
    table = pyarrow.table({"id": ids, "features": features})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert journeys.wrong_table(tmp_path / "t.parquet", {"a", "b"}) == wrong


@pytest.mark.parametrize(
    ("metrics", "printed", "wrong"),
    [
        ('{"step": 1, "loss": 0.5}\n', "verdict: too early", None),
        ('{"step": 1, "loss": NaN}\n', "verdict: too early", "a run that ended well with the losses [nan]"),
        ('{"step": 0}\n', "", "a run without a loss"),
        ('{"step": 1, "loss": 0.5}\n', "verdict: healthy", "healthy after two steps"),
    ],
)
def test_a_run_must_have_finite_losses(metrics: str, printed: str, wrong: str | None, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(metrics)
    assert journeys.wrong_run(tmp_path, printed) == wrong


def test_every_way_of_damage_changes_a_file():
    generator, content = np.random.default_rng(0), bytes(range(1, 256)) * 8
    for way in files.WAYS.values():
        assert way(bytearray(content), 100, generator) != content
