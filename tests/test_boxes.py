"""Which images boxes are of, and what is refused where annotations and images contradict one another."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.samples import BoxedSamples
from d2v.modalities.image.detection.source import open_boxes
from d2v.modalities.image.frontend import FrontendConfig

SIZE = (40, 30)
SPLITS = ("train", "val", "test")


def picture(file: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(file.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)


def coco(boxes: dict[str, list], size: tuple[int, int] = SIZE) -> dict:
    """Content of a JSON: boxes as left, top, width and height."""
    images = [{"id": n, "file_name": name, "width": size[0], "height": size[1]} for n, name in enumerate(boxes)]
    annotations = []
    for number, some in enumerate(boxes.values()):
        annotations += [{"id": len(annotations), "image_id": number, "category_id": 1, "bbox": box} for box in some]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def write(file: Path, content: dict, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding=encoding)


def read(path: Path, split: str = "train") -> dict[str, list]:
    """Boxes by the path of their image below the data."""
    rows = open_boxes(DetectionConfig(path=str(path)), split)
    return {str(Path(row["file"]).relative_to(path)): row["boxes"] for row in rows}


def samples(path: Path, **settings) -> BoxedSamples:
    frontend = FrontendConfig(image_size=32, patch_size=8)
    return BoxedSamples(DetectionConfig(path=str(path), **settings), frontend, split="train", folder=path)


@pytest.mark.parametrize("form", ["coco", "csv", "column"])
def test_equal_names_in_folders_of_splits(form, tmp_path):
    lines = []
    for number, split in enumerate(SPLITS):
        for name in ("0.png", "1.png"):
            picture(tmp_path / split / name)
        if form == "coco":
            boxes = {name: [[number, 1, 5, 6]] for name in ("0.png", "1.png")}
            write(tmp_path / "annotations" / f"instances_{split}2017.json", coco(boxes))
        rows = [f"{name},thing,{number},1,{number + 5},7" for name in ("0.png", "1.png")]
        lines += [f"{row},{split}" for row in rows]
        if form == "csv":
            (tmp_path / f"{split}.csv").write_text("\n".join(["file,label,xmin,ymin,xmax,ymax", *rows]))
    if form == "column":
        (tmp_path / "boxes.csv").write_text("\n".join(["file,label,xmin,ymin,xmax,ymax,split", *lines]))
    for number, split in enumerate(SPLITS):
        expected = [[number, 1, number + 5, 7]]
        assert read(tmp_path, split) == {f"{split}/{name}": expected for name in ("0.png", "1.png")}


def test_equal_names_in_folders_that_say_nothing(tmp_path):
    for folder in ("first", "second"):
        picture(tmp_path / folder / "0.png")
    write(tmp_path / "boxes.json", coco({"0.png": [[1, 1, 5, 5]]}))
    with pytest.raises(ValueError, match=r"0.png and others lie in .*first and in .*second, and nothing says which"):
        read(tmp_path)
    (tmp_path / "second").rename(tmp_path / "masks")
    (tmp_path / "first").rename(tmp_path / "images")
    assert list(read(tmp_path)) == ["images/0.png"]


def test_a_missing_image_does_not_send_to_another_project(tmp_path):
    for name in ("0.png", "1.png", "2.png"):
        picture(tmp_path / "backup" / name)
        if name != "0.png":
            picture(tmp_path / "mine" / "pictures" / name)
    write(tmp_path / "mine" / "boxes.json", coco({f"{n}.png": [[1, 1, 5, 5]] for n in range(3)}))
    assert list(read(tmp_path / "mine")) == [f"pictures/{n}.png" for n in range(3)]
    assert [name for name, _ in samples(tmp_path / "mine", max_bad_share=0.5).report.unreadable] == ["pictures/0.png"]


def test_images_that_are_missing_are_not_read_of_another_split_or_size(tmp_path):
    for name in map(str, range(5)):
        picture(tmp_path / "train" / f"{name}.jpg")
        if name != "0":
            picture(tmp_path / "val" / f"{name}.jpg")
    boxes = {f"{n}.jpg": [[1, 1, 5, 5]] for n in range(5)}
    write(tmp_path / "annotations" / "instances_val.json", coco(boxes))
    assert list(read(tmp_path, "val")) == [f"val/{n}.jpg" for n in range(5)]
    mine = tmp_path / "mine"
    for name in map(str, range(5)):
        picture(mine / "thumbs" / f"{name}.jpg", (20, 15))
        if name != "0":
            picture(mine / f"{name}.jpg")
    write(mine / "boxes.json", coco(boxes))
    assert list(read(mine)) == [f"{n}.jpg" for n in range(5)]


def test_images_beside_the_folder_of_annotations_are_found_and_told(tmp_path):
    picture(tmp_path / "images" / "0.png")
    write(tmp_path / "annotations" / "boxes.json", coco({"0.png": [[1, 1, 5, 5]]}))
    rows = open_boxes(DetectionConfig(path=str(tmp_path / "annotations")), "train")
    assert rows[0]["file"] == str(tmp_path / "images" / "0.png")
    assert f"the images lie in {tmp_path / 'images'}, outside of data.path" in rows.info.description


def test_what_a_json_lists_twice(tmp_path):
    for name in ("0.png", "1.png"):
        picture(tmp_path / name)
    content = coco({"0.png": [[1, 1, 5, 5]], "1.png": [[2, 2, 6, 6]]})
    content["images"][1]["file_name"] = "0.png"
    write(tmp_path / "boxes.json", content, "utf-8-sig")  # as Windows writes it
    assert read(tmp_path) == {"0.png": [[1, 1, 6, 6], [2, 2, 8, 8]]}
    for part, key, value, message in (
        ("images", "id", 0, r"images has two entries with id 0: 0.png and 1.png"),
        ("categories", "name", None, r"categories has an entry without id or name"),
        ("annotations", "bbox", [1, 1, float("nan"), 5], r"annotation 0 has bbox .*nan.*; it must be left, top"),
    ):
        content = coco({"0.png": [[1, 1, 5, 5]], "1.png": []})
        content[part][-1][key] = value
        write(tmp_path / "boxes.json", content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    (tmp_path / "boxes.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"boxes.json cannot be read as JSON"):
        read(tmp_path)


def test_images_of_another_size_than_their_annotations_say(tmp_path):
    for number in range(4):
        picture(tmp_path / f"{number}.png")
    boxes = {f"{number}.png": [[1, 1, 9, 9]] for number in range(4)}
    write(tmp_path / "boxes.json", coco(boxes, (20, 15)))
    with pytest.raises(
        ValueError, match=r"annotations say: 4 of 4: 0.png has 40 x 30 pixels, its boxes are of 20 x 15"
    ):
        samples(tmp_path)
    assert "boxes stay as they are" in "\n".join(samples(tmp_path, max_bad_share=1.0).report.lines())
    write(tmp_path / "boxes.json", coco(boxes))
    assert len(samples(tmp_path)) == 4
    picture(tmp_path / "0.png", orientation=6)
    with pytest.raises(
        ValueError, match=r"0.png has 30 x 40 pixels \(turned by its EXIF, or width for height\), its boxes are of"
    ):
        samples(tmp_path, max_bad_share=0.2)
    (tmp_path / "boxes.json").unlink()
    for number in range(4):
        size = "" if number else "<size><width>0</width><height>0</height></size>"
        size = size if number < 2 else "<size><width>20</width><height>15</height></size>"
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        xml = f"<annotation>{size}<object><name>thing</name>{box}</object></annotation>"
        (tmp_path / f"{number}.xml").write_text(xml)
    with pytest.raises(ValueError, match=r"annotations say: 2 of 4: 2.png has 40 x 30 pixels"):
        samples(tmp_path)


def test_widths_and_heights_for_ends_are_refused(tmp_path):
    rows = []
    for number in range(4):
        picture(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,thing,20,15,9,9")
    (tmp_path / "boxes.csv").write_text("\n".join(["file,label,xmin,ymin,xmax,ymax", *rows]))
    with pytest.raises(
        ValueError, match=r"end before they begin .*no widths and heights\): 4 of 4: 0.png has 20,15,9,9"
    ):
        samples(tmp_path)
