"""The benchmarks run, and both sides of the comparison do the same work."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The modules, as `python benchmarks/step_time.py` finds them."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import step_time
    import work

    return step_time, work


def encoder_size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
def test_both_sides_do_the_same_work(benchmarks, modality: str):
    step_time, work = benchmarks
    size, batch = work.TINY, work.make_batch(modality, work.TINY)
    ours, theirs = step_time.make_step("d2v", modality, size), step_time.make_step("transformers", modality, size)
    extra = {"image": 0, "speech": 0, "text": size.dim}[modality]  # the stock text model has token types
    assert encoder_size(theirs.model.student) == encoder_size(ours.objective.student) + extra
    assert encoder_size(theirs.model.predictor) == encoder_size(ours.objective.predictor)
    assert 0 < batch.hidden.float().mean() < 1
    for step in (ours, theirs):
        losses = [step(batch) for _ in range(2)]
        step.update_teacher()
        assert torch.isfinite(torch.tensor(losses)).all()
    assert step_time.gflop(ours, batch) > 0 and 0 < step_time.share_outside(ours, batch) < 1


def test_memory_is_read(benchmarks):
    step_time, _ = benchmarks
    assert 0 < step_time.memory("VmRSS") <= step_time.memory("VmHWM")


def test_runs_are_compared_in_a_picture(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import compare_runs

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("train: {batch_size: 30}\n")
    records = [{"step": 0, "student_knn": 0.1}, {"step": 20, "loss": 1.0, "samples_per_second": 10.0}, {"step": 20, "student_knn": 0.2}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert compare_runs.curve(folder, "student") == {"step": [0, 20], "minutes": [0, 1], "accuracy": [10, 20]}
    compare_runs.main([str(tmp_path / "out.png"), f"ours={folder},{folder}", "against=step"])
    assert (tmp_path / "out.png").stat().st_size > 1000
    for wrong in (
        [],
        [str(tmp_path / "out.png"), "of=nobody"],
        [str(tmp_path / "out.png"), f"a={tmp_path}"],
        [str(tmp_path / "out.png"), str(folder)],
    ):
        with pytest.raises(SystemExit):
            compare_runs.main(wrong)
    with pytest.raises(SystemExit, match="no labels"):
        compare_runs.curve(folder, "teacher")


@pytest.mark.parametrize(("modality", "mixed"), [("image", False), ("speech", False), ("speech", True), ("text", False), ("text", True)])
def test_embeddings_of_both_sides_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch, modality: str, mixed: bool):
    """No claim about speed: that is for a quiet machine."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import embed
    from work import TINY

    found = embed.compare(modality, mixed, TINY, num=6, batch_size=4, rounds=1)
    assert found["difference"] < 1e-5 and found["ratio"] == pytest.approx(found["d2v"] / found["transformers"]) and found["ratio"] > 0
    lengths = embed.lengths_of(modality, mixed, TINY, 6)
    assert (len(set(lengths)) > 1) == mixed
