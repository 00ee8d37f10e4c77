"""Labels as users have them: of other order in another file, missing, lists; pretraining needs none."""

import datasets
import numpy as np
import pytest
from PIL import Image

from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.splits import label_splits, labelled_data
from d2v.modalities import image, text
from d2v.modalities.common import labels
from d2v.modalities.image.labelled import LabelledConfig
from d2v.modalities.text.config import LabelledConfig as LabelledTextConfig
from d2v.modalities.text.labelled import LabelledSamples
from d2v.modalities.text.samples import prepare_tokenizer
from d2v.training.health import HealthCheck

FRONTEND = image.FrontendConfig(image_size=8, patch_size=4)
ODD = {
    "lists": ([[1, 2], [3], [], [1], [2], [3]], datasets.List(datasets.Value("int64"))),
    "equal lists": ([[1, 2]] * 6, datasets.List(datasets.Value("int64"))),
    "structs": ([{"a": n} for n in range(6)], {"a": datasets.Value("int64")}),
    "null": ([None] * 6, datasets.Value("null")),
    "some null": (["x", None, "y", "x", None, "y"], datasets.Value("string")),
    "no label": ([0, 1, -1, -1, 1, 0], datasets.ClassLabel(names=["cat", "dog"])),
    "all -1": ([-1] * 6, datasets.ClassLabel(names=["cat", "dog"])),
    "numbers": ([0, 1, -1, -1, 1, 0], datasets.Value("int64")),
    "fractions": ([0.5, 1.25, 2.0, 3.5, 0.5, 1.0], datasets.Value("float64")),
    "with a gap": ([0.0, 1.0, None, 1.0, 0.0, None], datasets.Value("float64")),
    "empty": (["x", "", " ", "x", "y", "y"], datasets.Value("string")),
}
COUNTS = {
    "some null": ({"x": 2, "y": 2}, 2),
    "no label": ({"cat": 2, "dog": 2}, 2),
    "numbers": ({"0": 2, "1": 2}, 2),
    "with a gap": ({"0": 2, "1": 2}, 2),
    "empty": ({"x": 2, "y": 2}, 2),
    "null": (None, 6),
    "all -1": (None, 6),
}
NO_CLASSES = {
    "lists": "'label' holds lists such as [1, 2]; a class is a string or an integer",
    "equal lists": "'label' holds lists such as [1, 2]; a class is a string or an integer",
    "structs": "'label' holds structs such as {'a': 0}; a class is a string or an integer",
    "fractions": "'label' holds fractions such as 0.5",
}


def pictures(folder, name: str, cells: list, feature, column: str = "label"):
    """A table of images with labels, folder/<name>.parquet."""
    files = []
    for number in range(len(cells)):
        files.append(str(folder / f"{name}_{number}.image"))
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files[-1], "png")
    features = datasets.Features({"file": datasets.Value("string"), column: feature})
    datasets.Dataset.from_dict({"file": files, column: cells}, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


def opened(folder, split: str = "train", **settings) -> image.Samples:
    data = image.DataConfig(path=str(folder), **settings)
    return image.Samples(data, FRONTEND, split=split, folder=folder)


@pytest.mark.parametrize("kind", ODD)
def test_no_label_stops_pretraining(tmp_path, kind):
    samples = opened(pictures(tmp_path, "train", *ODD[kind]))
    assert len(samples) == 6
    counts, without = COUNTS.get(kind, (None, 0))
    assert samples.report.classes == counts
    notes = [note for note in samples.report.notes if "data.label" in note]
    if kind in NO_CLASSES:
        assert notes == [f"classes are not counted: data.label {NO_CLASSES[kind]}"]
    else:
        assert notes == [f"without a class: {without} of 6 samples (data.label 'label')"]
    check = HealthCheck(samples, limit=6, label="label", group="")
    assert check.labels is None
    assert image.batches(samples, image.DataConfig(path=str(tmp_path)), FRONTEND, 2, 0)(0, 0, 1)[1]


@pytest.mark.parametrize("kind", ODD)
def test_no_label_stops_pretraining_on_text(tmp_path, kind):
    cells, feature = ODD[kind]
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    rows = {"text": [f"a sentence of number {n}" for n in range(6)], "label": cells}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    data, frontend = text.DataConfig(path=str(tmp_path), vocab_size=300, block_size=32), text.FrontendConfig()
    text.prepare(data, frontend, tmp_path / "run", seed=0)
    samples = text.Samples(data, frontend, split="train", folder=tmp_path / "run")
    assert len(samples) == 6 and samples.report.classes == COUNTS.get(kind, (None, 0))[0]


# Evaluation.


def splits_of(folder, **settings):
    config = EvaluateConfig(**settings)
    data = labelled_data(image.DataConfig(path=str(folder)), str(folder), config.label)
    train, test = (image.Samples(data, FRONTEND, split=split, folder=folder) for split in ("train", "test"))
    return label_splits(train, test, config)


TRAIN = ([0, 1, 0, 1, 1, 0], datasets.ClassLabel(names=["cat", "dog"]))  # cat, dog, cat, dog, dog, cat


@pytest.mark.parametrize("column", ["label", "animal"])
@pytest.mark.parametrize(
    ("cells", "feature"),
    [
        ([0, 1, 0, 1], datasets.ClassLabel(names=["dog", "cat"])),  # another order in another file
        (["dog", "cat", "dog", "cat"], datasets.Value("string")),
        ([1, 2, 1, 2], datasets.ClassLabel(names=["ant", "dog", "cat"])),
    ],
)
def test_evaluation_compares_names_of_classes(tmp_path, cells, feature, column):
    pictures(tmp_path, "train", *TRAIN, column)
    pictures(tmp_path, "test", cells, feature, column)
    train, test = splits_of(tmp_path, label=column)
    assert train.labels.tolist() == [0, 1, 0, 1, 1, 0] and test.labels.tolist() == [1, 0, 1, 0]  # dog, cat, dog, cat


@pytest.mark.parametrize("other", [[0.0, 1.0, None], ["0", "1", ""], [0, 1, -1]])
def test_numbers_of_classes_are_names_in_any_type(tmp_path, other):
    pictures(tmp_path, "train", [1, 0, 10, 2], datasets.Value("int64"))
    kind = {float: "float64", str: "string", int: "int64"}[type(other[0])]
    pictures(tmp_path, "test", other, datasets.Value(kind))
    train, test = splits_of(tmp_path)
    assert train.labels.tolist() == [1, 0, 3, 2] and test.labels.tolist() == [0, 1] and test.indices.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind in COUNTS])
def test_evaluation_leaves_out_what_has_no_label(tmp_path, kind):
    pictures(tmp_path, "train", *ODD[kind])
    pictures(tmp_path, "test", *ODD[kind])
    if COUNTS[kind][0] is None:
        message = r"evaluate\.label='label': none of the 6 samples of split 'train' has a label \(empty, null or -1\)"
        with pytest.raises(ValueError, match=message):
            splits_of(tmp_path)
        return
    train, test = splits_of(tmp_path)
    expected = [row for row, cell in enumerate(ODD[kind][0]) if cell not in (None, -1, "", " ")]
    assert train.indices.tolist() == test.indices.tolist() == expected and set(train.labels) == {0, 1}
    gone = [f"train_{row}.image" for row in range(6) if row not in expected]
    assert train.notes == [
        f"evaluate.label='label': 2 of 6 samples of split 'train' have none and are left out: {', '.join(gone)}"
    ]
    few, _ = splits_of(tmp_path, max_train=3)
    assert len(few.indices) == 3 and set(few.indices) <= set(expected)


@pytest.mark.parametrize("kind", NO_CLASSES)
def test_evaluation_says_what_is_wrong_with_a_label(tmp_path, kind):
    pictures(tmp_path, "train", *ODD[kind])
    pictures(tmp_path, "test", *ODD[kind])
    with pytest.raises(ValueError) as caught:
        splits_of(tmp_path)
    assert str(caught.value) == f"evaluate.label='label', split 'train': {NO_CLASSES[kind]}"


def test_minus_one_beside_one_is_a_class(tmp_path):
    pictures(tmp_path, "train", [-1, 1, -1, 1], datasets.Value("int64"))
    pictures(tmp_path, "test", [1, -1], datasets.Value("int64"))
    train, test = splits_of(tmp_path)
    assert train.labels.tolist() == [0, 1, 0, 1] and test.labels.tolist() == [1, 0]


def test_a_group_that_is_not_whole_is_refused(tmp_path):
    pictures(tmp_path, "train", *TRAIN)
    table = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"))
    table.add_column("speaker", ["a", "b", None, "a", "b", "a"]).to_parquet(tmp_path / "train.parquet")
    config = EvaluateConfig(group="speaker", test_split="")
    with pytest.raises(
        ValueError, match=r"evaluate\.group is 'speaker': 1 of 6 samples have no 'speaker', .* train_2\.image;"
    ):
        label_splits(opened(tmp_path), None, config)


# Fine-tuning.


def learned(folder, seed: int = 0, **settings) -> labels.Opened:
    data = LabelledConfig(path=str(folder), **settings)
    return labels.open_splits(data, seed, lambda split: image.Samples(data, FRONTEND, split=split, folder=folder))


def test_fine_tuning_compares_names_and_leaves_out_what_has_no_label(tmp_path):
    pictures(tmp_path, "train", [0, 1, -1, 1, 1, 0], datasets.ClassLabel(names=["cat", "dog"]))
    pictures(tmp_path, "test", [0, 1, -1, None], datasets.ClassLabel(names=["dog", "cat"]))
    made = learned(tmp_path, test_split="test")
    assert made.names == ["cat", "dog"] and made.indices.tolist() == [0, 1, 3, 4, 5]
    assert [made.labels[index] for index in made.indices] == [0, 1, 1, 1, 0]
    assert made.splits["test"].indices.tolist() == [0, 1] and list(made.splits["test"].labels) == [1, 0]
    assert made.notes == [
        "splits: train is trained on; test is scored at the end",
        "data.label 'label': 1 of 6 samples of the train split have none and are left out: train_2.image",
        "data.label 'label': 2 of 4 samples of the test split have none and are left out: test_2.image, test_3.image",
    ]


def test_a_class_that_is_held_out_whole_is_told(tmp_path):
    pictures(tmp_path, "train", [0, 1, 2, *[0, 1] * 10], datasets.ClassLabel(names=["cat", "dog", "owl"]))
    said = [learned(tmp_path, validation_share=0.4, seed=seed) for seed in range(6)]
    for made in said:
        alone = 2 not in [made.labels[index] for index in made.indices]
        line = "CAREFUL: data.validation_share holds out all samples of 'owl': nothing is learnt of them"
        assert (line in made.notes) == alone
    assert 0 < sum("CAREFUL" in " ".join(made.notes) for made in said) < 6


def test_a_class_that_is_declared_and_of_the_test_split_alone_is_refused(tmp_path):
    declared = datasets.ClassLabel(names=["cat", "dog", "owl"])
    pictures(tmp_path, "train", [0, 1, 0, 1], declared)
    pictures(tmp_path, "test", [0, 2], declared)
    with pytest.raises(ValueError, match=r"of split 'test' holds 'owl', unseen in training; its classes are cat, dog$"):
        learned(tmp_path, test_split="test")
    assert learned(tmp_path, validation_share=0.25).names == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"validation_split": "train"}, "data.validation_split 'train' holds samples that are trained on"),
        ({"test_split": "train[2:]"}, "data.test_split 'train[2:]' holds samples that are trained on"),
        ({"validation_split": "test", "test_split": "test[:1]"}, "'test[:1]' holds samples that choose the best model"),
        ({"test_split": "test"}, ""),
        ({"split": "train[:4]", "test_split": "train[4:]"}, ""),
    ],
)
def test_scores_of_samples_that_were_learnt_from_are_said_to_be(tmp_path, splits, said):
    pictures(tmp_path, "train", [0, 1, 0, 1, 1, 0], datasets.Value("int64"))
    pictures(tmp_path, "test", [0, 1], datasets.Value("int64"))
    note = learned(tmp_path, **splits).notes[0]
    assert said in note and ("CAREFUL: data." in note) == bool(said)


@pytest.mark.parametrize("kind", ["null", "all -1", *NO_CLASSES])
def test_fine_tuning_says_what_is_wrong_with_a_label(tmp_path, kind):
    message = NO_CLASSES.get(kind, "none of the 6 samples of the train split has a label (empty, null or -1)")
    with pytest.raises(ValueError) as caught:
        learned(pictures(tmp_path, "train", *ODD[kind]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_to_be_learned_may_have_gaps_and_be_minus_one(tmp_path):
    pictures(tmp_path, "train", [0.5, None, -1.0, 2.0], datasets.Value("float64"))
    made = learned(tmp_path, regression=True)
    assert made.indices.tolist() == [0, 2, 3] and made.labels[made.indices].tolist() == [0.5, -1.0, 2.0]
    pictures(tmp_path, "train", [[1.0], [2.0]], datasets.List(datasets.Value("float64")))
    with pytest.raises(ValueError, match=r"does not hold numbers, as data\.regression=true needs: \[1\.0\]"):
        learned(tmp_path, regression=True)


def test_a_decimal_comma_is_told(tmp_path):
    pictures(tmp_path, "train.parquet", ["0,5", "1,25", "3", "4"], datasets.Value("string"))
    with pytest.raises(
        ValueError, match=r"does not hold numbers.*: '0,5'; write a point for a decimal comma, and nothing for"
    ):
        learned(tmp_path, regression=True)


def test_labelled_texts_without_a_label_are_left_out(tmp_path):
    lines = [f"a sentence of {n},{'' if n % 5 == 0 else 'yes' if n % 2 else 'no'}" for n in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines]))
    data, frontend = LabelledTextConfig(path=str(tmp_path), vocab_size=300, block_size=32), text.FrontendConfig()
    prepare_tokenizer(data, frontend, tmp_path / "run")
    made = labels.open_splits(
        data, 0, lambda split: LabelledSamples(data, frontend, split=split, folder=tmp_path / "run")
    )
    assert made.names == ["no", "yes"] and made.indices.tolist() == [n for n in range(20) if n % 5]
