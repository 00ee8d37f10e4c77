"""The benchmarks run, and both sides of the comparison do the same work."""

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
