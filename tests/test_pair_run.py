"""Pairs are scored by a model that was trained on them; any other, and none, is one clear line."""

import pytest
import torch
from aligned import FRONTENDS

from d2v.config.joint import load_parts
from d2v.evaluation.pair_run import evaluate_pairs
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel

SMALL = {"dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}


@pytest.fixture
def part(tmp_path):
    """The config of one part; its data is not reached."""
    return load_parts("joint/pairs", ["data.image+text.path=x.csv", f"run.dir={tmp_path}"], "image+text")["image+text"]


def refusal(part, model) -> str:
    with pytest.raises(ValueError) as caught:
        evaluate_pairs(part, str(model), in_run=False)
    return str(caught.value)


def test_a_folder_that_is_not_there(part, tmp_path):
    assert f"model={tmp_path / 'none'}: " in refusal(part, tmp_path / "none")


def test_a_run_without_an_export(part, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert f"has no export yet, but a checkpoint: {checkpoint}" in refusal(part, tmp_path)


def test_an_encoder_that_learnt_no_pairs(part, tmp_path):
    torch.manual_seed(0)
    D2vModel(D2vConfig({"image": FRONTENDS["image"]}, SMALL)).save_pretrained(tmp_path)
    assert f"model={tmp_path} has no space for pairs" in refusal(part, tmp_path)
