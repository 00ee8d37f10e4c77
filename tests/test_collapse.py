"""The verdict on real runs that were made to collapse, beside the same run left alone.

Each of them ends with its export.
"""

import pytest
import tiny

from scripts import pretrain

RUN = [
    str(tiny.ROOT / "configs/image/demo.yaml"),
    "train.steps=120",
    "train.batch_size=16",
    "train.warmup_steps=10",
    "data.check_files=false",
    "run.health_samples=256",
    "run.health_every=30",
    "run.log_every=10",
]
NO_TARGET_NORM = [
    "objective.layer_norms=[]",
    "objective.final_norms=[]",
    "objective.ema_decay=0.9",
    "objective.ema_end_decay=0.9",
]
RATE_TOO_HIGH = ["train.lr=0.3", "train.clip=0"]


@pytest.mark.pictures
@pytest.mark.parametrize(
    ("name", "changes", "states"),
    [
        pytest.param("alone", [], {"healthy"}, marks=pytest.mark.slow),
        ("no target norm, fast teacher", NO_TARGET_NORM, {"collapsed", "collapsing"}),
        pytest.param("rate too high", RATE_TOO_HIGH, {"collapsed", "collapsing"}, marks=pytest.mark.slow),
    ],
)
def test_verdict_of_a_run(name: str, changes: list[str], states: set[str], tmp_path, capsys):
    pretrain.main([*RUN, f"run.dir={tmp_path}", *changes])
    (verdict,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict: ")]
    assert verdict.split(": ")[1] in states, verdict
    assert ("Advice" in verdict) == (name != "alone")
    assert (tmp_path / "export" / "model.safetensors").is_file() and (tmp_path / "curves.png").is_file()
