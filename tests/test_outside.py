"""A fourth modality, a folder outside the project: it pretrains, evaluates, embeds and fine-tunes without an edit."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from transformers import AutoModel

from scripts import embed, evaluate, finetune, pretrain

CLASSES = ("falling", "rising", "still")


@pytest.fixture
def mylab(monkeypatch):
    """The laboratory's package can be imported."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "outside")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]


@pytest.fixture
def signals(tmp_path):
    """Twelve signals of each class and split, of different lengths, and a file that cannot be read."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for slope, name in zip((-1, 1, 0), CLASSES, strict=True):
            folder = tmp_path / "signals" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                length = int(draw.integers(40, 64))
                np.save(
                    folder / f"{number}.npy", slope * np.linspace(0, 3, length) + 0.3 * draw.standard_normal(length)
                )
    (tmp_path / "signals" / "train" / "still" / "bad.npy").write_bytes(b"no array")
    return tmp_path / "signals"


def config(tmp_path, **sections) -> str:
    trunk = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
    values = {"model": {"frontends": {"mylab.sensor": {"patch_size": 8}}, "trunk": trunk}, **sections}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "config.yaml")


@pytest.mark.parametrize("objective", ["data2vec", "moco", "best_rq"])
def test_a_modality_outside_the_project(mylab, signals, tmp_path, objective):
    train = {"steps": 6, "batch_size": 6, "warmup_steps": 1}
    data = {"path": str(signals), "max_bad_share": 0.1}
    views = {"views": ["noisy", "noisy"]} if objective == "moco" else {}
    method = {"name": objective, **{"moco": {"queue_size": 24}, "data2vec": {"top_k": 2}}.get(objective, {})}
    scoring = {"train_split": "train", "test_split": "test", "probe_steps": 5, "random_seeds": 1}
    one = config(tmp_path, data=data | views, objective=method, train=train, evaluate=scoring)
    run = tmp_path / "run"
    pretrain.main([one, f"run.dir={run}", "run.health_samples=16"])
    model = AutoModel.from_pretrained(run / "export").eval()
    with torch.no_grad():
        assert model(sensor_values=torch.randn(2, 48)).last_hidden_state.shape == (2, 6, 16)

    evaluate.main([one, f"model={run / 'export'}"])
    (result,) = (run / "evaluation").glob("*.json")
    assert json.loads(result.read_text())["rows"]

    embed.main([one, f"model={run / 'export'}", f"out={tmp_path / 'out' / 'features.parquet'}"])
    assert pq.read_table(tmp_path / "out" / "features.parquet").num_rows == 36

    labelled = {**data, "split": "train", "validation_share": 0.25, "test_split": "test"}
    two = config(tmp_path, data=labelled, train={**train, "lr": 0.01})
    scores = finetune.main([two, f"model={run / 'export'}", f"run.dir={tmp_path / 'tuned'}"])
    assert 0 <= scores["test"]["accuracy"] <= 1


# The objective that docs/extending.md shows, and what is said of one that is half right.


def objective_of_the_page(folder: Path, monkeypatch, *changes: tuple[str, str]) -> list[str]:
    """Writes mylab/mine.py as the page has it, with changes; a command that trains by it."""
    page = (tiny.ROOT / "docs" / "extending.md").read_text("utf-8")
    code = page.partition('```python title="mylab/mine.py"\n')[2].partition("```")[0]
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    (folder / "mylab_of_the_page").mkdir()
    (folder / "mylab_of_the_page" / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("mylab_of_the_page")]:
        monkeypatch.delitem(sys.modules, name)
    line = tiny.arguments("image", folder / "run", "objective.name=mylab_of_the_page.mine")
    return [argument for argument in line if not argument.startswith("objective.top_k=")]  # of data2vec


def test_the_objective_of_the_page_trains(tmp_path, monkeypatch):
    pretrain.main(objective_of_the_page(tmp_path, monkeypatch))
    losses = list(tiny.losses(tmp_path / "run").values())
    assert losses[-1] < losses[0]
    sides = {side: tiny.load(path / "model.safetensors") for side, path in tiny.sides(tmp_path / "run").items()}
    assert any(not torch.equal(sides["student"][name], sides["teacher"][name]) for name in sides["student"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return Loss(", "return (", "forward of Mine returned a tuple; it must be a Loss"),
        ("(error * hidden).sum()", "error * hidden", "forward of Mine returned a Loss; .* each a tensor of one number"),
        ("hidden.sum(), {", "1, {", "forward of Mine returned a Loss; .* each a tensor of one number"),
        ("return Mine(encoder, config)", "return nn.Linear(2, 2)", "returned a Linear; it must be an Objective"),
        ("super().__init__(encoder=encoder)", "super().__init__()", "that was given its encoder"),
        ('    name: str = setting("mylab.mine", "Which method.")\n', "", "Config must be a dataclass with a field"),
    ],
)
def test_an_objective_that_is_half_right_is_one_line(old, new, said, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=said) as raised:
        pretrain.main(objective_of_the_page(tmp_path, monkeypatch, (old, new)))
    assert "\n" not in str(raised.value)
