"""Labelled batches.

Mixed images against a slow version, stated probabilities, parts of a batch, pairs of texts, held-out samples.
"""

import csv
import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from d2v.modalities.common import labels
from d2v.modalities.image import labelled as images
from d2v.modalities.image.frontend import FrontendConfig as ImageFrontend
from d2v.modalities.image.samples import Samples as ImageSamples
from d2v.modalities.text import labelled as texts
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.config import LabelledConfig as TextConfig
from d2v.modalities.text.frontend import FrontendConfig as TextFrontend
from d2v.modalities.text.samples import prepare_tokenizer

FRONTEND = ImageFrontend(image_size=8, patch_size=2, channels=1)
STILL = {
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
    "flip": 0.0,
    "color_jitter": 0.0,
    "mean": [0.3],
    "std": [0.38],
    "path": "demo",
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> labels.Opened:
    folder = tmp_path_factory.mktemp("images")
    return labels.open_splits(
        images.LabelledConfig(**STILL),
        0,
        lambda split: ImageSamples(images.LabelledConfig(**STILL), FRONTEND, split=split, folder=folder),
    )


def batches(opened: labels.Opened, batch_size: int = 8, **settings) -> images.LabelledBatches:
    data = images.LabelledConfig(**{**STILL, **settings})
    images.check_labelled(data, FRONTEND, batch_size)
    return images.LabelledBatches(opened, data, FRONTEND, batch_size=batch_size, seed=0, bad_log=lambda *_: None)


def test_mixup_and_cutmix_mix_images_and_labels_by_one_share(opened):
    plain = batches(opened)
    kinds = set()
    for settings in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}):
        mixing = batches(opened, **settings)
        for step in range(6):
            (clear,), ids = plain(step, 0, 1)
            (mixed,), same = mixing(step, 0, 1)
            assert ids == same
            x, other = clear.inputs["pixel_values"], clear.inputs["pixel_values"].flip(0)
            y, z = mixed.inputs["pixel_values"], mixed.labels
            smoothing = settings.get("label_smoothing", 0.0)
            target = torch.eye(10)[clear.labels] * (1 - smoothing) + smoothing / 10
            where = (target - target.flip(0)).abs() > 0.5
            share = float(((z - target.flip(0)) / (target - target.flip(0)))[where].mean()) if where.any() else 1.0
            torch.testing.assert_close(z, share * target + (1 - share) * target.flip(0), rtol=1e-4, atol=1e-5)
            boxed = (torch.isclose(y, x) | torch.isclose(y, other)).all()
            if boxed:
                kinds.add("cutmix")
                changed = (~torch.isclose(y, x)).any(dim=0).any(dim=0)
                assert changed.sum() <= round((1 - share) * changed.numel())
            else:
                kinds.add("mixup")
                torch.testing.assert_close(y, share * x + (1 - share) * other, rtol=1e-3, atol=1e-3)
    assert kinds == {"mixup", "cutmix"}


def test_mixing_and_erasing_happen_as_often_as_stated(opened):
    plain = batches(opened)
    for settings, wanted in (
        ({"mixup": 1.0, "mix_prob": 0.3}, 0.3),
        ({"random_erase": 0.4}, 0.4),
        ({"random_erase": 1.0}, 1.0),
    ):
        other, changed = batches(opened, **settings), []
        for step in range(30):
            (a,), (b,) = plain(step, 0, 1)[0], other(step, 0, 1)[0]
            rows = (a.inputs["pixel_values"] != b.inputs["pixel_values"]).flatten(1).any(dim=1)
            changed += [float(rows.any())] if "mixup" in settings else rows.float().tolist()
        assert abs(np.mean(changed) - wanted) <= 4 * (wanted * (1 - wanted) / len(changed)) ** 0.5


def test_parts_of_a_batch_are_those_of_the_whole(opened):
    for settings in (
        {},
        {"mixup": 0.8, "cutmix": 1.0},
        {"random_erase": 0.5, "label_smoothing": 0.1, "flip": 0.5, "crop_scale": [0.4, 1.0]},
    ):
        mixing = batches(opened, **settings)
        (whole,), ids = mixing(2, 0, 1)
        for parts in (2, 4, 8):
            for part in range(parts):
                (view,), names = mixing(2, part, parts)
                assert names == ids[part::parts]
                assert torch.equal(view.inputs["pixel_values"], whole.inputs["pixel_values"][part::parts])
                assert torch.equal(view.labels, whole.labels[part::parts])


def test_smoothed_labels_without_mixing(opened):
    (plain,), (smooth,) = batches(opened)(0, 0, 1)[0], batches(opened, label_smoothing=0.2)(0, 0, 1)[0]
    torch.testing.assert_close(smooth.labels, torch.eye(10)[plain.labels] * 0.8 + 0.02)
    assert torch.equal(smooth.inputs["pixel_values"], plain.inputs["pixel_values"])


def test_rand_augment_changes_images_and_an_unknown_one_is_refused(tmp_path):
    folder = tmp_path / "photos"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    frontend = ImageFrontend(image_size=16, patch_size=4)
    settings = {**STILL, "path": str(folder), "mean": [0.5], "std": [0.2]}

    def made(**more):
        data = images.LabelledConfig(**settings, **more)
        opened = labels.open_splits(data, 0, lambda split: ImageSamples(data, frontend, split=split, folder=tmp_path))
        return images.LabelledBatches(opened, data, frontend, batch_size=8, seed=0, bad_log=lambda *_: None)

    (plain,), _ = made()(0, 0, 1)
    (augmented,), _ = made(auto_augment="rand-m9-mstd0.5-inc1")(0, 0, 1)
    (again,), _ = made(auto_augment="rand-m9-mstd0.5-inc1")(0, 0, 1)
    assert torch.equal(augmented.inputs["pixel_values"], again.inputs["pixel_values"])
    assert (plain.inputs["pixel_values"] != augmented.inputs["pixel_values"]).flatten(1).any(dim=1).float().mean() > 0.5
    with pytest.raises(ValueError, match=r"data.auto_augment is 'rnad-m9'"):
        made(auto_augment="rnad-m9")


def test_what_is_held_out_is_never_trained_on(tmp_path):
    data = images.LabelledConfig(**STILL, validation_share=0.2)
    opened = labels.open_splits(data, 3, lambda split: ImageSamples(data, FRONTEND, split=split, folder=tmp_path))
    held = set(opened.splits["validation"].indices.tolist())
    assert (
        len(held) == round(0.2 * 1397)
        and not held & set(opened.indices.tolist())
        and len(held) + len(opened.indices) == 1397
    )
    made = images.LabelledBatches(opened, data, FRONTEND, batch_size=300, seed=0, bad_log=lambda *_: None)
    seen = {name for step in range(len(made.sampler)) for name in made(step, 0, 1)[1]}
    assert seen and not seen & {opened.train.ids[index] for index in held}


def test_a_slice_of_folders_that_lacks_a_class_is_told(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(np.full((8, 8), 20 * number, dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    given = {**STILL, "path": str(tmp_path), "validation_share": 0.0}
    data = images.LabelledConfig(**given, split="train[:80%]", test_split="train[80%:]")
    opened = labels.open_splits(data, 0, lambda split: ImageSamples(data, FRONTEND, split=split, folder=tmp_path))
    assert any(note.startswith("CAREFUL: data.test_split 'train[80%:]' holds 1 of 2 classes") for note in opened.notes)


class Columns:
    """Samples of which only the columns are asked for."""

    def __init__(self, classes: list[str] | None, **columns):
        self.classes, self.columns = classes, columns

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self.columns[name])


def test_classes_are_matched_by_name():
    names, codes = labels.learn(Columns(["cat", "dog"], y=[1, 0, 1]), "y", numbers=False)
    assert names == ["cat", "dog"] and codes.tolist() == [1, 0, 1]
    assert labels.encode(Columns(["dog", "cat"], y=[1, 0]), "y", names, "test").tolist() == [
        0,
        1,
    ]  # another order in another file
    assert labels.encode(Columns(["cat"], y=["cat"]), "y", names, "test").tolist() == [0]
    names, codes = labels.learn(Columns(None, y=[10, 2, 2, 10]), "y", numbers=False)
    assert names == ["2", "10"] and codes.tolist() == [1, 0, 0, 1]
    assert labels.encode(Columns(["cat", "dog"], y=[0, -1]), "y", ["cat", "dog"], "test").tolist() == [0, -1]  # none
    with pytest.raises(ValueError, match=r"data.label 'y' of split 'test' holds '7', unseen in training"):
        labels.encode(Columns(["cat", "dog"], y=[0, 7]), "y", ["cat", "dog"], "test")
    with pytest.raises(ValueError, match="'3', '4', unseen"):
        labels.encode(Columns(None, y=[2, 4, 3]), "y", names, "test")


def test_pairs_are_joined_and_the_longer_text_is_cut_first(tmp_path):
    rows = [("a b c d e f g h", "x y", 0), ("a", "", 1), ("q", "r", 1), ("a b c", "x y z v w u t", 0)]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("one", "two", "label"), *rows])
    data = TextConfig(path=str(tmp_path), text="one", text_pair="two", vocab_size=300, block_size=12, max_bad_share=0.5)
    frontend = TextFrontend(max_positions=32)
    prepare_tokenizer(data, frontend, tmp_path)
    samples = texts.LabelledSamples(data, frontend, split="train", folder=tmp_path)
    assert samples.ids == ["train:0", "train:2", "train:3"] and samples.column("label").tolist() == ["0", "1", "0"]
    assert (
        samples.report.found == 4 and samples.report.unreadable + samples.report.too_short
    )  # the row without a second text
    sizes = [len(x) for one, two, _ in rows for x in tokenizers.encode(tokenizers.read(tmp_path), [one, two])]
    whole = [sizes[place] + sizes[place + 1] + 4 for place in (0, 4, 6)]
    assert samples.report.usable == 3 and samples.report.classes == {"0": 2, "1": 1}
    said = (
        f"typical text: {int(np.median(whole))} tokens, up to 12 are read at once; {sum(x > 12 for x in whole)} texts"
    )
    assert samples.report.sizes.startswith(said)
    tokenizer = tokenizers.read(tmp_path)
    for index, (one, two, _) in enumerate((rows[0], rows[2], rows[3])):
        first, second = tokenizers.encode(tokenizer, [one, two])
        while len(first) + len(second) > 8:
            (first if len(first) >= len(second) else second).pop()
        row = samples.view([index]).inputs["input_ids"][0].tolist()
        assert row == [0, *first, 2, 2, *second, 2] and len(row) == samples.lengths[index]
    assert tokenizer("q", "r")["input_ids"] == samples.view([1]).inputs["input_ids"][0].tolist()


def test_texts_are_cut_as_token_by_token():
    def slow(sizes: list[int], limit: int) -> list[int]:
        sizes = [*sizes]
        while sum(sizes) > limit:
            sizes[int(np.argmax(sizes))] -= 1
        return sizes

    for one, two, limit in itertools.product(range(9), range(9), range(9)):
        assert texts.cut_sizes([one], limit) == slow([one], limit)
        assert texts.cut_sizes([one, two], limit) == slow([one, two], limit)


def test_folders_of_texts_are_classes_to_learn(tmp_path):
    for number in range(8):
        file = tmp_path / ("pos" if number % 2 else "neg") / f"{number}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"Film {number}.\nSeen twice.")
    data = TextConfig(path=str(tmp_path), vocab_size=300, block_size=32)
    frontend = TextFrontend(max_positions=32)
    prepare_tokenizer(data, frontend, tmp_path / "run")
    opened = labels.open_splits(
        data, 0, lambda split: texts.LabelledSamples(data, frontend, split=split, folder=tmp_path / "run")
    )
    assert opened.names == ["neg", "pos"] and opened.train.ids[4] == "pos/1.txt"
    assert opened.labels.tolist() == [0] * 4 + [1] * 4


def test_batches_of_text_hold_labels_and_parts(tmp_path):
    Dataset.from_dict(
        {"text": [f"word {n} " * (1 + n % 5) for n in range(32)], "label": [n % 3 for n in range(32)]}
    ).to_csv(tmp_path / "train.csv")
    data = TextConfig(path=str(tmp_path), vocab_size=300, block_size=32)
    frontend = TextFrontend(max_positions=32)
    prepare_tokenizer(data, frontend, tmp_path)
    opened = labels.open_splits(
        data, 0, lambda split: texts.LabelledSamples(data, frontend, split=split, folder=tmp_path)
    )
    made = texts.LabelledBatches(opened, 8, 0)
    (whole,), ids = made(1, 0, 1)
    assert whole.labels.tolist() == [int(name.partition(":")[2]) % 3 for name in ids]
    for part in range(2):
        (view,), names = made(1, part, 2)
        assert names == ids[part::2] and torch.equal(view.labels, whole.labels[part::2])
        assert torch.equal(view.inputs["input_ids"], whole.inputs["input_ids"][part::2])
