"""The report zero_shot: pictures and sounds by the names of their classes."""

import json
from pathlib import Path

import aligned
import colours
import numpy as np
import pytest
import torch

from d2v.evaluation.config import EvaluateConfig
from d2v.models.alignment import D2vForAlignment
from scripts import evaluate

SETTINGS = (
    *("evaluate.reports=[zero_shot]", "evaluate.test_split=''", "evaluate.random_seeds=0", "evaluate.probe=false"),
    *("evaluate.raw=false", "evaluate.k=[3]"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    samples = aligned.samples_of(colours.write_world(folder, 6), folder / "prepared")
    aligned.export(aligned.model_of(samples), samples, folder / "prepared", folder / "export")
    aligned.write_configs(folder)
    return folder


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
def test_classes_are_known_by_their_names(modality: str, world, tmp_path, capsys):
    templates = "evaluate.templates=['a {} square','the {} square']"
    model, data, where = f"model={world / 'export'}", f"data.path={world / 'table.csv'}", f"run.dir={tmp_path}"
    evaluate.main([str(world / f"{modality}.yaml"), model, data, where, templates, *SETTINGS])
    (result,) = json.loads(next((tmp_path / "evaluation").glob("*.json")).read_text())["reports"].values()
    (found,) = result["zero_shot"].values()
    assert found["chance"] == found["largest_class"] == 25 and set(found["by_class"]) == set(colours.COLOURS)
    assert found["accuracy"] == pytest.approx(100 * slowly(world, modality)) and found["accuracy"] > 90
    assert f"zero-shot, text for {modality}: {found['accuracy']:.1f} % of 24 samples" in capsys.readouterr().out


def slowly(world: Path, modality: str) -> float:
    """Each sample beside each name, one by one."""
    samples = aligned.samples_of(world / "table.csv", world / "prepared")
    model = D2vForAlignment.from_pretrained(world / "export").eval()
    table, text = world / "names.csv", samples["text"]
    names = sorted(colours.COLOURS)
    lines = [f"{sentence.format(name)}" for name in names for sentence in ("a {} square", "the {} square")]
    table.write_text("\n".join(["text", *lines]))
    sentences = aligned.samples_of_text(table, world / "prepared", text)
    with torch.no_grad():
        words = [model.project(sentences.view([row]))[0].numpy() for row in range(len(lines))]
        means = [words[2 * row] + words[2 * row + 1] for row in range(len(names))]
        right = 0
        for row, label in enumerate(samples[modality].column("label")):
            vector = model.project(samples[modality].view([row]))[0].numpy()
            near = [vector @ mean / np.linalg.norm(mean) for mean in means]
            right += names[int(np.argmax(near))] == label
    return right / len(samples[modality])


def test_a_model_without_words_is_refused_before_features_are_made(world):
    model = D2vForAlignment.from_pretrained(world / "export")
    model.encoder.save_pretrained(world / "plain")
    model.projections.pop("text")
    D2vForAlignment.of(model.encoder, model.projections).save_pretrained(world / "wordless")
    for name, said in (("plain", "plain does not"), ("wordless", "wordless aligns image, speech")):
        command = [str(world / "image.yaml"), f"model={world / name}", f"data.path={world / 'table.csv'}"]
        with pytest.raises(ValueError, match=f"zero_shot needs a model that aligns image with words; .*{said}"):
            evaluate.main([*command, *SETTINGS])
    with pytest.raises(ValueError, match=r"evaluate.templates has 'a cat'; each must hold \{\}"):
        EvaluateConfig(reports=["zero_shot"], templates=["a cat"])
    with pytest.raises(ValueError, match=r"evaluate.templates is \[\]"):
        EvaluateConfig(reports=["zero_shot"], templates=[])
