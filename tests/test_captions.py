"""Images with several captions, sides that are paired by their order, and numbers that float32 would spoil."""

from pathlib import Path

import aligned
import colours
import numpy as np
import paired
import pytest
import torch
from PIL import Image

from d2v.evaluation.pairs import Side, retrieval_report
from d2v.finetuning.scores import regression
from d2v.modalities.common import labels, pairs
from d2v.objectives.common.pairing import right_ones


def captioned(folder: Path, *, same_words: bool) -> Path:
    """A table of two colours, of each two pictures with three captions each."""
    colours.write_world(folder, 2)
    lines = ["image,audio,text,label"]
    for name in ("red", "blue"):
        for number in range(2):
            for caption in range(3):
                words = f"a {name} one" if same_words and not caption else f"{name} {number} {'xyz'[caption]}"
                lines.append(f"files/{name}{number}.png,files/{name}{number}.wav,{words},{name}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def test_texts_beside_images_are_their_captions(tmp_path):
    for number in range(6):
        folder = tmp_path / "photos" / ("one" if number % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / f"{number}.png")
        if number != 3:
            (folder / f"{number}.txt").write_text(f"picture\n  number {number} é", encoding="utf-8")
    data = paired.config(("image", "text"), path=str(tmp_path / "photos"), max_bad_share=0.5)
    samples, _ = paired.opened(data, tmp_path / "run")
    assert samples.ids == ["one/1.png", "one/5.png", "two/0.png", "two/2.png", "two/4.png"]
    words = [samples.side("text").picture(index) for index in samples.matched("text").tolist()]
    assert words == [f"picture number {number} é" for number in (1, 5, 0, 2, 4)]
    assert samples.report.unreadable == [("one/3.png", "text: empty cell")]
    assert any(
        "beside images: 5 .txt, which pairs of images and text read as captions" in one for one in samples.report.notes
    )


@pytest.mark.parametrize("same_words", [False, True])
def test_rows_of_one_picture_are_right_for_one_another_in_training(same_words, tmp_path):
    table = captioned(tmp_path / "world", same_words=same_words)
    data = paired.config(("image", "text"), path=str(table))
    samples, frontends = paired.opened(data, tmp_path / "run")
    batches = pairs.batches(samples, data, frontends, 12, 0, lambda *_: None)
    (first, second), _ = batches(0, 0, 1)
    assert first.labels.shape == ((12, 2) if same_words else (12,)) and torch.equal(first.labels, second.labels)
    right = right_ones(first, 12)
    assert right.diagonal().all()
    found = sorted(right.sum(dim=1).tolist())
    # three of a picture each; where a word comes twice, its rows have the other picture's row too
    assert found == ([3] * 8 + [4] * 4 if same_words else [3] * 12)


def test_a_picture_with_several_captions_is_sought_once(tmp_path):
    table = captioned(tmp_path / "world", same_words=False)
    samples = aligned.samples_of(table, tmp_path / "run")
    model = aligned.model_of(samples, fitted=False)
    files = samples["image"].files()
    assert files.tolist() == np.repeat(np.arange(4), 3).tolist()
    sides = Side("image", samples["image"], files=files), Side("text", samples["text"])
    report = retrieval_report({"mine": model}, *sides)
    with torch.no_grad():
        images, words = (
            torch.cat([model.project(samples[name].view([row])) for row in range(12)]) for name in ("image", "text")
        )
    cosines = (images[::3] @ words.T).double()  # (4, 12)
    right = torch.arange(4)[:, None] == torch.arange(12) // 3
    for direction, seen, good in (("image to text", cosines, right), ("text to image", cosines.T, right.T)):
        found = report.numbers["mine"][direction]
        assert (found["queries"], found["items"]) == seen.shape
        best = seen.masked_fill(~good, -2).amax(dim=1, keepdim=True)
        ranks = 1 + (~good & (seen >= best)).sum(dim=1)
        for k in (1, 5, 10):
            assert found[f"recall@{k}"] == pytest.approx(100 * float((ranks <= k).float().mean()))


def test_sides_that_name_the_same_files_in_other_orders_are_refused(tmp_path):
    names = [f"{number}.png" for number in range(1, 12)]
    (tmp_path / "pictures").mkdir()
    for name in names:
        Image.new("RGB", (16, 16), (20, 30, 40)).save(tmp_path / "pictures" / name)
    (tmp_path / "captions.csv").write_text("\n".join(["file,text", *(f"{name},a b {name}" for name in names)]) + "\n")
    sides = {"image": {"path": str(tmp_path / "pictures")}, "text": {"path": str(tmp_path / "captions.csv")}}
    with pytest.raises(ValueError, match=r"row 2 is 10.png of image and 2.png of text: both sides name the same files"):
        paired.opened(paired.config(("image", "text"), sides), tmp_path / "a")
    rows = [f"{name},a b {name}" for name in sorted(names)]
    (tmp_path / "captions.csv").write_text("\n".join(["file,text", *rows]) + "\n")
    samples, _ = paired.opened(paired.config(("image", "text"), sides), tmp_path / "b")
    assert len(samples) == 11 and not any("order of rows" in line for line in samples.report.lines())
    (tmp_path / "captions.txt").write_text("\n".join(f"a b {name}" for name in names) + "\n")
    sides["text"] = {"path": str(tmp_path / "captions.txt")}
    samples, _ = paired.opened(paired.config(("image", "text"), sides), tmp_path / "c")
    assert "paired by the order of rows: 1.png of image with train:0 of text" in samples.report.lines()


class Column:
    """What labels are read of."""

    def __init__(self, cells: list):
        self.cells, self.classes, self.ids = np.array(cells), None, [str(n) for n in range(len(cells))]

    def column(self, name: str) -> np.ndarray:
        return self.cells


def test_numbers_that_float32_cannot_tell_apart_are_refused():
    times = [1_700_000_000 + 7 * number for number in range(50)]
    for cells in (times, [float(time) for time in times], [str(time) for time in times]):
        with pytest.raises(ValueError, match=r"changes them by up to .*; subtract a constant, such as 1700000000"):
            labels.learn(Column(cells), "when", numbers=True)
    _, found = labels.learn(Column([time - 1_700_000_000 for time in times]), "when", numbers=True)
    assert found.dtype == np.float32 and found.tolist() == [7.0 * number for number in range(50)]
    assert labels.learn(Column([1_700_000_001] * 3), "when", numbers=True)[1].dtype == np.float32  # all the same


def test_correlations_keep_what_float32_holds():
    draw = np.random.default_rng(0)
    true = (1e6 + draw.integers(0, 88, 200)).astype(np.float32)
    said = (true + draw.normal(0, 30, 200)).astype(np.float32)
    expected = np.corrcoef(said.astype(np.float64), true.astype(np.float64))[0, 1]
    assert regression(said, true)["pearson"] == pytest.approx(expected, abs=1e-12)
