"""The report on two modalities in one space: numbers, table, lines, files and picture."""

import json

import aligned
import colours
import numpy as np
import pytest
import torch
from PIL import Image

from d2v.evaluation.pairs import Side, retrieval_report, write_report


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("world")
    table = colours.write_world(folder, 6)
    samples = aligned.samples_of(table, folder / "prepared")
    random = aligned.model_of(samples, 1, fitted=False)
    return {"samples": samples, "model": aligned.model_of(samples), "random": random}


def test_pairs_are_sought_in_both_directions(world, tmp_path):
    first, second = (Side(name, world["samples"][name]) for name in ("image", "text"))
    models = {"mine": world["model"], "random init": world["random"]}
    report = retrieval_report(models, first, second, batch_size=5)
    mine, random = report.numbers["mine"], report.numbers["random init"]
    for direction in ("image to text", "text to image"):
        assert mine[direction]["recall@1"] == 100 and mine[direction]["chance@1"] == pytest.approx(25)
        assert random[direction]["recall@1"] < 60
        assert mine[direction]["items"] == 24
    assert mine["gap"]["distance"] < random["gap"]["distance"]
    assert report.table.count("\n") == 5 and "mAP" in report.table  # texts that come twice are right twice
    assert report.lines[0] == "24 of image and 24 of text" and "mine: modality gap" in report.lines[1]
    assert [len(row) for row in report.hits] == [7] * 6  # all 6 hits of a colour are right
    assert [[tile.right for tile in row] for row in report.hits] == [[False] + [True] * 6] * 6
    assert [type(row[0].picture) is str for row in report.hits] == [False] * 3 + [True] * 3
    numbers, picture = write_report(report, tmp_path / "evaluation", "image_text")
    assert json.loads(numbers.read_text()) == report.numbers and min(Image.open(picture).size) > 500


def test_classes_need_no_rows_in_common(world):
    """24 clips, 10 pictures of classes: any of the class is right."""
    samples = world["samples"]
    images = samples["image"].column("label")
    few = Some(samples["image"], 10)
    first, second = (
        Side("image", few, images[:10]),
        Side("speech", samples["speech"], samples["speech"].column("label")),
    )
    report = retrieval_report({"mine": world["model"]}, first, second)
    found = report.numbers["mine"]
    assert found["image to speech"]["chance@1"] == pytest.approx(25)
    assert found["image to speech"]["mean_average_precision"] > 95 and found["speech to image"]["recall@1"] == 100
    assert (found["speech to image"]["queries"], found["speech to image"]["items"]) == (24, 10)


class Some:
    """The first samples of others."""

    def __init__(self, samples, count: int):
        self.view, self.picture, self.ids, self.lengths = samples.view, samples.picture, samples.ids[:count], None

    def __len__(self) -> int:
        return len(self.ids)


def test_a_row_that_one_side_cannot_read_is_left_out_on_both(world):
    class Damaged(Some):
        def __init__(self, samples):
            super().__init__(samples, len(samples))
            self.whole = samples

        def read(self, indices):
            if 3 in indices:
                raise ValueError("damaged")
            return self.whole.view(indices)

    bad = Damaged(world["samples"]["image"])
    bad.view = bad.read
    sides = Side("image", bad), Side("speech", world["samples"]["speech"])
    report = retrieval_report({"mine": world["model"]}, *sides, max_bad_share=0.1)
    found = report.numbers["mine"]
    assert found["image to speech"]["queries"] == found["image to speech"]["items"] == 23
    assert report.lines[1] == f"left out, image cannot be read: 1: {bad.ids[3]}: damaged" and "mAP" not in report.table
    with pytest.raises(ValueError, match="1 of 24 samples cannot be read"):
        retrieval_report({"mine": world["model"]}, *sides)


def test_sides_that_are_no_pairs_are_one_line(world):
    first, second = Side("image", Some(world["samples"]["image"], 5)), Side("text", world["samples"]["text"])
    with pytest.raises(ValueError, match="5 samples of image and 24 of text are no pairs"):
        retrieval_report({"mine": world["model"]}, first, second)
    with pytest.raises(ValueError, match="labels are those of both sides"):
        retrieval_report({"mine": world["model"]}, first._replace(labels=np.zeros(5)), second)
    model = aligned.model_of(world["samples"], fitted=False)
    model.projections["image"].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        retrieval_report({"mine": model}, Side("image", world["samples"]["image"]), second)
