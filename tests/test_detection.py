"""Boxes: read in three forms, moved with their images, learned, scored, drawn, resumed to the bit, and refused in one
line."""

import csv
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import ROOT
from torchvision.tv_tensors import BoundingBoxes
from torchvision.tv_tensors import Image as Pixels
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from d2v import D2vForObjectDetection
from d2v.interop.pretrained import load_ours
from d2v.modalities.image.config import LabelledConfig
from d2v.modalities.image.detection import task
from d2v.modalities.image.detection.batches import transform
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.samples import BoxedSamples
from d2v.modalities.image.frontend import FrontendConfig
from d2v.modalities.image.samples import inherit
from d2v.protocols import ScoredSplit
from d2v.training.loop import Loop
from d2v.training.same_data import marks_of
from scripts import finetune, finetune_image

needs_metric = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None,
    reason="needs torchmetrics and faster-coco-eval: pip install 'd2v[detection]'",
)
HEADER = ("file", "split", "label", "xmin", "ymin", "xmax", "ymax")
NAMES = ("red", "blue")
COLOURS = ((230, 40, 40), (40, 40, 230))
WIDTH, HEIGHT = 40, 30
SMALL = (
    *(f"model.frontends.image.{part}" for part in ("image_size=32", "patch_size=8")),
    *(f"model.trunk.{part}" for part in ("dim=32", "depth=2", "num_heads=2", "mlp_dim=64", "drop_path=0")),
    *("task.pyramid_dim=32", "task.scales=[2,1]", "data.validation_share=0"),
    *("train.steps=6", "train.warmup_steps=1", "train.batch_size=4", "run.log_every=1", "run.save_every=3"),
)


@pytest.fixture(autouse=True)
def without_curves(request, monkeypatch):
    """Matplotlib takes seconds; one test looks at its pictures."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(Loop, "plot", lambda self: None)
        monkeypatch.setattr("d2v.modalities.image.detection.task.draw", lambda *_: None)


def scenes(folder: Path, count: int = 18) -> list[tuple]:
    """Pictures of one or two rectangles below folder/images, the last without any; the rows of their table."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows: list[tuple] = []
    for number in range(count):
        pixels = 128 + generator.integers(-20, 20, (HEIGHT, WIDTH, 3))
        split = "train" if number < count * 2 // 3 else "val"
        for _ in range(0 if number == count - 1 else generator.integers(1, 3)):
            width, height, kind = *generator.integers(8, 16, 2), generator.integers(2)
            x, y = generator.integers(0, WIDTH - width), generator.integers(0, HEIGHT - height)
            pixels[y : y + height, x : x + width] = COLOURS[kind]
            rows.append((f"{number}.png", split, NAMES[kind], x, y, x + width, y + height))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
    return [*rows, (f"{count - 1}.png", "val", "", "", "", "", "")]


def write_table(folder: Path, rows: list[tuple]) -> Path:
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boxes") / "data"
    return write_table(folder, scenes(folder))


def grouped(rows: list[tuple]) -> dict[str, list[tuple]]:
    """The boxes of each file, name first."""
    boxes: dict[str, list[tuple]] = {}
    for name, _, kind, *sides in rows:
        boxes.setdefault(name, []).extend([(kind, *sides)] if kind else [])
    return boxes


def write_voc(folder: Path, boxes: dict[str, list[tuple]], places: Path) -> None:
    places.mkdir(parents=True, exist_ok=True)
    for name, some in boxes.items():
        things = ""
        for kind, *sides in some:
            bounds = "".join(f"<{side}>{value}</{side}>" for side, value in zip(HEADER[3:], sides, strict=True))
            things += f"<object><name>{kind}</name><bndbox>{bounds}</bndbox></object>"
        (places / Path(name).with_suffix(".xml")).write_text(f"<annotation>{things}</annotation>")


def coco_of(boxes: dict[str, list[tuple]]) -> dict:
    images = [{"id": 10 + number, "file_name": name} for number, name in enumerate(boxes)]
    content: dict = {"images": images, "annotations": [], "categories": []}
    content["categories"] = [{"id": 7 + number, "name": name} for number, name in enumerate(NAMES)]
    for number, some in enumerate(boxes.values()):
        for kind, left, top, right, bottom in some:
            bbox = [int(side) for side in (left, top, right - left, bottom - top)]
            one = {
                "id": len(content["annotations"]),
                "image_id": 10 + number,
                "bbox": bbox,
                "category_id": 7 + NAMES.index(kind),
            }
            content["annotations"].append(one)
    return content


def samples_of(folder: Path, split: str = "train", **settings) -> BoxedSamples:
    frontend = FrontendConfig(image_size=32, patch_size=8)
    return BoxedSamples(DetectionConfig(path=str(folder), **settings), frontend, split=split, folder=folder)


def read(samples: BoxedSamples) -> dict[str, list[tuple]]:
    """What `grouped` says, of samples."""
    found = {}
    for name, names, boxes in zip(samples.ids, samples.names, samples.boxes, strict=True):
        found[Path(name).name] = [(kind, *box) for kind, box in zip(names, boxes.tolist(), strict=True)]
    return found


# Reading.


Split = dict[str, dict[str, list[tuple]]]


def as_table(folder: Path, rows: list[tuple], of_split: Split) -> None:
    write_table(folder, rows)


def as_split_tables(folder: Path, rows: list[tuple], of_split: Split) -> None:
    for split in of_split:
        with (folder / f"{split}.csv").open("w", newline="") as file:
            some = [(row[0], *row[2:]) for row in rows if row[1] == split]
            csv.writer(file).writerows([(HEADER[0], *HEADER[2:]), *some])


def moved(folder: Path, names: Iterable[str], images: Path) -> None:
    images.mkdir(parents=True)
    for name in names:
        (folder / "images" / name).rename(images / name)


def as_voc(folder: Path, rows: list[tuple], of_split: Split) -> None:
    for split, boxes in of_split.items():
        moved(folder, boxes, folder / split / "JPEGImages")
        write_voc(folder, boxes, folder / split / "Annotations")


def as_voc_beside(folder: Path, rows: list[tuple], of_split: Split) -> None:
    for split, boxes in of_split.items():
        moved(folder, boxes, folder / split)
        write_voc(folder, boxes, folder / split)


def as_voc_lists(folder: Path, rows: list[tuple], of_split: Split) -> None:
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, boxes in of_split.items():
        write_voc(folder, boxes, folder / "Annotations")
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(name[:-4] for name in boxes))


def as_coco_folders(folder: Path, rows: list[tuple], of_split: Split) -> None:
    for split, boxes in of_split.items():
        moved(folder, boxes, folder / split)
        (folder / split / "_annotations.coco.json").write_text(json.dumps(coco_of(boxes)))


def as_coco_files(folder: Path, rows: list[tuple], of_split: Split) -> None:
    (folder / "annotations").mkdir()
    for split, boxes in of_split.items():
        for kind in ("instances", "person_keypoints"):
            (folder / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(coco_of(boxes)))


WRITERS = {
    "table": as_table,
    "tables": as_split_tables,
    "voc": as_voc,
    "voc beside": as_voc_beside,
    "voc lists": as_voc_lists,
    "coco folders": as_coco_folders,
    "coco files": as_coco_files,
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_of_boxes_reads_the_same(form, tmp_path):
    folder, rows = tmp_path / "data", scenes(tmp_path / "data")
    of_split = {split: grouped([row for row in rows if row[1] == split]) for split in ("train", "val")}
    WRITERS[form](folder, rows, of_split)
    for split, boxes in of_split.items():
        samples = samples_of(folder, split)
        assert read(samples) == boxes and samples.report.usable == len(boxes)
        assert set(samples.report.splits) == {"train", "val"}
        kind = {"t": "table", "v": "XML files of Pascal VOC", "c": "JSON of COCO"}[form[0]]
        assert sum(f"boxes of split '{split}': from" in note and kind in note for note in samples.report.notes) == 1
    assert samples.boxes[-1].shape == (0, 4) and "images without boxes: 1: " in "\n".join(samples.report.lines())


def test_thin_boxes_are_left_out_and_boxes_are_cut_at_the_edge(tmp_path):
    scenes(tmp_path, 3)
    rows = [("0.png", "train", "red", 4, 4, 5.5, 20), ("0.png", "train", "blue", -1, 3, 12, 31)]
    rows += [("1.png", "train", "red", 9, 2, 3, 20)] + [("2.png", "train", "red", 3, 3, 9, 9)] * 9
    samples = samples_of(write_table(tmp_path, [*rows, ("2.png", "train", "red", 30, 3, 44, 9)]))
    assert read(samples)["0.png"] == [("blue", 0, 3, 12, 30)] and read(samples)["1.png"] == []
    assert read(samples)["2.png"][-1] == ("red", 30, 3, 40, 9)
    lines = "\n".join(samples.report.lines())
    assert "boxes left out: 1 thinner than 2 pixels (images/0.png)" in lines
    assert "no widths and heights): 1 of 13: images/1.png has 9,2,3,20; they are left out" in lines
    assert (
        "reach outside of their images: 1 of 13: images/2.png of 40 x 30 pixels has one of 30,3,44,9; they are" in lines
    )
    assert "boxes: 11 of 2 classes: red 10, blue 1" in lines and "images without boxes: 1: images/1.png" in lines


def test_images_without_a_row_are_told(tmp_path):
    """Images of another split have rows."""
    rows = scenes(tmp_path, 6)
    write_table(tmp_path, [row for row in rows if row[0] not in ("1.png", "4.png")])
    said = "not read, as the table has no row of them: 2 images (1.png, 4.png)"
    assert said in samples_of(tmp_path, "train").report.lines()
    write_table(tmp_path, rows)
    assert not [line for line in samples_of(tmp_path, "train").report.lines() if "no row" in line]


def test_splits_of_several_tables_and_of_cells_with_blanks(tmp_path):
    rows = scenes(tmp_path, 6)
    write_table(tmp_path, [(name, f" {split.upper()}", *box) for name, split, *box in rows])
    boxes = {split: grouped([row for row in rows if row[1] == split]) for split in ("train", "val")}
    for split, wanted in boxes.items():
        assert read(samples_of(tmp_path, split)) == wanted
    (tmp_path / "boxes.csv").unlink()
    halves = {"first.csv": rows[:4], "second.csv": [*rows[4:], ("0.png", "", "red", 1, 1, 9, 9)]}
    for name, some in halves.items():
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *some])
    for split, wanted in boxes.items():
        samples = samples_of(tmp_path, split)
        assert read(samples) == wanted
        assert "rows that no split takes: 1" in samples.report.lines() and samples.report.splits == ["train", "val"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("0.png", "train", "red", 30, 3, 60, 9)],
            r"1 of 1: images/0.png of 40 x 30 pixels has one of 30,3,60,9; data",
        ),
        ([("0.png", "train", "red", 0.1, 0.1, 0.4, 0.9)], "1 thinner than 2 pixels .*shares of the image: give pixels"),
        (
            [("0.png", "train", "red", 3, 3, 4, 9)],
            r"has no box that can be used: 1 thinner than 2 pixels \(images/0.png\)$",
        ),
        ([("0.png", "train", "red", "left", 3, 20, 9)], "row 1 of .*boxes.csv: xmin is 'left'; it must be a number"),
        ([("0.png", "train", "red", 3, "", 20, 9)], "row 1 of .*boxes.csv: ymin is None; it must be a number"),
        ([("0.png", "train", "", 3, 3, 20, 9)], "row 1 of .*boxes.csv has a box and no class"),
        ([("", "train", "red", 3, 3, 20, 9)], "row 1 of .*boxes.csv names no file"),
        ([("0.png", "test", "red", 3, 3, 20, 9)], "data.split 'train': .*boxes.csv has the splits test"),
        (
            [("none.png", "train", "red", 3, 3, 20, 9)],
            "none of the 1 image samples .* is usable: none.png: FileNotFound",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(rows, message, tmp_path):
    scenes(tmp_path, 2)
    with pytest.raises(ValueError, match=message) as caught:
        samples_of(write_table(tmp_path, rows))
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused_or_named(tmp_path):
    boxes = grouped(scenes(tmp_path))
    for path, message in (
        ("", "data.path is ''"),
        (str(tmp_path / "no"), "boxes are read from a folder, a table or a"),
    ):
        with pytest.raises(ValueError, match=message):
            BoxedSamples.open(DetectionConfig(path=path), "train")
    with pytest.raises(
        ValueError, match=r"has no boxes \(data.boxes=auto\): they are a table with the columns file, la"
    ):
        samples_of(tmp_path)
    write_voc(tmp_path, boxes, tmp_path / "Annotations")
    (tmp_path / "Annotations" / "0.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation><object><name>red</name></object></annotation>")
    (tmp_path / "Annotations" / "2.xml").unlink()
    lines = "\n".join(samples_of(tmp_path).report.lines())
    assert "left out, as their XML cannot be read: 2: 0.xml (no element found" in lines
    assert "1.xml (an object without a name or a whole bndbox)" in lines
    assert "left out, as no XML is of them: 1 images (2.png)" in lines
    with pytest.raises(
        ValueError, match=r"data.label is 'kind', and nothing reads it: it is of a table, and boxes are"
    ):
        samples_of(tmp_path, label="kind")
    with pytest.raises(ValueError, match=r"has no boxes \(data.boxes=coco\)"):
        samples_of(tmp_path, boxes="coco")
    content = coco_of(boxes)
    for part, value, message in (
        ("category_id", 99, "train.json: annotation 0 has category_id 99, which it does not list"),
        ("image_id", 99, "train.json: annotation 0 has image_id 99, which it does not list"),
        ("bbox", [1, 2, 3], r"train.json: annotation 0 has bbox \[1, 2, 3\]; it must be left, top, width and height"),
    ):
        before = content["annotations"][0][part]
        content["annotations"][0][part] = value
        (tmp_path / "train.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            samples_of(tmp_path)
        content["annotations"][0][part] = before
    content["annotations"][0]["iscrowd"] = 1
    for name in ("train", "training"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"data.split 'train': .* has train.json and training.json; data.path may name one"
    ):
        samples_of(tmp_path)
    (tmp_path / "training.json").unlink()
    assert "left out: 1 boxes of crowds" in samples_of(tmp_path).report.lines()


# What a batch holds.


def test_boxes_move_with_their_images():
    """A bright rectangle on nothing is where its box says, whatever was drawn."""
    make = transform(32, flip=0.5, scale_jitter=[0.6, 1.6])
    flipped, cut, lost = 0, 0, 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, boxes = torch.zeros(3, HEIGHT, WIDTH), torch.tensor([[4.0, 6.0, 16.0, 14.0], [30.0, 24.0, 34.0, 28.0]])
        image[0, 6:14, 4:16], image[1, 24:28, 30:34] = 1, 1
        placed = BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))  # type: ignore[call-overload]
        out = make({"image": Pixels(image), "boxes": placed, "labels": torch.tensor([0.0, 1.0])})
        assert out["image"].shape == (3, 32, 32) and len(out["boxes"]) == len(out["labels"])
        lost += len(out["labels"]) < 2
        for box, kind in zip(out["boxes"], out["labels"], strict=True):
            rows, columns = torch.nonzero(out["image"][int(kind)] > 0.5, as_tuple=True)
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert [float(x) for x in seen] == pytest.approx(box.tolist(), abs=1.01)
            flipped += int(kind) == 0 and float(box[0]) > 12
            cut += box.min() == 0 or box.max() == 32
    assert flipped > 5 and cut > 2 and lost > 0


def test_views_are_what_the_exported_processor_makes(table, tmp_path):
    samples = samples_of(table)
    task.save_preprocessor(tmp_path, samples.config, samples.frontend)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = samples.view([0, 1]).inputs["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32) and not pixels[:, :, 24:].any() and pixels[:, :, 23].any()
    theirs = processor([samples.image(0), samples.image(1)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, theirs, atol=0.02, rtol=0)
    assert samples.scale(0) == pytest.approx([0.8] * 4)


def test_who_reads_a_detectors_encoder_next_sees_whole_images(table, tmp_path):
    """Its processor fits an image into a square; classes are then read from all of the shorter side."""
    samples = samples_of(table, mean=[0.1, 0.2, 0.3])
    task.save_preprocessor(tmp_path, samples.config, samples.frontend)
    classes, boxes = LabelledConfig(), DetectionConfig()
    for data in (classes, boxes):
        inherit(data, tmp_path, None)
        assert data.mean == pytest.approx([0.1, 0.2, 0.3])
    assert classes.eval_crop == 1.0


# Runs.


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    """The command line of a run of six steps."""
    config = str(ROOT / "configs" / "image" / "detect_tiny.yaml")
    return [config, *SMALL, f"data.path={data}", "data.validation_split=val", f"run.dir={folder}", *more]


def predictions(folder: Path) -> list[dict]:
    with (folder / "predictions_validation.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.pictures
@needs_metric
def test_a_run_learns_and_leaves_a_model_predictions_and_pictures(table, tmp_path, capsys):
    folder = tmp_path / "run"
    more = ("train.steps=60", "train.validate_every=30", "data.test_split=val", "train.lr=3e-3", "train.layer_decay=1")
    scores = finetune.main(arguments(table, folder, *more))
    said = capsys.readouterr().out
    assert (
        "\nsplits: train is trained on; val chooses the best model; CAREFUL: data.test_split 'val' holds samples"
        in said
    )
    assert scores["test"] == scores["validation"] and scores["test"]["ap50"] > 0.15
    losses = tiny.losses(folder)
    assert np.mean([losses[step] for step in range(51, 61)]) < 0.7 * np.mean([losses[step] for step in range(1, 6)])
    for picture in ("boxes_validation.png", "boxes_test.png", "curves.png"):
        pixels = np.asarray(Image.open(folder / picture).convert("L"))
        assert min(pixels.shape) > 200 and pixels.std() > 5
    model = AutoModelForObjectDetection.from_pretrained(folder / "export").eval()
    assert isinstance(model, D2vForObjectDetection) and model.config.id2label == {0: "blue", 1: "red"}
    rows = predictions(folder)
    assert {row["id"] for row in rows} == {f"images/{number}.png" for number in range(12, 18)}
    samples = samples_of(table, "val")
    for index in range(3):
        with torch.no_grad():
            found = model(**samples.view([index]).inputs)
        mine = [row for row in rows if row["id"] == samples.ids[index] and row["label"]]
        assert len(mine) == len(found.boxes[0])
        for row, box, score, label in zip(mine, found.boxes[0], found.scores[0], found.labels[0], strict=True):
            places = (box / 0.8).clamp(max=torch.tensor([WIDTH, HEIGHT] * 2)).tolist()
            assert [float(row[side]) for side in HEADER[3:]] == pytest.approx(places, abs=0.01)
            assert float(row["score"]) == pytest.approx(float(score), abs=1e-5)
            assert row["label"] == model.config.id2label[int(label)]
    processor = AutoImageProcessor.from_pretrained(folder / "export")
    with Image.open(table / samples.ids[0]) as image, torch.no_grad():
        assert len(model(**processor(image, return_tensors="pt")).boxes) == 1


@needs_metric
@pytest.mark.parametrize("kind", tiny.first(["fcos", "faster_rcnn"]))
def test_an_interrupted_run_ends_as_one_that_was_not(kind, table, tmp_path, monkeypatch):
    more = (f"task.detector={kind}", "train.ema_decay=0.9", "model.trunk.dropout=0.1", "train.validate_every=2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finetune.main(arguments(table, whole, *more))
    step = Loop._step

    def dying(self, batches):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune.main(arguments(table, killed, *more))
    monkeypatch.setattr(Loop, "_step", step)
    finetune.main(arguments(table, killed, *more))
    for number in (3, 6):
        tiny.assert_same(tiny.checkpoint_tensors(killed, number), tiny.checkpoint_tensors(whole, number))
    assert tiny.losses(killed) == tiny.losses(whole) and predictions(killed) == predictions(whole)
    assert (killed / "results.json").read_text() == (whole / "results.json").read_text()


@needs_metric
def test_two_processes_train_and_choose_as_one(table, tmp_path):
    finetune_image.main(arguments(table, tmp_path / "one", "train.validate_every=3"))
    command = arguments(table, tmp_path / "two", "train.validate_every=3")
    assert tiny.wait(tiny.start(finetune_image.main, command, world=2)) == [0, 0]
    one, two = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "two")
    assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-4)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["steps"] == results[1]["steps"] == 6
    assert results[0]["scores"]["validation"] == pytest.approx(results[1]["scores"]["validation"], rel=1e-2)


@needs_metric
@pytest.mark.parametrize("encoder", ["ours", "timm"])
def test_an_encoder_frozen_or_a_network_of_timm(encoder, table, tmp_path):
    run = tmp_path / "run"
    if encoder == "timm":
        network = ("model.frontends.image.backbone=resnet18", "model.trunk.dim=512", "model.trunk.depth=0")
        network += ("model.trunk.input_norm=false", "model.frontends.image.positions=none", "train.steps=1")
        network += ("model.frontends.image.patch_size=16", "model.frontends.image.image_size=64")
        network += ("model.trunk.num_heads=12", "model.trunk.mlp_dim=3072", "train.layer_decay=1")  # of blocks
        finetune.main(arguments(table, run, *network, "task.scales=[4,2]", "train.warmup_steps=0", "run.save_every=1"))
        assert "encoder.frontends.image.backbone.conv1.weight" in tiny.load(run / "export" / "model.safetensors")
        return
    source = tmp_path / "source"
    finetune.main(arguments(table, source))
    assert isinstance(load_ours(source / "export"), D2vForObjectDetection)
    said = arguments(table, run, f"model={source}", "train.layers=frozen", "train.layer_decay=1", "train.seed=3")
    said.append("train.validate_every=6")  # none before the last could be the best
    finetune.main(said)
    before, after = (tiny.load(place / "export" / "model.safetensors") for place in (source, run))
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved and all(name.startswith("head.") for name in moved)


def test_without_the_metric_a_run_says_what_to_install(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(
        ValueError, match=r"boxes are scored by torchmetrics and faster-coco-eval: pip install 'd2v\[dete"
    ):
        finetune.main(arguments(table, tmp_path / "run"))


@needs_metric
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("task.detector=yolo",), "task.detector is 'yolo'; it may be fcos, faster_rcnn"),
        (
            ("task.scales=[1,2]",),
            r"task.scales is \[1.0, 2.0\]; it must be one or more of \[4.0, 2.0, 1.0, 0.5\], larg",
        ),
        (("task.scales=[]",), r"task.scales is \[\]; it must be"),
        (("task.pyramid_dim=40",), "task.pyramid_dim is 40; it must be a multiple of 32"),
        (("data.boxes=yolo",), "data.boxes is 'yolo'; it may be auto, table, voc, coco"),
        (("data.scale_jitter=[2,1]",), r"data.scale_jitter is \[2.0, 1.0\]; it must be \[least, most\]"),
        (("data.mean=[0.5,0.5]",), "data.mean has 2 values for 3 channels"),
        (("data.crop_scale=[0.5,1]",), "unknown key 'data.crop_scale'"),
        (("data.validation_split=test",), "data.validation_split 'test': .*boxes.csv has the splits odd, train, val"),
        (("train.metric=accuracy",), "train.metric is 'accuracy'; the scores of this task are ap50, ap"),
        (
            ("data.validation_split=odd",),
            "boxes of split 'odd' are of 'green', unseen in training; its classes are blue, red",
        ),
        (("train.batch_size=13",), "data has 12 usable samples, fewer than one batch: train.batch_size is 13"),
    ],
)
def test_bad_commands_are_refused_in_one_line(more, message, tmp_path):
    rows = scenes(tmp_path / "data")
    write_table(tmp_path / "data", [*rows, ("3.png", "odd", "green", 3, 3, 20, 20)])
    with pytest.raises(ValueError, match=message) as caught:
        finetune.main(arguments(tmp_path / "data", tmp_path / "run", *more))
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoints").exists()


@needs_metric
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/detect_*.yaml")), ids=lambda path: path.stem)
def test_every_config_says_what_it_is_and_trains_when_made_tiny(path, table, tmp_path):
    header = path.read_text().split("model:")[0]
    assert all(word in header for word in ("# command:", "# hardware:", "hours:", "expected:"))
    more = ("train.steps=2", "run.save_every=2", "run.workers=0", "train.mixed_precision=no", "data.boxes=auto")
    finetune.main([str(path), *arguments(table, tmp_path / "run", *more)[1:], "train.validate_every=1"])
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]


@needs_metric
def test_boxes_are_scored_as_the_predictions_file_has_them(tmp_path):
    """Cut at the end of the image, below which its view is filled: here of 32 rows the last 8."""
    samples = samples_of(write_table(tmp_path, [*scenes(tmp_path)]))
    (truth,) = task._scored(samples, np.array([0]), [np.zeros(len(boxes), dtype=int) for boxes in samples.boxes]).labels
    below = np.array([[*truth[0, :2], truth[0, 2], 32.0, 0.9, 0.0]])
    truth[0, 3] = 24.0
    assert truth[0, 5:].tolist() == [32, 24] and len(truth[0]) == 7
    (row,) = task._rows(["a"], ScoredSplit(samples, np.array([0]), [truth]), [below])
    assert row["ymax"] == HEIGHT
    assert task._precision_inside([below], [truth[:1]]) == pytest.approx({"ap50": 1, "ap": 1})
    assert task._precision_inside([below], [truth[:0]])["ap"] == 0


def test_names_with_spaces_in_the_lists_of_voc(tmp_path):
    of_split = {"train": {"a b 0.png": [("red", 1, 1, 20, 20)]}, "val": {"c.png": [("red", 1, 1, 20, 20)]}}
    (tmp_path / "JPEGImages").mkdir()
    for name in ("a b 0.png", "c.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages" / name)
    as_voc_lists(tmp_path, [], of_split)
    (tmp_path / "ImageSets/Main/val.txt").write_text("c -1\n\n")  # as a class's list has it
    assert samples_of(tmp_path).ids == ["JPEGImages/a b 0.png"]
    assert samples_of(tmp_path, "val").ids == ["JPEGImages/c.png"]


def test_a_resumed_run_asks_where_boxes_have_changed(tmp_path):
    """A box that moves is another label."""
    folder = tmp_path / "data"
    rows = scenes(folder)
    marks = []
    for shift in (0, 1):
        moved = [(*row[:5], row[5] - shift, row[6]) if row[2] else row for row in rows]
        samples = samples_of(write_table(folder, moved))
        classes = [np.zeros(len(boxes), dtype=int) for boxes in samples.boxes]
        marks.append(marks_of(str(folder), [task._scored(samples, np.arange(len(samples)), classes)]))
    assert marks[0]["digest"] != marks[1]["digest"]
