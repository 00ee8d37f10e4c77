"""Reports of an evaluation against slow oracles and scikit-learn; their pictures by what is on them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier

from d2v import plugins
from d2v.evaluation.classifiers import holdout, logistic_regression, zscore
from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.report import Subject, make_reports
from d2v.evaluation.reports import attention, dense, few_labels, geometry, patches
from d2v.evaluation.scoring import evaluate_encoder
from d2v.evaluation.splits import label_splits
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel

SETTINGS = {
    "max_train": 200,
    "max_test": 90,
    "probe_steps": 30,
    "pictures": 3,
    "few_draws": 2,
    "logistic_cs": [0.01, 1.0],
}


def model_of(seed: int, **frontend) -> D2vModel:
    config = tiny.config_of("image", "")
    torch.manual_seed(seed)
    model = D2vModel(D2vConfig({"image": vars(config.frontend) | frontend}, config.model.trunk)).eval()
    for name, parameter in model.named_parameters():  # a bias table of zeros would hide mistakes
        if name.endswith("bias_table"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module")
def digits() -> dict:
    """Small splits of the demo's digits, and a model beside another."""
    config, module = tiny.config_of("image", ""), plugins.load("d2v.modalities", "image")
    samples = [module.Samples(config.data, config.frontend, split=split, folder=Path()) for split in ("train", "test")]
    settings = EvaluateConfig(**SETTINGS)
    train, test = label_splits(*samples, settings)
    return {
        "encoders": {"mine": model_of(1), "random init": model_of(0)},
        "train": train,
        "test": test,
        "config": settings,
    }


@pytest.fixture
def subject(digits, tmp_path) -> Subject:
    return Subject("runs/mine", **digits, folder=tmp_path)


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: saved.append(self) or save(self, *args, **more))
    return saved


def check_picture(path: Path) -> None:
    """A PNG of some size with something on it."""
    image = Image.open(path)
    assert image.format == "PNG" and min(image.size) > 200 and np.asarray(image.convert("L")).std() > 5


def lines_of(figure: Figure) -> dict[str, tuple[list, list]]:
    (axes,) = figure.axes
    assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel() and axes.get_legend() is not None
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


# Numbers and curves.


def test_knn_sweep_is_scikit_learns_weighted_neighbours(subject, figures):
    (finding,) = make_reports(subject, ["knn_sweep"]).values()
    assert list(finding.numbers) == ["mine", "random init"] and len(finding.lines) == 2
    for name, (near, far) in subject.features.items():
        near, far = zscore(near, far)
        for k, value in finding.numbers[name].items():
            theirs = KNeighborsClassifier(
                k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
            )
            expected = 100 * theirs.fit(near, subject.train.labels).score(far, subject.test.labels)
            assert value == pytest.approx(expected, abs=1e-4)
    assert list(finding.numbers["mine"]) == [1, 2, 5, 10, 20, 50, 100]  # 200 neighbours of 200 are all
    drawn = lines_of(figures[0])
    assert drawn == {name: (list(curve), list(curve.values())) for name, curve in finding.numbers.items()}
    check_picture(subject.picture("knn_sweep"))


def test_knn_sweep_without_a_test_split_leaves_one_out(subject):
    subject.test = None
    (finding,) = make_reports(subject, ["knn_sweep"]).values()
    assert list(finding.numbers) == ["mine, leave one out", "random init, leave one out"]


def test_logistic_regression_leaves_the_choice_to_the_holdout(subject):
    near, far = subject.features["mine"]
    y, test_y = subject.train.labels, subject.test.labels
    out, rest = holdout(len(near), 0.1, 0)
    assert sorted([*out, *rest]) == list(range(len(near))) and len(out) == 20
    x, test_x = zscore(near, far)
    scores = [LogisticRegression(C=c, max_iter=1000).fit(x[rest], y[rest]).score(x[out], y[out]) for c in (1e-6, 1.0)]
    best = (1e-6, 1.0)[int(np.argmax(scores))]
    expected = LogisticRegression(C=best, max_iter=1000).fit(x, y).score(test_x, test_y)
    assert best == 1.0 and expected > 0.3
    assert logistic_regression(near, y, far, test_y, cs=[1e-6, 1.0], held=0.1, seed=0) == (pytest.approx(expected), 1.0)
    assert (
        logistic_regression(near, y, far, (test_y + 1) % 10, cs=[1e-6, 1.0], held=0.1, seed=0)[1] == 1.0
    )  # whatever the test set holds
    (finding,) = make_reports(subject, ["logistic"]).values()
    assert finding.numbers["mine"]["C"] in (0.01, 1.0) and 30 < finding.numbers["mine"]["accuracy"] <= 100


def test_few_labels(subject, figures):
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    for amount, counts in (("10%", [10, 4, 1]), ("1%", [1, 1, 1]), ("100%", [100, 40, 3]), ("5", [5, 5, 3])):
        rows = few_labels.draw(labels, amount, np.random.default_rng(0))
        assert np.bincount(labels[rows]).tolist() == counts and len(set(rows)) == len(rows)
    assert (
        few_labels.draw(labels, "5", np.random.default_rng(0)) != few_labels.draw(labels, "5", np.random.default_rng(1))
    ).any()
    subject.config = replace(subject.config, few_labels=["2", "20%", "100%"])
    (finding,) = make_reports(subject, ["few_labels"]).values()
    near, far = subject.features["mine"]
    x, test_x = zscore(near, far)
    whole = LogisticRegression(C=1.0, max_iter=1000).fit(x, subject.train.labels)
    found = finding.numbers["mine"]
    assert found["100%"] == {
        "labels": 200,
        "mean": pytest.approx(100 * accuracy_score(subject.test.labels, whole.predict(test_x))),
        "spread": 0,
    }
    assert found["2"]["labels"] == 20 and max(found["2"]["mean"], found["20%"]["mean"]) < found["100%"]["mean"]
    drawn = lines_of(figures[0])
    assert set(drawn) == {"mine", "random init"} and drawn["mine"][0] == [20, found["20%"]["labels"], 200]
    assert (
        drawn["mine"][1] == [found[a]["mean"] for a in ("2", "20%", "100%")]
        and len(figures[0].axes[0].collections) == 2
    )  # bands
    check_picture(subject.picture("few_labels"))


def test_geometry_is_the_slow_loop(subject, figures):
    (finding,) = make_reports(subject, ["geometry"]).values()
    near = subject.features["mine"][0].astype(np.float64)
    unit = near / np.linalg.norm(near, axis=1, keepdims=True)
    potentials = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit) for b in unit[:i]]
    first, second = geometry.pairs(subject.train.labels, np.random.default_rng(0))
    sigma = np.linalg.svd(near, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    centred = np.linalg.svd(near - near.mean(axis=0), compute_uv=False)
    q = centred / centred.sum()
    expected = {
        "alignment": np.mean([((unit[i] - unit[j]) ** 2).sum() for i, j in zip(first, second, strict=True)]),
        "uniformity": np.log(np.mean(potentials)),
        "rankme": np.exp(-(p * np.log(p)).sum()),
        "effective_rank": np.exp(-(q * np.log(q)).sum()),
    }
    assert finding.numbers["mine"] == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}
    (axes,) = figures[0].axes
    spectra = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    assert set(spectra) == {"mine", "random init"}
    values = np.sort(np.linalg.eigvalsh(np.cov(near.T, bias=True)))[::-1]
    np.testing.assert_allclose(spectra["mine"][:20], np.log10(values[:20]), atol=1e-3)
    check_picture(subject.picture("spectrum"))


def test_pairs_are_two_of_a_class():
    labels = np.array([0, 1, 0, 2, 1, 0, 3, 3])
    first, second = geometry.pairs(labels, np.random.default_rng(0))
    assert (labels[first] == labels[second]).all() and (first != second).all()
    assert sorted(first) == sorted(second) == [0, 1, 2, 4, 5, 6, 7]  # each once; the class of one has no pair


def test_layer_curve_is_the_table_of_all_layers(subject, figures):
    (finding,) = make_reports(subject, ["layer_curve"]).values()
    rows = evaluate_encoder("mine", subject.encoder, subject.train, subject.test, replace(subject.config, layer="all"))
    assert finding.numbers["mine"] == {row.layer: row.scores for row in rows}
    drawn = lines_of(figures[0])
    assert set(drawn) == {f"{name}: {score}" for name in ("mine", "random init") for score in ("k-NN 20", "linear")}
    assert drawn["mine: linear"] == ([0, 1, 2], [row.scores["linear"] for row in rows]) and [
        row.layer for row in rows
    ] == ["local", "1", "2"]
    check_picture(subject.picture("layer_curve"))


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_layer_curve_of_every_modality(modality, tmp_path, figures):
    config = tiny.config_of(modality, tmp_path)
    samples = tiny.samples_of(config)
    settings = EvaluateConfig(test_split="", max_train=60, probe=False)
    train, _ = label_splits(samples, None, settings)
    model = D2vModel(D2vConfig(config.model.frontends, config.model.trunk))
    make_reports(Subject("mine", {"mine": model}, train, None, settings, tmp_path), ["layer_curve"])
    assert list(lines_of(figures[0])) == ["mine: k-NN 20, leave one out"]
    check_picture(tmp_path / "layer_curve.png")
    with pytest.raises(
        ValueError, match=f"evaluate.reports: attention needs tokens on a grid; those of {modality} are a sequence"
    ):
        make_reports(Subject("mine", {"mine": model}, train, None, settings, tmp_path), ["attention"])


# Pictures.


@torch.no_grad()
@pytest.mark.parametrize("frontend", [{}, {"class_token": True, "relative_bias": True}])
def test_attention_is_what_the_block_computes(subject, frontend, figures):
    model = subject.encoders["mine"] = model_of(1, **frontend)
    view = subject.test.samples.view(subject.test.indices[:4])
    block, calls = model.trunk.blocks[-1].attention, []
    hook = block.register_forward_hook(lambda module, arguments, output: calls.append((*arguments, output)))
    model(view)
    hook.remove()
    (x, bias, output) = calls[0]
    weights = block.weights(x, bias)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    v = block._heads(x)[2]
    torch.testing.assert_close(block.proj((weights @ v).transpose(1, 2).flatten(2)), output)
    found, of_class = attention.attention_of(model, view)
    assert of_class == bool(frontend) and found.shape == (4, 2, 16)
    torch.testing.assert_close(found, weights[:, :, 0, 1:] if frontend else weights.mean(dim=2))

    (finding,) = make_reports(subject, ["attention"]).values()
    (figure,) = figures
    assert len(figure.axes) == 3 * 4  # three samples: themselves, the mean, two heads
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["sample", "mean", "head 1", "head 2"] + [""] * 8
    tiles = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [tile.shape for tile in tiles[:4]] == [(8, 8, 3), (4, 4), (4, 4), (4, 4)] and all(
        tile.std() > 0 for tile in tiles
    )
    np.testing.assert_allclose(tiles[1], (tiles[2] + tiles[3]) / 2, rtol=1e-5)
    assert (
        finding.numbers["query"] == ("the class token" if frontend else "all tokens")
        and len(finding.numbers["spread_by_head"]) == 2
    )
    check_picture(subject.picture("attention"))


def test_main_directions_are_scikit_learns_principal_components():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 7, 6)) * np.array([5, 4, 3, 1, 1, 1]))
    found, shares = patches.main_directions(x)
    reference = PCA(3).fit(x.flatten(0, 1).numpy())
    expected = reference.transform(x.flatten(0, 1).numpy()).reshape(5, 7, 3)
    signs = np.sign((found.numpy() * expected).sum(axis=(0, 1)))
    np.testing.assert_allclose(found.numpy() * signs, expected, atol=1e-8)
    assert shares == pytest.approx(reference.explained_variance_ratio_)


def test_patches_are_shown_for_each_encoder(subject, figures):
    (finding,) = make_reports(subject, ["patches"]).values()
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes[:3]] == ["sample", "mine", "random init"] and len(figure.axes) == 9
    tiles = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [tile.shape for tile in tiles[:3]] == [(8, 8, 3), (4, 4, 3), (4, 4, 3)] and all(
        tile.std() > 0.01 for tile in tiles
    )
    for column in (1, 2):  # one scale for all samples of an encoder
        values = np.stack(tiles[column::3])
        np.testing.assert_allclose(
            (values.min(axis=(0, 1, 2)), values.max(axis=(0, 1, 2))), [[0] * 3, [1] * 3], atol=1e-6
        )
    assert all(0 < sum(shares) <= 1 for shares in finding.numbers["variance"].values())
    check_picture(subject.picture("patches"))


# The dense probe.


def test_majority_and_intersection_over_union_are_the_slow_loop():
    generator = np.random.default_rng(0)
    masks = generator.choice([0, 3, 7, 255], size=(2, 12, 12), p=[0.3, 0.2, 0.1, 0.4]).astype(np.uint8)
    masks[0, :4, :4] = 255
    found = dense.majority(masks, (3, 3))
    for b, r, c in np.ndindex(2, 3, 3):
        counts = np.bincount(masks[b, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].ravel(), minlength=256)
        counts[255] = 0
        assert found[b, r, c] == (np.argmax(counts) if counts.any() else 255)
    true, predicted = generator.integers(0, 4, 500), generator.integers(1, 5, 500)
    confusion = np.zeros((6, 6), dtype=np.int64)
    np.add.at(confusion, (true, predicted), 1)
    ious = dense.intersection_over_union(confusion)
    assert list(ious) == [0, 1, 2, 3, 4]
    assert list(ious.values()) == pytest.approx(jaccard_score(true, predicted, average=None))


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Dark pictures with bright squares of one patch and more, and masks that say where.

    Class 4, on 2; a border of nothing.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = np.full((32, 40), 2, dtype=np.uint8)
            top, left = 8 * generator.integers(0, 3), 8 * generator.integers(0, 4)
            mask[top : top + 16, left : left + 16] = 4
            pixels = np.where(mask == 4, 200, 60)[..., None] + generator.integers(-20, 20, (32, 40, 3))
            mask[:2] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / split / f"{number}.jpg", quality=95)
            Image.fromarray(mask).save(tmp_path / "masks" / split / f"{number}.png")
    return tmp_path


def dense_subject(folder: Path, **settings) -> Subject:
    module = plugins.load("d2v.modalities", "image")
    frontend = {"image_size": 32, "patch_size": 8, "channels": 3}
    model = model_of(1, **frontend)
    data = module.DataConfig(path=str(folder / "images"), eval_crop=1.0)
    config = EvaluateConfig(label="", masks=str(folder / "masks"), probe_steps=100, **settings)
    samples = [
        module.Samples(data, module.FrontendConfig(**model.config.frontends["image"]), split=s, folder=folder)
        for s in ("train", "test")
    ]
    return Subject("mine", {"mine": model}, *label_splits(*samples, config), config, folder)


def test_dense_probe_finds_what_tokens_know(scenes):
    subject = dense_subject(scenes)
    (finding,) = make_reports(subject, ["dense"]).values()
    assert list(finding.numbers["mine"]["iou"]) == ["2", "4"] and finding.numbers["mine"]["miou"] > 60
    neighbours = finding.numbers["mine"]["knn"]["20"]
    assert finding.lines == [
        f"dense probe of mine: mean IoU {finding.numbers['mine']['miou']:.1f} over 2 classes",
        f"dense 20-NN of mine: mean IoU {neighbours:.1f} over 2 classes",
    ]
    assert neighbours > 60 and make_reports(subject, ["dense"])["dense"] == finding
    for path in (scenes / "masks" / "train").iterdir():  # masks that have nothing to do with the pictures
        Image.fromarray(
            np.random.default_rng(int(path.stem))
            .choice(np.uint8([2, 4]), (4, 5), p=[0.8, 0.2])
            .repeat(8, 0)
            .repeat(8, 1)
        ).save(path)
    assert make_reports(dense_subject(scenes), ["dense"])["dense"].numbers["mine"]["miou"] < 50


@pytest.mark.parametrize("zscore", [True, False])
def test_the_neighbours_of_tokens_vote_as_a_slow_loop(scenes, zscore):
    """Tokens of which half have no class are no neighbours; each votes by exp(cosine / temperature)."""
    subject = dense_subject(scenes, k=[3, 7], zscore=zscore, temperature=0.1)
    (finding,) = make_reports(subject, ["dense"]).values()
    bank, labels = [], []
    for tokens, masks in dense.batches(subject, subject.encoder, subject.train):
        for b, r, c in np.ndindex(tokens.shape[:3]):
            counts = np.bincount(masks[b, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].ravel(), minlength=256)[:255]
            if counts.max() >= 32:
                bank.append(tokens[b, r, c])
                labels.append(int(counts.argmax()))
    everything = np.concatenate([t.reshape(-1, 32) for t, _ in dense.batches(subject, subject.encoder, subject.train)])
    mean, std = (everything.mean(0), everything.std(0)) if zscore else (0, 1)
    unit = lambda x: (x - mean) / std / np.linalg.norm((x - mean) / std, axis=-1, keepdims=True)  # noqa: E731
    bank = unit(np.stack(bank).astype(np.float64))
    for k in (3, 7):
        hits, union = dict.fromkeys((2, 4), 0), dict.fromkeys((2, 4), 0)
        for tokens, masks in dense.batches(subject, subject.encoder, subject.test):
            for b, y, x in np.ndindex(masks.shape):
                if masks[b, y, x] == 255:
                    continue
                cosines = bank @ unit(tokens[b, y // 8, x // 8].astype(np.float64))
                votes = dict.fromkeys((2, 4), 0.0)
                for near in np.argsort(-cosines)[:k]:
                    votes[labels[near]] += np.exp(cosines[near] / 0.1)
                predicted = max(votes, key=lambda c: votes[c])
                for c in votes:
                    hits[c] += predicted == c == masks[b, y, x]
                    union[c] += predicted == c or masks[b, y, x] == c
        slow = 100 * np.mean([hits[c] / union[c] for c in hits])
        assert finding.numbers["mine"]["knn"][str(k)] == pytest.approx(slow)


def test_masks_are_cut_as_the_images_are(scenes):
    subject = dense_subject(scenes)
    masks = subject.test.samples.masks([0, 1], str(scenes / "masks"))
    whole = np.asarray(Image.open(scenes / "masks" / "test" / "0.png"))
    assert masks.shape == (2, 32, 32) and masks.dtype == np.uint8 and (masks[0] == whole[:, 4:36]).all()


def test_masks_that_do_not_fit_are_named(scenes):
    place = scenes / "masks" / "test" / "0.png"
    subject = dense_subject(scenes)
    for image, message in (
        (Image.new("L", (30, 30)), r"mask .*test/0.png has 30 x 30 pixels, its image 40 x 32"),
        (Image.new("RGB", (40, 32)), r"mask .*test/0.png is of mode RGB; class numbers are grey"),
        (None, r"mask .*test/0.png cannot be read"),
    ):
        if image is None:
            place.unlink()
        else:
            image.save(place)
        with pytest.raises(ValueError, match=message):
            make_reports(subject, ["dense"])
    with pytest.raises(ValueError, match=r"dense needs evaluate.masks"):
        make_reports(replace_config(subject, masks=""), ["dense"])
    with pytest.raises(ValueError, match=r"evaluate.reports: dense needs a test split"):
        subject.test = None
        make_reports(subject, ["dense"])


def replace_config(subject: Subject, **settings) -> Subject:
    changed = copy.copy(subject)
    changed.config = replace(subject.config, **settings)
    return changed


# What reports cannot be made of.


def test_errors(subject):
    with pytest.raises(
        ValueError,
        match=r"d2v.evaluation.reports has no 'knn_sweeep'; it has abx, abx_items, .*or give the dotted name",
    ):
        make_reports(subject, ["knn_sweeep"])
    for name in ("knn_sweep", "logistic", "few_labels", "layer_curve"):
        with pytest.raises(ValueError, match=f"evaluate.reports: {name} needs labels; evaluate.label is ''"):
            make_reports(replace_config(subject, label=""), [name])
    subject.test = None
    for name in ("logistic", "few_labels"):
        with pytest.raises(ValueError, match=f"evaluate.reports: {name} needs a test split"):
            make_reports(subject, [name])


@pytest.mark.parametrize(
    "settings",
    [
        {"logistic_cs": [0.0]},
        {"few_labels": ["0%"]},
        {"few_labels": ["120%"]},
        {"few_labels": ["x"]},
        {"few_labels": []},
        {"few_draws": 0},
        {"pictures": 0},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=rf"evaluate.{next(iter(settings))} is "):
        EvaluateConfig(**settings)
    EvaluateConfig(few_labels=["1", "10", "0.5%", "100%"])
