"""k-NN, probes and pooling against slow oracles; the evaluation can fail; the script from a folder to a table."""

import itertools
import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from d2v.evaluation.classifiers import Probe, knn, linear_probe, probe_other_groups, zscore
from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.features import pooled_features
from d2v.evaluation.scoring import evaluate_encoder, evaluate_features, evaluate_raw
from d2v.evaluation.splits import EvaluationSplit, label_splits
from d2v.evaluation.table import Row, average, markdown_table
from d2v.types import Features, View
from scripts import evaluate as script


class TinyEncoder(nn.Module):
    """Two blocks over frames; each adds its number, so that layers differ by known amounts."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.dropout = nn.Dropout(0.5)

    def embed(self, view):
        return self.linear(view.inputs["input_values"])

    def forward(self, view, *, tokens, layers):
        assert not self.training
        ends = [self.dropout(tokens) + 1, self.dropout(tokens) + 3]
        return Features(2 * ends[-1], ends if layers == "block" else [])


class TinySamples:
    """Clips of 3 to 6 frames of 3 numbers.

    Label and speaker shift the mean; the padding of a batch is filled with nan.
    """

    raw_name = "mean frame"
    classes = None

    def __init__(self, count: int, seed: int, labels: int = 3, speakers: int = 4, signal: float = 4.0):
        generator = np.random.default_rng(seed)
        self.labels, self.speakers = np.arange(count) % labels, np.arange(count) // labels % speakers
        self.lengths = generator.integers(3, 7, count)
        centres = signal * np.eye(3)[self.labels % 3]
        self.clips = [c + generator.normal(size=(n, 3)) for c, n in zip(centres, self.lengths, strict=True)]
        self.batches: list[list[int]] = []

    def __len__(self):
        return len(self.clips)

    def column(self, name):
        columns = {
            "label": np.array(["zero", "one", "two", "three"])[self.labels],
            "speaker": self.speakers,
            "constant": np.zeros(len(self)),
        }
        return columns[name]

    def view(self, indices):
        lengths = self.lengths[indices]
        self.batches.append(list(lengths))
        values = torch.full((len(indices), max(lengths), 3), torch.nan)
        for row, i in enumerate(indices):
            values[row, : self.lengths[i]] = torch.tensor(self.clips[i])
        return View("tiny", {"input_values": values}, torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1))

    def raw(self, indices):
        return np.stack([self.clips[i].mean(axis=0) for i in indices])


def split(samples: TinySamples) -> EvaluationSplit:
    return EvaluationSplit(samples, np.arange(len(samples)), samples.labels, samples.speakers)


def test_pooled_features_are_the_loop_in_the_order_of_the_samples():
    samples, encoder = TinySamples(11, seed=0), TinyEncoder()
    indices = np.array([7, 0, 3, 10, 2])
    got = pooled_features(encoder, samples, 2, indices=indices)
    local = (
        torch.stack([encoder.linear(torch.tensor(samples.clips[i]).float()).mean(dim=0) for i in indices])
        .detach()
        .numpy()
    )
    expected = {"local": local, "1": local + 1, "2": local + 3, "last": 2 * (local + 3)}
    assert list(got) == list(expected)
    for name, features in expected.items():
        np.testing.assert_allclose(got[name], features, rtol=1e-4, atol=1e-5)
    assert samples.batches == sorted(samples.batches) and len(samples.batches) == 3  # similar lengths together
    assert encoder.training  # as it was before


def test_one_layer_only_and_a_layer_that_does_not_exist():
    assert list(pooled_features(TinyEncoder(), TinySamples(4, seed=0), 2, layer="2")) == ["2"]
    with pytest.raises(ValueError, match=r"evaluate.layer is '3'; this encoder has local, 1, 2, last"):
        pooled_features(TinyEncoder(), TinySamples(4, seed=0), 2, layer="3")


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (7, 5.0), (500, 0.07)])
def test_knn_is_the_loop(k, temperature):
    generator = np.random.default_rng(1)
    labels, test_labels = generator.integers(0, 4, 80), generator.integers(0, 4, 40)
    train, test = (
        generator.normal(size=(80, 6)) + np.eye(6)[labels],
        generator.normal(size=(40, 6)) + np.eye(6)[test_labels],
    )
    right = 0
    for x, label in zip(test, test_labels, strict=True):
        cosines = [float(x @ t / np.linalg.norm(x) / np.linalg.norm(t)) for t in train]
        scores = np.zeros(4)
        for i in np.argsort(cosines)[::-1][:k]:
            scores[labels[i]] += np.exp(cosines[i] / temperature)
        right += scores.argmax() == label
    assert knn(train, labels, test, test_labels, k, temperature) == pytest.approx(right / 40)


def problem(n: int, seed: int, correlated: bool):
    """Overlapping classes; correlated features make the covariance ill-conditioned."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, n)
    x = generator.normal(size=(n, 20)) + 1.2 * np.eye(20)[labels]
    if correlated:
        x = x @ (np.ones((20, 20)) + 0.2 * np.random.default_rng(9).normal(size=(20, 20)))
    return 3 * x.astype(np.float32) + 50, labels


@pytest.mark.parametrize("correlated", [False, True])
def test_probe_is_as_good_as_sklearns_logistic_regression(correlated):
    (train, labels), (test, test_labels) = problem(1500, 0, correlated), problem(1500, 1, correlated)
    got, lr = linear_probe(train, labels, test, test_labels, Probe([0.001, 0.01, 0.1]))
    x, test_x = zscore(train, test)
    reference = LogisticRegression(C=1.0, max_iter=2000).fit(x, labels).score(test_x, test_labels)
    assert reference > 0.4
    assert got == pytest.approx(reference, abs=0.025) and lr in (0.001, 0.01, 0.1)


def test_probe_leaves_the_choice_to_the_holdout_and_never_to_the_test_set():
    train, labels = problem(600, 0, False)
    test, test_labels = problem(300, 1, False)
    chosen = {
        linear_probe(train, labels, test, wrong, Probe([1e-6, 0.01], steps=50))[1]
        for wrong in (test_labels, (test_labels + 1) % 5)
    }
    assert chosen == {0.01}


def test_columns_that_are_constant_in_training_change_nothing():
    (train, labels), (test, test_labels) = problem(600, 0, False), problem(300, 1, False)
    wide, wide_test = (
        np.concatenate([np.full((len(x), 3), 2.0, np.float32), x, np.zeros((len(x), 2), np.float32)], axis=1)
        for x in (train, test)
    )
    wide_test[:, 0] = 9.0
    expected = linear_probe(train, labels, test, test_labels, Probe([0.01]))
    assert linear_probe(wide, labels, wide_test, test_labels, Probe([0.01])) == expected
    assert (
        linear_probe(wide[:, :3], labels, wide_test[:, :3], test_labels, Probe([0.01]))[0] <= 0.4
    )  # nothing but the classes' shares


def test_probe_is_deterministic_and_at_chance_without_signal():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(800, 10)).astype(np.float32), generator.integers(0, 4, 800)
    scores = [linear_probe(x[:400], y[:400], x[400:], y[400:], Probe([0.01], steps=100))[0] for _ in range(2)]
    assert scores[0] == scores[1] and scores[0] < 0.33


def test_probe_of_other_groups_does_not_see_the_group():
    """The label is written on each group in another place: within groups trivial, across groups impossible."""
    generator = np.random.default_rng(0)
    groups, labels = np.arange(300) % 3, generator.integers(0, 2, 300)
    x = np.zeros((300, 3), dtype=np.float32)
    x[np.arange(300), groups] = 2 * labels - 1
    assert linear_probe(x, labels, x, labels, Probe([0.1], steps=50))[0] == 1
    assert probe_other_groups(x, labels, groups, Probe([0.1], steps=50)) < 0.7


def test_zscore_uses_the_first_arrays_statistics_and_survives_constants():
    train, test = np.random.default_rng(0).normal(3, 5, (50, 4)), np.ones((2, 4))
    train[:, 1] = 7.0
    a, b = zscore(train, test)
    np.testing.assert_allclose(a[:, [0, 2, 3]].std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(b[:, 0], (1 - train[:, 0].mean()) / train[:, 0].std(), rtol=1e-5)
    assert not a[:, 1].any() and not b[:, 1].any()


def test_label_splits_number_the_classes_of_train():
    train, test = label_splits(
        TinySamples(30, seed=0), TinySamples(12, seed=1), EvaluateConfig(group="speaker", max_train=20, max_test=5)
    )
    assert test is not None and test.groups is None
    assert (len(train.labels), len(train.groups), len(test.labels)) == (20, 20, 5)
    names = np.array(["one", "two", "zero"])  # sorted
    assert (names[train.labels] == train.samples.column("label")[train.indices]).all()
    assert (names[test.labels] == test.samples.column("label")[test.indices]).all()


@pytest.mark.parametrize(
    ("settings", "test_labels", "message"),
    [
        ({"label": "constant"}, 3, r"evaluate.label='constant' has one value"),
        ({"group": "constant"}, 3, r"evaluate.group='constant' has one value"),
        (
            {"test_split": "test"},
            4,
            r"1 classes of split 'test' are not in 'train' \(three\); check evaluate.train_split",
        ),
        ({"max_train": 8}, 4, r"are not in 'train' .*; raise evaluate.max_train"),
    ],
)
def test_label_splits_refuse_what_cannot_be_scored(settings, test_labels, message):
    with pytest.raises(ValueError, match=message):
        label_splits(TinySamples(30, seed=0), TinySamples(12, seed=1, labels=test_labels), EvaluateConfig(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"k": []},
        {"k": [0]},
        {"temperature": 0.0},
        {"layer": "best"},
        {"layer": "-1"},
        {"probe_holdout": 1.0},
        {"probe_lrs": []},
        {"batch_size": 0},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=rf"evaluate.{next(iter(settings))} is "):
        EvaluateConfig(**settings)


def test_the_class_token_may_be_asked_for():
    assert EvaluateConfig(layer="class").layer == "class"


def test_rows_of_an_encoder_and_of_the_raw_input():
    config = EvaluateConfig(layer="all", k=[5, 20], group="speaker", probe_steps=50, batch_size=16)
    train, test = label_splits(TinySamples(120, seed=0), TinySamples(60, seed=1), config)
    rows = [*evaluate_encoder("tiny", TinyEncoder(), train, test, config), evaluate_raw(train, test, config)]
    assert [(r.model, r.layer, r.dim) for r in rows] == [
        *[("tiny", n, 8) for n in ("local", "1", "2", "last")],
        ("mean frame", "raw", 3),
    ]
    names = ["k-NN 5", "k-NN 20", "linear", "k-NN 5, other speaker", "k-NN 20, other speaker", "linear, other speaker"]
    for row in rows:
        assert list(row.scores) == names
        assert all(90 < score <= 100 for score in row.scores.values())


def test_the_evaluation_can_fail():
    config = EvaluateConfig(probe_steps=50)
    train, test = label_splits(TinySamples(300, seed=0, signal=0.0), TinySamples(300, seed=1, signal=0.0), config)
    (row,) = evaluate_encoder("tiny", TinyEncoder(), train, test, config)
    assert all(23 < score < 44 for score in row.scores.values())  # chance is 33, four standard errors are 11


def test_without_a_test_split_scores_are_within_train():
    config = EvaluateConfig(test_split="", probe_steps=50)
    train, test = label_splits(TinySamples(60, seed=0), None, config)
    (row,) = evaluate_encoder("tiny", TinyEncoder(), train, test, config)
    assert list(row.scores) == ["k-NN 20, leave one out", "linear, 10 folds"] and min(row.scores.values()) > 90


def test_neighbours_within_train_are_those_of_features_as_they_are():
    """A class is a direction, whatever the length.

    What is centred first, or scaled by `zscore`, has other neighbours.
    """
    lengths = np.random.default_rng(0).uniform(1, 20, 200)
    labels = np.arange(200) % 10
    angles = labels / 10
    x = (lengths * np.stack([np.cos(angles), np.sin(angles)])).T.astype(np.float32)
    alone = EvaluationSplit(TinySamples(0, seed=0), np.arange(200), labels, None)
    scores = {
        zscore: evaluate_features(x, None, alone, None, EvaluateConfig(k=[5], probe=False, zscore=zscore))
        for zscore in (False, True)
    }
    assert scores[False] == {"k-NN 5, leave one out": 100.0}
    assert scores[True]["k-NN 5, leave one out"] < 60


def test_a_last_layer_that_repeats_the_last_block_is_shown_once():
    class NoFinalNorm(TinyEncoder):
        def forward(self, view, *, tokens, layers):
            return Features(tokens + 2, [tokens + 1, tokens + 2])

    config = EvaluateConfig(layer="all", probe=False)
    samples = TinySamples(30, seed=0)
    assert [row.layer for row in evaluate_encoder("tiny", NoFinalNorm(), split(samples), split(samples), config)] == [
        "local",
        "1",
        "2",
    ]


def test_average_and_table():
    rows = average("random init", [[Row("a", "last", 8, {"k-NN 20": 40.0})], [Row("b", "last", 8, {"k-NN 20": 44.0})]])
    assert rows == [Row("random init", "last", 8, {"k-NN 20": 42.0}, {"k-NN 20": pytest.approx(8**0.5)})]
    lines = markdown_table([*rows, Row("mine", "last", 8, {"k-NN 20": 62.25, "linear": 70.0})]).splitlines()
    assert lines[0].split() == ["|", "features", "|", "layer", "|", "dim", "|", "k-NN", "20", "|", "linear", "|"]
    assert lines[2].split() == ["|", "random", "init", "|", "last", "|", "8", "|", "42.0", "±2.8", "|", "-", "|"]
    assert lines[3].split() == ["|", "mine", "|", "last", "|", "8", "|", "62.2", "|", "70.0", "|"]
    assert len({len(line) for line in lines}) == 1


# The script


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Light and dark pictures in train/ and test/ folders, a config that reads them, and a model of that config."""
    from PIL import Image

    from d2v.config.loading import load_config
    from d2v.models.configuration import D2vConfig
    from d2v.models.encoder import D2vModel

    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 6)):
        for label, low in (("dark", 0), ("light", 155)):
            (folder / "data" / name / label).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / name / label / f"{i}.png")
    frontend = "{image: {image_size: 16, patch_size: 4}}"
    trunk = "{depth: 2, dim: 32, num_heads: 2, mlp_dim: 64}"
    (folder / "tiny.yaml").write_text(
        f"model: {{frontends: {frontend}, trunk: {trunk}}}\ndata: {{path: {folder}/data}}\nrun: {{dir: {folder}/run}}\n"
        "evaluate: {random_seeds: 2, probe_steps: 50, batch_size: 8}\n"
    )
    config = load_config(folder / "tiny.yaml")
    model = D2vModel(D2vConfig(config.model.frontends, config.model.trunk))
    model.save_pretrained(folder / "run" / "export")
    return SimpleNamespace(folder=folder, config=str(folder / "tiny.yaml"), model=str(folder / "run" / "export"))


@pytest.fixture
def evaluate(root, monkeypatch, capsys):
    """Runs the script on arguments: its exit code, what it printed and what it printed to stderr."""
    monkeypatch.chdir(root)

    def run(*argv: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
        code = 0
        try:
            runpy.run_path("scripts/evaluate.py", run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


def test_script_prints_and_writes_every_row(evaluate, photos):
    result = evaluate(photos.config, f"model={photos.model}", "evaluate.layer=all")
    assert result.code == 0, result.err
    path = photos.folder / "run" / "evaluation" / "export_layer-all.json"
    written = json.loads(path.read_text())
    rows = written["rows"]
    models = [row["model"] for row in rows]
    assert models.count(photos.model) == models.count("random init (2 seeds)") == len(models) // 2  # and the raw input
    assert (written["train_samples"], written["test_samples"]) == (24, 12)
    assert all(row["scores"]["k-NN 20"] >= 50 for row in rows)
    assert f"written to {path}" in result.out and "±" in result.out
    assert sum(line.startswith("| ") for line in result.out.splitlines()) == len(rows) + 1


def test_script_writes_to_a_run_folder_that_is_given(evaluate, photos, tmp_path):
    arguments = [f"run.dir={tmp_path}/other", "evaluate.random_seeds=0", "evaluate.raw=false", "evaluate.probe=false"]
    result = evaluate(photos.config, f"model={photos.model},{photos.model}", *arguments)
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "other" / "evaluation" / "export_layer-last.json").read_text())
    assert [row["model"] for row in written["rows"]] == [photos.model] * 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=", "usage: d2v evaluate CONFIG model=PATH"),
        ("model=nowhere/export", "nowhere/export is no folder of a model that can be read, nor to be had from the Hub"),
        ("model=scripts", "no folder with a config.json"),
        ("model={model} evaluate.layer=7", "evaluate.layer is '7'; this encoder has local, 1, 2, last"),
        ("model={model} evaluate.label=speaker", "speaker"),
        ("model={model} evaluate.train_split=night", "night"),
        ("model={model} evaluate.lable=x", "did you mean 'label'"),
        ("model={other}", "reads text, but the config is for image"),
        ("model={other}/foreign", "bert"),
    ],
)
def test_script_says_what_is_wrong_in_one_line(evaluate, photos, tmp_path, argument, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "d2v", "frontends": {"text": {}}, "trunk": {}}))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    result = evaluate(photos.config, *argument.format(model=photos.model, other=tmp_path).split())
    assert result.code == 2, result
    assert result.err.splitlines()[-1].startswith("error: ") and message in result.err.splitlines()[-1]


def test_script_makes_reports_and_overwrites_nothing(evaluate, photos, tmp_path):
    folder = tmp_path / "run" / "evaluation"
    quick = [
        "evaluate.random_seeds=1",
        "evaluate.raw=false",
        "evaluate.pictures=2",
        "evaluate.k=[3]",
        f"run.dir={tmp_path}/run",
    ]
    command = [photos.config, f"model={photos.model},{photos.model}", *quick, "evaluate.reports=[knn_sweep,attention]"]
    result = evaluate(*command)
    assert result.code == 0, result.err
    assert "k-NN of random init: " in result.out and "attention of the class token" in result.out
    name = "export_layer-last_knn_sweep_attention"
    pictures = ["2/attention.png", "2/knn_sweep.png", "attention.png", "knn_sweep.png"]
    assert sorted(str(path.relative_to(folder / name)) for path in (folder / name).rglob("*.png")) == pictures
    written = json.loads((folder / f"{name}.json").read_text())
    assert set(written["reports"][photos.model]) == {"knn_sweep", "attention"} and len(written["rows"]) == 3
    before = (folder / f"{name}.json").read_bytes()
    result = evaluate(*command)
    assert result.code == 2 and f"{name}.json exists; run.overwrite=true replaces it" in result.err
    assert (folder / f"{name}.json").read_bytes() == before
    assert evaluate(*command, "run.overwrite=true", "evaluate.pictures=1").code == 0
    assert json.loads((folder / f"{name}.json").read_text())["evaluate"]["pictures"] == 1


def test_script_without_labels_makes_reports_alone(evaluate, photos, tmp_path):
    command = [photos.config, f"model={photos.model}", "evaluate.label=''", f"run.dir={tmp_path}"]
    result = evaluate(*command)
    assert result.code == 2 and "evaluate.label is '' and evaluate.reports names no report" in result.err
    result = evaluate(*command, "evaluate.reports=[patches]", "evaluate.pictures=2")
    assert result.code == 0, result.err
    assert (
        "| features" not in result.out
        and (tmp_path / "evaluation" / "export_layer-last_patches" / "patches.png").is_file()
    )
    for reports, message in (
        ("[nothing]", "d2v.evaluation.reports has no 'nothing'"),
        ("[layer_curve]", "layer_curve needs labels"),
        ("[dense]", "needs evaluate.masks"),
    ):
        result = evaluate(*command, f"evaluate.reports={reports}")
        assert result.code == 2 and message in result.err.splitlines()[-1]


def test_script_names_labels_that_only_the_test_split_has(evaluate, photos, tmp_path):
    from PIL import Image

    for name in ("train/dark/1.png", "train/light/1.png", "test/dusk/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    result = evaluate(photos.config, f"model={photos.model}", f"data.path={tmp_path}", f"run.dir={tmp_path}/run")
    assert result.code == 2 and "1 classes of split 'test' are not in 'train'" in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("divided", [False, True])
def test_a_plain_folder_is_scored_within_train_and_a_divided_one_by_its_test_split(divided, tmp_path, capsys):
    generator = np.random.default_rng(0)
    splits = ("train", "test") if divided else ("",)
    for split, name, number in itertools.product(splits, "ab", range(8)):
        place = tmp_path / "photos" / split / name
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120 + 100 * (name == "a"), (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    model = tiny.finished("image") / "export"
    settings = ["evaluate.random_seeds=1", "evaluate.probe_steps=2", "evaluate.k=[3]", f"run.dir={tmp_path / 'run'}"]
    result = script.main(["image/demo", f"model={model}", f"data.path={tmp_path / 'photos'}", *settings])
    assert (result["train_samples"], result["test_samples"]) == (16, 16 * divided)
    assert ("there is no split 'test': scored within train" in capsys.readouterr().out) != divided


def test_the_column_and_the_splits_that_were_named_are_those_of_the_scores(tmp_path):
    generator = np.random.default_rng(0)
    lines = ["file,species"]
    for number in range(16):
        name = f"{number}.png"
        Image.fromarray(generator.integers(0, 120 + 100 * (number % 2), (8, 8), dtype=np.uint8)).save(tmp_path / name)
        lines.append(f"{name},{'ab'[number % 2]}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    settings = ["evaluate.random_seeds=0", "evaluate.probe_steps=2", "evaluate.k=[3]", "run.overwrite=true"]
    settings += [f"data.path={tmp_path / 'table.csv'}", f"run.dir={tmp_path / 'run'}"]
    command = ["image/demo", f"model={tiny.finished('image') / 'export'}", *settings]
    result = script.main([*command, "data.label=species"])
    assert result["rows"] and result["evaluate"]["label"] == "species"
    slices = ["evaluate.train_split=train[:10]", "evaluate.test_split=train[10:]"]
    result = script.main([*command, "data.label=species", *slices])
    assert (result["train_samples"], result["test_samples"]) == (10, 6)
    assert not script.main([*command, "data.label=species", "evaluate.label=label"])["rows"]  # there is no such column
    for more, message in (
        (
            ["evaluate.label=", "evaluate.group=file", "evaluate.reports=[geometry]"],
            r"evaluate.group=file: .*label is ''",
        ),
        (["data.label=kind"], r"evaluate.label='kind'.*no column 'kind'"),
        (["evaluate.test_split=train[10:]"], r"'train\[10:\]', which holds samples that evaluate.train_split, 'train'"),
        (["data.split=train[:10]"], r"data.split=train\[:10\]: `d2v evaluate` does not read it; evaluate.train_split"),
    ):
        with pytest.raises(ValueError, match=message):
            script.main([*command, "data.label=species", *more])


def test_data_without_labels_gets_the_report_that_needs_none(tmp_path, capsys):
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    model = tiny.finished("image") / "export"
    settings = [f"data.path={tmp_path / 'photos'}", f"run.dir={tmp_path / 'run'}", "evaluate.random_seeds=1"]
    result = script.main(["image/demo", f"model={model}", *settings])
    assert not result["rows"] and "geometry" in result["reports"][str(model)]
    assert "there is no column 'label': the report geometry" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"evaluate\.label is 'kind'|no column 'kind'"):
        script.main(["image/demo", f"model={model}", *settings, "evaluate.label=kind", "run.overwrite=true"])
