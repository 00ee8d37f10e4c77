"""Pairs of two modalities: which rows they are of, their batches, what is refused; and that they are learned from."""

import shutil
from pathlib import Path

import numpy as np
import paired
import pytest
import torch
from colours import COLOURS, TONES
from datasets import Dataset
from torch import Tensor

from d2v import plugins
from d2v.config.loading import typed
from d2v.modalities.common import pairs
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.settings import check_readers
from d2v.types import View

PAIRS = [("image", "text"), ("text", "speech"), ("image", "speech")]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Twelve rows of four colours."""
    return paired.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def copied(table, tmp_path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(table.parent, tmp_path / "own")
    return tmp_path / "own" / "table.csv"


def made(data: pairs.PairConfig, folder: Path, size: int = 4, log=lambda name, why: None):
    samples, frontends = paired.opened(data, folder)
    return samples, pairs.batches(samples, data, frontends, size, 0, log)


def colours(view: View) -> list[str]:
    """What each row shows, says or sounds like."""
    if view.modality == "image":
        means = view.inputs["pixel_values"].mean(dim=(2, 3)) * torch.tensor([0.229, 0.224, 0.225])
        means = (means + torch.tensor([0.485, 0.456, 0.406])) * 255
        known = torch.tensor(list(COLOURS.values())).float()
        return [[*COLOURS][place] for place in torch.cdist(means, known).argmin(dim=1).tolist()]
    if view.modality == "text":
        firsts = view.inputs["input_ids"][:, 3]  # <s> a, then the letters of the colour
        return [chr(97 + int(number) % 26) for number in firsts]
    tones = []
    for row, wave in enumerate(view.inputs["input_values"]):
        real = wave if "attention_mask" not in view.inputs else wave[view.inputs["attention_mask"][row].bool()]
        place = torch.fft.rfft(real).abs().argmax().item() * 8000 / len(real)
        tones.append(min(TONES, key=lambda name: abs(TONES[name] - place)))
    return tones


def belong(views: list[View], names: list[str]) -> bool:
    """Whether both views are of the colours in the names of the samples."""
    wanted = [next(name for name in COLOURS if name in sample) for sample in names]
    for view in views:
        found = colours(view)
        if view.modality == "text":  # of letters: equal where the colours are
            if len(set(zip(found, wanted, strict=True))) != len(set(wanted)):
                return False
        elif found != wanted:
            return False
    return True


# Which rows.


@pytest.mark.parametrize("two", PAIRS, ids="+".join)
def test_rows_stay_together_through_epochs(two, table, tmp_path):
    samples, batches = made(paired.config(two, path=str(table)), tmp_path)
    assert len(samples) == 12 and samples.report.lines()[0] == f"{'+'.join(two)}: 12 of 12 samples usable"
    seen = []
    for step in range(6):
        views, names = batches(step, 0, 1)
        assert [view.modality for view in views] == list(two) and all(view.mask is None for view in views)
        assert belong(views, names)
        seen += names
    assert sorted(seen[:12]) == sorted(seen[12:]) == sorted(samples.ids) and seen[:12] != seen[12:]


def test_a_row_that_one_side_cannot_read_is_left_out_on_both_and_named_once(copied, tmp_path):
    lines = copied.read_text().splitlines()
    lines[2] = ",files/green0.wav,a green one,green"  # no picture
    lines[4] = "files/yellow0.png,files/yellow0.wav,,yellow"  # no words
    lines[5] = "files/red1.png,,,red"
    copied.write_text("\n".join(lines) + "\n")
    (copied.parent / "files" / "blue0.png").write_bytes(b"no picture")
    (copied.parent / "files" / "blue1.wav").write_bytes(b"no sound")
    (copied.parent / "files" / "blue2.png").unlink()
    samples, batches = made(paired.config(("image", "text"), path=str(copied), max_bad_share=0.5), tmp_path / "it")
    assert len(samples) == 7 and samples.report.found == 12
    named = dict(samples.report.unreadable)
    assert list(named) == ["train:1", *(f"files/{name}.png" for name in ("blue0", "yellow0", "red1", "blue2"))]
    assert named["files/blue0.png"].startswith("image: UnidentifiedImageError")
    assert named["files/yellow0.png"] == named["files/red1.png"] == "text: empty cell"
    assert named["train:1"].startswith("image: ") and named["files/blue2.png"].startswith("image: ")
    assert all(belong(*batches(step, 0, 1)) for step in range(8))
    samples, batches = made(paired.config(("image", "speech"), path=str(copied), max_bad_share=0.5), tmp_path / "is")
    assert len(samples) == 7 and {"files/red1.png", "files/blue1.png"} <= dict(samples.report.unreadable).keys()
    assert all(belong(*batches(step, 0, 1)) for step in range(8))
    line = samples.report.lines()[1]
    assert line.startswith("unreadable: 5: ") and line.count("files/blue1.png (speech: ") == 1


def test_rows_of_the_same_words_have_one_label(copied, tmp_path):
    copied.write_text(copied.read_text().replace("a blue one", "a red one"))
    for two in (("image", "text"), ("text", "speech")):
        _, batches = made(paired.config(two, path=str(copied)), tmp_path / two[0], size=12)
        (first, second), names = batches(0, 0, 1)
        assert torch.equal(first.labels, second.labels) and first.labels.dtype == torch.int64
        same = {"blue": "red"}
        words = [next(same.get(name, name) for name in COLOURS if name in one) for one in names]
        for i in range(12):
            for j in range(12):
                assert (first.labels[i] == first.labels[j]) == (words[i] == words[j])
    _, batches = made(paired.config(("image", "speech"), path=str(copied)), tmp_path / "none")
    assert [view.labels for view in batches(0, 0, 1)[0]] == [None, None]


def test_transcripts_beside_recordings_and_captions_beside_pictures(table, tmp_path):
    said = tmp_path / "said"
    said.mkdir()
    for wave in sorted((table.parent / "files").glob("*.wav")):
        shutil.copy(wave, said)
        if wave.stem != "red0":
            (said / f"{wave.stem}.txt").write_text(f"a {wave.stem[:-1]} one\n")
    samples, batches = made(paired.config(("speech", "text"), path=str(said)), tmp_path / "a")
    assert len(samples) == 11 and samples.report.unreadable == [("red0.wav", "text: empty cell")]
    assert belong(*batches(0, 0, 1))
    shown = tmp_path / "shown" / "train"
    shown.mkdir(parents=True)
    lines = ["file_name,caption"]
    for picture in sorted((table.parent / "files").glob("*.png"), reverse=True):
        shutil.copy(picture, shown)
        lines.append(f"{picture.name},a {picture.stem[:-1]} one")
    (shown / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = paired.config(("image", "text"), {"text": {"text": "caption"}}, path=str(shown.parent))
    samples, batches = made(data, tmp_path / "b")
    assert len(samples) == 12 and belong(*batches(0, 0, 1))


def test_paths_of_both_columns_are_of_the_tables_folder(table, tmp_path, monkeypatch):
    """In parquet and jsonl too, and whatever the current folder is."""
    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_csv(str(table), cache_dir=str(tmp_path / "cache"))
    for name, write in (("rows.parquet", rows.to_parquet), ("rows.jsonl", rows.to_json)):
        path = table.parent / name
        write(str(path))
        samples, batches = made(paired.config(("image", "speech"), path=str(path)), tmp_path / "prepared")
        assert len(samples) == 12 and belong(*batches(0, 0, 1))
        path.unlink()


def test_sides_of_other_paths_are_paired_by_number(table, tmp_path):
    lines = [line.split(",")[2] for line in table.read_text().splitlines()[1:]]
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    sides = {"text": {"path": str(tmp_path / "captions.txt")}}
    samples, batches = made(paired.config(("image", "text"), sides, path=str(table)), tmp_path / "a")
    assert len(samples) == 12 and belong(*batches(0, 0, 1))
    (tmp_path / "captions.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="different numbers of rows, 12 of image, 11 of text: they are no pairs"):
        made(paired.config(("image", "text"), sides, path=str(table)), tmp_path / "b")


# By class.


def by_class(table: Path, **settings) -> pairs.PairConfig:
    return paired.config(("image", "speech"), path=str(table), by="class", **settings)


def test_partners_are_of_the_same_class_and_drawn_anew(table, tmp_path):
    samples, batches = made(by_class(table), tmp_path)
    assert len(samples) == 12 and samples.classes == sorted(COLOURS)
    assert "pairs by class: 4 classes: blue, green, red, yellow" in samples.report.lines()
    partners: dict[str, set[str]] = {}
    for step in range(12):
        (first, second), names = batches(step, 0, 1)
        assert colours(first) == colours(second) == [samples.classes[label] for label in first.labels.tolist()]
        assert torch.equal(first.labels, second.labels)
        for name in names:
            one, _, other = name.partition("+")
            partners.setdefault(one, set()).add(other or one)
    assert len(partners) == 12 and max(map(len, partners.values())) == 3


def test_classes_that_one_side_lacks_are_said_and_left_out(copied, tmp_path):
    lines = copied.read_text().splitlines()
    other = copied.with_name("other.csv")  # sounds of three colours and of one that there is no picture of
    renamed = [line.replace(",red", ",rot") for line in lines]
    other.write_text("\n".join(line.replace("label", "name") for line in renamed) + "\n")
    sides = {"speech": {"path": str(other), "label": "name"}}
    data = paired.config(("image", "speech"), sides, path=str(copied), by="class")
    samples, batches = made(data, tmp_path / "a")
    assert len(samples) == 9 and samples.classes == ["blue", "green", "yellow"]
    assert "left out, as only image has them: 1 classes: red" in samples.report.lines()
    assert "left out, as only speech has them: 1 classes: rot" in samples.report.lines()
    (first, second), _ = batches(0, 0, 1)
    assert colours(first) == colours(second) and "red" not in colours(first)
    other.write_text("\n".join(line.replace("label", "name") for line in (lines[0], f"{lines[1]}x")) + "\n")
    with pytest.raises(ValueError, match=r"data.by=class: the sides share no class: image has blue.*, speech has redx"):
        made(data, tmp_path / "b")
    with pytest.raises(ValueError, match=r"data.by=class: data.label 'kind' of the image side: .* no column 'kind'"):
        made(by_class(copied, label="kind"), tmp_path / "c")


# Batches.


@pytest.mark.parametrize("by", ["row", "class"])
@pytest.mark.parametrize("two", PAIRS, ids="+".join)
def test_batches_are_pure_and_parts_make_the_whole(two, by, table, tmp_path):
    data = paired.config(two, path=str(table), by=by)
    samples, frontends = paired.opened(data, tmp_path)
    batches = pairs.batches(samples, data, frontends, 6, 5)
    again = pairs.batches(paired.opened(data, tmp_path)[0], data, frontends, 6, 5)
    whole, names = batches(3, 0, 1)
    batches(0, 0, 1)
    same(whole, again(3, 0, 1)[0])
    for parts in (2, 3):
        found = [batches(3, part, parts) for part in range(parts)]
        assert [name for row in zip(*(some for _, some in found), strict=True) for name in row] == names
        for side, view in enumerate(whole):
            for key, value in view.inputs.items():
                rows = torch.stack([views[side].inputs.get(key, torch.ones_like(value[::parts])) for views, _ in found])
                assert torch.equal(rows.transpose(0, 1).flatten(0, 1), value), key  # as wide, and to the bit
    other = pairs.batches(samples, data, frontends, 6, 6)(3, 0, 1)
    assert other[1] != names


def same(found: list[View], expected: list[View]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one.inputs.keys() == two.inputs.keys()
        assert all(torch.equal(one.inputs[key], two.inputs[key]) for key in two.inputs)


@pytest.mark.parametrize("by", ["row", "class"])
def test_another_stands_in_on_both_sides_for_what_can_no_longer_be_read(by, copied, tmp_path):
    log: dict[str, str] = {}
    data = paired.config(("image", "speech"), path=str(copied), by=by, max_bad_share=1.0)
    samples, batches = made(data, tmp_path / "p", size=12, log=log.__setitem__)
    samples.side("speech")._cache.clear()  # or it would not be read again
    before = batches(1, 0, 1)[1]
    (copied.parent / "files" / "red1.png").unlink()
    (copied.parent / "files" / "blue2.wav").write_bytes(b"")
    samples.side("speech")._cache.clear()
    views, names = batches(1, 0, 1)
    assert colours(views[0]) == colours(views[1]) and len(names) == 12
    assert "files/red1.png" in log and log["files/red1.png"].startswith("image: ")
    assert not any("red1.png" in name.partition("+")[0] for name in names)
    changed = [place for place in range(12) if names[place] != before[place]]
    if by == "row":
        bad = log["files/blue2.png"] if "files/blue2.png" in log else log["files/blue2.wav"]
        assert bad.startswith("speech: ") and len(changed) == 2
        assert not any("blue2" in name for name in names)
    else:  # another recording of the class does; the picture stays
        assert all(not name.endswith("blue2.wav") for name in names) and any("blue2.png" in name for name in names)
        assert [name.partition("+")[0] for name in names].count("files/blue2.png") == 1
    (copied.parent / "files").rename(copied.parent / "gone")
    samples.side("speech")._cache.clear()
    with pytest.raises(
        ValueError, match=r"100 pairs in a row cannot be read, the first is files/.* was data.path changed"
    ):
        batches(2, 0, 1)


def test_a_side_is_seen_in_the_view_that_is_asked_for(table, tmp_path):
    sides = {
        "image": {"views": ["simclr"], "color_strength": 0.5, "crop_scale": [0.08, 1.0], "color_jitter": 0.4},
        "text": {"views": ["deletion"]},
    }
    data = paired.config(("image", "text"), sides, path=str(table))
    _, batches = made(data, tmp_path, size=12)
    _, plain = made(paired.config(("image", "text"), path=str(table)), tmp_path, size=12)
    (image, text), _ = batches(0, 0, 1)
    (other, whole), _ = plain(0, 0, 1)
    assert not torch.equal(image.inputs["pixel_values"], other.inputs["pixel_values"])
    lengths = text.inputs["attention_mask"].sum(dim=1), whole.inputs["attention_mask"].sum(dim=1)
    assert (lengths[0] <= lengths[1]).all() and (lengths[0] < lengths[1]).any()
    data = paired.config(("image", "speech"), {"speech": {"views": ["noise"]}}, path=str(table))
    _, batches = made(data, tmp_path, size=12)
    _, plain = made(paired.config(("image", "speech"), path=str(table)), tmp_path, size=12)
    assert not torch.equal(batches(0, 0, 1)[0][1].inputs["input_values"], plain(0, 0, 1)[0][1].inputs["input_values"])


# Refused.


@pytest.mark.parametrize(
    ("two", "sides", "settings", "message"),
    [
        (
            ("image", "text"),
            {},
            {"path": ""},
            "data.path is required: a table .*; or data.image.path and data.text.path",
        ),
        (("image", "text"), {}, {"path": "nowhere/at/all.csv"}, "data.path 'nowhere/at/all.csv' does not exist"),
        (("image", "text"), {}, {"by": "name"}, "data.by is 'name'; it may be row, class"),
        (("image", "text"), {}, {"max_bad_share": 2.0}, "data.max_bad_share is 2.0"),
        (("image", "text"), {"image": {"label": "x"}}, {}, "data.image.label is 'x', and nothing reads it: data.by is"),
        (
            ("image", "text"),
            {"image": {"flip": 2.0}},
            {},
            "data.image.flip is 2.0; it must be at least 0 and at most 1",
        ),
        (("image", "text"), {"text": {"text": "words"}}, {}, "data.text.text is 'words'; the columns of data.path"),
        (("image", "text"), {"text": {"block_size": 99}}, {}, "data.text.block_size 99 must lie in 4"),
        (
            ("image", "text"),
            {"image": {"views": ["x"], "crop_scale": [0.08, 1.0], "color_jitter": 0.4}},
            {},
            "data.image.views holds 'x'; it may hold",
        ),
        (
            ("image", "text"),
            {"image": {"views": ["simclr", "simclr"], "crop_scale": [0.08, 1.0], "color_jitter": 0.4}},
            {},
            r"data.image.views is \['simclr', 'simclr'\]; a side of pairs is seen in one view",
        ),
        (("image", "text"), {"image": {"blur": False}}, {}, "data.image.blur is False, and nothing reads it"),
        (("image", "text"), {"image": {"mean": [0.5, 0.5]}}, {}, "data.image.mean has 2 values for 3 channels"),
        (("image", "speech"), {"speech": {"max_seconds": 0.01, "min_seconds": 0.0}}, {}, "data.speech.max_seconds"),
        (
            ("speech", "text"),
            {"speech": {"augment": None}},
            {},
            "",
        ),
    ],
)
def test_settings_that_make_no_sense(two, sides, settings, message, table, tmp_path):
    if not message:  # what speech's views read is checked where they are asked for
        augment = plugins.load("d2v.modalities", "speech").views.AugmentConfig(gain=3.0)
        sides, message = {"speech": {"augment": augment}}, "data.speech.augment.gain is 3.0, and nothing reads it"
    with pytest.raises(ValueError, match=message):
        made(paired.config(two, sides, **{"path": str(table), **settings}), tmp_path)


def test_data_that_is_no_pairs(copied, tmp_path):
    folder = copied.parent / "files"
    with pytest.raises(ValueError, match="image and speech would both be read from the column 'file'; pairs need"):
        made(paired.config(("image", "speech"), path=str(folder)), tmp_path / "a")
    with pytest.raises(ValueError, match="image and text would both be read from the column 'file'"):
        made(paired.config(("image", "text"), path=str(folder)), tmp_path / "b")
    lines = copied.read_text().splitlines()
    copied.write_text("\n".join(line.rpartition(",")[0].rpartition(",")[0] for line in lines) + "\n")
    with pytest.raises(ValueError, match=r"no column holds text; the columns are image, audio"):
        made(paired.config(("image", "text"), path=str(copied)), tmp_path / "no")
    copied.write_text("\n".join([lines[0], *(",".join([*line.split(",")[:2], "", "x"]) for line in lines[1:])]) + "\n")
    with pytest.raises(ValueError, match=r"none of the 12 text samples of .* is usable"):
        made(paired.config(("image", "text"), path=str(copied)), tmp_path / "c")
    halves = [",files/x.wav,a,x" if number % 2 else "files/red0.png,files/red0.wav,,x" for number in range(12)]
    copied.write_text("\n".join([lines[0], *halves]) + "\n")
    with pytest.raises(ValueError, match=r"none of the 12 image.text samples of .* is usable"):
        made(paired.config(("image", "text"), path=str(copied), max_bad_share=1.0), tmp_path / "d")


def test_too_many_bad_rows_and_too_few_for_a_batch(copied, tmp_path):
    (copied.parent / "files" / "red0.png").write_bytes(b"x")
    lines = copied.read_text().splitlines()
    lines[3] = "files/blue0.png,files/blue0.wav,,blue"
    copied.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"16.7% of the image.text samples .* data.max_bad_share is 10.0%: files/red0"):
        made(paired.config(("image", "text"), path=str(copied)), tmp_path)
    data = paired.config(("image", "text"), path=str(copied), max_bad_share=0.2)
    with pytest.raises(
        ValueError, match=r"10 usable samples, fewer than one batch: train.batch_size is 11, and may be 10"
    ):
        made(data, tmp_path, size=11)


def test_settings_of_a_sides_views_are_of_that_side(table):
    """A joint run asks of all sections whether something reads each setting."""
    noisy = {
        "speech": {"views": ["noise"]},
        "image": {"views": ["simclr"], "crop_scale": [0.08, 1], "color_jitter": 0.4},
    }
    data = paired.config(("image", "speech"), noisy, path=str(table))
    data.speech.augment.snr = [0.0, 10.0]
    check_readers({"data": data})
    assert pairs.side_of(data, "speech").augment.snr == [0.0, 10.0]
    data.speech.augment.gain = 3.0
    with pytest.raises(
        ValueError, match=r"data.speech.augment.gain is 3.0, and nothing reads it: data.views has neither"
    ):
        check_readers({"data": data})
    data.speech.augment.snr = [10.0, 0.0]
    with pytest.raises(ValueError, match=r"data.speech.augment.snr is \[10.0, 0.0\]; it must be"):
        pairs.side_of(data, "speech")


def test_what_is_no_side():
    image = plugins.load("d2v.modalities", "image")
    with pytest.raises(ValueError, match=r"pairs are of two modalities, such as image\+text; here is image"):
        pairs.data_config({"image": image})
    with pytest.raises(ValueError, match=r"x can be no side of pairs: pytest does not export Side, SideConfig"):
        pairs.data_config({"image": image, "x": pytest})


def test_a_config_refuses_what_pairs_do_not_read(table):
    """Masks are not of pairs, so that their settings are unknown there."""
    modules = {name: plugins.load("d2v.modalities", name) for name in ("image", "text")}
    kinds = {"data": {"image+text": pairs.data_config(modules)}}
    values = {"path": str(table), "image": {"flip": 0.25, "crop_scale": [0.5, 1]}, "text": {"block_size": 32}}
    data = typed(kinds, {"data": {"image+text": values}}, "", "config.yaml")["data"]["image+text"]
    side = pairs.side_of(data, "image")
    assert type(side) is modules["image"].DataConfig and (side.flip, side.crop_scale) == (0.25, [0.5, 1])
    assert (side.path, side.split, side.max_bad_share) == (str(table), "train", data.max_bad_share)
    text = pairs.side_of(data, "text", "test")
    assert type(text) is modules["text"].DataConfig and (text.block_size, text.min_tokens, text.split) == (
        32,
        1,
        "test",
    )
    for wrong, message in (
        ({"image": {"mask_ratio": 0.5}}, r"unknown key .data.image.text.image.mask_ratio"),
        ({"text": {"mask_prob": 0.5}}, r"unknown key .data.image.text.text.mask_prob"),
        ({"speech": {}}, r"unknown key .data.image.text.speech"),
        ({"label": "name"}, r"data.image.text.label is 'name', which data.image.text.by=row does not read"),
        ({"image": {"view_scale": [0.5, 1]}}, r"data.image.*view_scale is .*, and nothing reads it"),
    ):
        with pytest.raises(ValueError, match=message):
            typed(kinds, {"data": {"image+text": values | wrong}}, "", "config.yaml")


# Learned from.


def accuracy(objective, views: list[View]) -> float:
    with torch.no_grad():
        return float(objective(views).metrics["accuracy"])


def test_sixty_steps_bring_pictures_and_words_together(tmp_path):
    """Thirty-two rows, eight of each colour; told apart by colour alone, and by the colour's words."""
    table = paired.world(tmp_path / "world", count=8)
    data = paired.config(("image", "text"), path=str(table))
    samples, frontends = paired.opened(data, tmp_path)
    batches = pairs.batches(samples, data, frontends, 16, 0)
    torch.manual_seed(0)
    trunk = {"depth": 1, "dim": 32, "num_heads": 2, "mlp_dim": 64}
    encoder = D2vModel(D2vConfig(frontends, trunk))
    module = plugins.load("d2v.objectives.paired", "siglip")
    objective = module.build(encoder, module.Config(projection_dim=16)).train()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses: list[Tensor] = []
    start = np.mean([accuracy(objective, batches(step, 0, 1)[0]) for step in range(100, 104)])
    for step in range(60):
        objective.begin_step(step, 60)
        loss = objective(batches(step, 0, 1)[0])
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.detach() / loss.count)
    end = np.mean([accuracy(objective, batches(step, 0, 1)[0]) for step in range(100, 104)])
    assert end > 0.9 > 0.6 > start and losses[-1] < losses[0] / 3  # chance is a quarter
