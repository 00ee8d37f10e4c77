"""Numbers are learnt in standard deviations of their labels and answered in their units, whatever these are."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_convert import SENTENCES, TRUNK, ours_of
from test_finetune import arguments, main, predictions
from transformers import AutoModelForImageClassification

from d2v.interop.huggingface.conversion import to_transformers
from d2v.models.losses import supervised
from d2v.models.task_models import D2vForSequenceClassification

UNITS = {"num_labels": 1, "problem_type": "regression", "label_mean": 250_000.0, "label_std": 80_000.0}


def model_of(**labels):
    return ours_of("text", TRUNK, SENTENCES, D2vForSequenceClassification, labels, vocab_size=300, mask_token_id=299)


def sentences() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, 290, (6, 9)), "attention_mask": torch.ones(6, 9, dtype=torch.long)}


def test_the_model_is_one_of_standard_scores_in_other_units():
    plain, inputs = model_of(num_labels=1, problem_type="regression").eval(), sentences()
    priced = D2vForSequenceClassification(type(plain.config)(**{**plain.config.to_dict(), **UNITS})).eval()
    priced.load_state_dict(plain.state_dict())
    labels = 250_000 + 80_000 * torch.randn(6)
    scores, answer = plain(**inputs).logits, priced(**inputs, labels=labels)
    torch.testing.assert_close(answer.logits, 250_000 + 80_000 * scores)
    total, count = supervised(scores, (labels - 250_000) / 80_000, "regression")
    torch.testing.assert_close(answer.loss, total / count, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_units():
    model, inputs = model_of(**UNITS).eval(), sentences()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model(**inputs, labels=torch.full((6,), 250_000.0))
    assert answer.logits.dtype == torch.float32 and answer.loss.dtype == torch.float32
    torch.testing.assert_close(answer.logits, model(**inputs).logits, rtol=0, atol=800)  # a hundredth of the spread


def test_a_conversion_answers_in_the_same_units(tmp_path):
    model, inputs = model_of(**UNITS).eval(), sentences()
    model.save_pretrained(tmp_path)
    again = D2vForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    theirs = to_transformers(model)
    torch.testing.assert_close(theirs(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e6, 2e5)])
def test_a_run_learns_numbers_of_any_size(offset, scale, tmp_path):
    generator, rows = np.random.default_rng(0), ["file,value"]
    for number in range(80):
        grey = int(generator.integers(20, 230))
        pixels = np.clip(generator.normal(grey, 10, (12, 12)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{offset + scale * (grey - 125) / 60!r}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    more = ("data.label=value", "data.regression=true", "data.validation_share=0.25", "data.label_smoothing=0")
    line = [f"data.path={tmp_path / 'table.csv'}", *more, "train.steps=40", "data.color_jitter=0"]
    left = [key for key in arguments("image", tmp_path / "run") if not key.startswith(("data.path", "data.test_split"))]
    scores = main("image", [*left, *line])["validation"]
    assert scores["pearson"] > 0.9 and scores["loss"] < 0.5 * scale**2  # of a variance of scale ** 2
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "export")
    found = predictions(tmp_path / "run", "validation")
    assert model.config.label_mean == pytest.approx(offset, abs=0.4 * scale)
    assert np.mean([float(row["prediction"]) for row in found]) == pytest.approx(
        np.mean([float(row["label"]) for row in found]), abs=0.4 * scale
    )
    assert tiny.load(tmp_path / "run" / "export" / "model.safetensors")["head.out.bias"].abs().max() < 1
