"""run.probe: the numbers of an evaluation, in the records and a picture of a run.

The run is the same to the bit without it.
"""

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.scoring import evaluate_encoder
from d2v.evaluation.splits import label_splits
from d2v.models.encoder import D2vModel
from d2v.training.online_probe import OnlineProbe, ProbeConfig
from scripts import pretrain

# neighbours of a test split; within train, each without itself
SPLITS = {"image": "test", "text": ""}


@pytest.mark.pictures
@pytest.mark.parametrize("modality", tiny.first(SPLITS))
def test_a_run_is_the_same_to_the_bit_and_its_curve_is_that_of_an_evaluation(modality, tmp_path):
    """With dropout and dropped layers, which draw from the random states that a probe must not move."""
    probe = (
        "run.probe.path=demo",
        "run.probe.every=15",
        "run.probe.max_samples=150",
        "run.probe.k=5",
        f"run.probe.test_split='{SPLITS[modality]}'",
    )
    pretrain.main(tiny.arguments(modality, tmp_path, tiny.using("data2vec"), *tiny.DROPOUT, *probe))
    plain = tiny.finished(modality)
    assert tiny.losses(tmp_path) == tiny.losses(plain)
    for step in (10, 20):
        tiny.assert_same(tiny.checkpoint_tensors(tmp_path, step), tiny.checkpoint_tensors(plain, step))

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = {record["step"]: record for record in records if "probe_student_knn" in record}
    assert list(curve) == [0, 15, 20]
    assert Image.open(tmp_path / "curves.png").height >= Image.open(plain / "curves.png").height
    assert np.asarray(Image.open(tmp_path / "curves.png")).std() > 10

    config = tiny.config_of(modality, tmp_path)
    module = tiny.plugins.load("d2v.modalities", modality)
    settings = EvaluateConfig(test_split=SPLITS[modality], max_train=150, max_test=150, k=[5], probe=False)
    for name, place in tiny.sides(tmp_path).items():
        model = D2vModel.from_pretrained(place)
        frontend = module.FrontendConfig(**model.config.frontends[modality])
        splits = [
            module.Samples(config.data, frontend, split=s, folder=tmp_path) for s in ("train", SPLITS[modality]) if s
        ]
        (row,) = evaluate_encoder(
            name, model, *label_splits(splits[0], splits[1] if splits[1:] else None, settings), settings
        )
        assert curve[20][f"probe_{name}_knn"] == pytest.approx(next(iter(row.scores.values())) / 100, abs=1e-9)


def test_features_that_are_not_finite_give_no_number(tmp_path):
    config = tiny.config_of("image", tmp_path)
    samples, objective = tiny.samples_of(config), tiny.objective_of(config)
    probe = OnlineProbe(samples, None, ProbeConfig(path="demo", max_samples=50))
    with torch.no_grad():
        objective.student["encoder"].trunk.blocks[0].mlp.fc1.bias.fill_(torch.nan)
    assert list(probe(objective.student["encoder"], objective.teacher["encoder"], torch.device("cpu"))) == [
        "probe_teacher_knn"
    ]


def test_errors(tmp_path):
    for settings in ({"every": -1}, {"k": 0}, {"max_samples": 1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=rf"run.probe.{next(iter(settings))} is"):
            ProbeConfig(**settings)
    command = tiny.arguments("image", tmp_path / "run", "run.probe.path=demo")
    for more, message in (
        ("run.probe.label=topic", r"the data has no column 'topic'; its columns are"),
        ("run.probe.train_split=night", r"the demo has the splits train, test"),
        (f"run.probe.path={tmp_path}/nowhere", "nowhere' does not exist"),
        ("run.probe.evry=3", "unknown key 'run.probe.evry'.*did you mean 'every'"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain.main([*command, more])
    assert not (tmp_path / "run" / "config.yaml").exists()
