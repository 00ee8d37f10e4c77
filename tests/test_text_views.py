"""Views of text: what each of them does and how much, and that batches of them are pure functions."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from d2v.modalities import text
from d2v.modalities.text.batches import MaskedBatches, ViewBatches
from d2v.modalities.text.views import AugmentConfig, made
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives import byol, data2vec


def row(words: int) -> np.ndarray:
    """<s>, words that are all different, </s>."""
    return np.array([0, *range(10, 10 + words), 2])


def drawn(name: str, words: int, number: int, **fields) -> list[list[int]]:
    views = [made(name, row(words), np.random.default_rng(seed), AugmentConfig(**fields)) for seed in range(number)]
    assert all(view[0] == 0 and view[-1] == 2 and len(view) > 2 for view in views)
    return [view[1:-1].tolist() for view in views]


# What a view is.


def test_same_is_the_row():
    assert drawn("same", 7, 1) == [list(range(10, 17))]


@pytest.mark.parametrize("words", [2, 9, 50])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.9])
def test_deletion_takes_out_the_asked_share_anywhere(words, share):
    views = drawn("deletion", words, 300, deletion=share)
    kept = np.array([len(view) for view in views])
    assert all(view == sorted(view) for view in views) and set(kept) <= {
        max(1, words - int(share * words)),
        max(1, words - int(share * words) - 1),
    }
    assert np.mean(kept) == pytest.approx(words - min(share * words, words - 1), abs=0.15)
    places = np.bincount(np.concatenate(views), minlength=10 + words)[10:] / 300
    assert np.abs(places - kept.mean() / words).max() < 4 * 0.5 / 300**0.5  # no place is spared


def test_deletion_of_spans():
    taken = [
        sorted({*range(10, 50)} - {*view}) for view in drawn("deletion", 40, 300, deletion=0.25, deletion_length=5)
    ]
    for places in taken:
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        assert len(runs) <= 2 and all(len(run) >= 5 or run[-1] == 49 for run in runs)  # the end cuts spans
    assert 0.2 < np.mean([len(places) for places in taken]) / 40 < 0.25  # two spans of five, which may overlap


def test_a_crop_is_a_stretch_of_the_asked_share():
    views = drawn("crop", 40, 400, crop=[0.25, 0.75])
    assert all(view == list(range(view[0], view[0] + len(view))) for view in views)
    sizes, starts = np.array([len(view) for view in views]), np.array([view[0] - 10 for view in views])
    assert sizes.min() == 10 and sizes.max() == 30 and sizes.mean() == pytest.approx(20, abs=1.2)
    assert (
        (starts / (40 - sizes)).mean() == pytest.approx(0.5, abs=0.06)
        and starts.min() == 0
        and (starts + sizes).max() == 40
    )
    assert {len(view) for view in drawn("crop", 2, 50, crop=[0.0, 0.3])} == {1}


# Batches.


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> text.Samples:
    """Forty sentences of 2 to 41 words, the longest cut to 32 tokens."""
    folder = tmp_path_factory.mktemp("views")
    words = [f"w{number}" for number in range(50)]
    (folder / "rows.txt").write_text(
        "\n".join(" ".join(words[k] for k in range(number, 2 * number + 2)[:50] if k < 50) for number in range(40))
    )
    data, frontend = (
        text.DataConfig(path=str(folder / "rows.txt"), vocab_size=400, block_size=32),
        text.FrontendConfig(max_positions=64),
    )
    text.prepare(data, frontend, folder, seed=0)
    return text.Samples(data, frontend, split="train", folder=folder)


def batches(samples: text.Samples, *views: str, seed: int = 3, **fields) -> ViewBatches:
    data = replace(samples.config, views=list(views), augment=AugmentConfig(**fields))
    return text.batches(samples, data, samples.frontend, 8, seed)


def same(first: list, second: list) -> bool:
    every = [
        [*view.inputs.values(), view.indices, torch.zeros(0) if view.padding is None else view.padding]
        for view in (*first, *second)
    ]
    return all(
        torch.equal(a, b)
        for mine, theirs in zip(every[: len(first)], every[len(first) :], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def test_a_batch_has_a_view_for_each_name(samples):
    made_batches = batches(samples, *text.VIEWS)
    seen = []
    for step in range(made_batches.steps_per_epoch):
        views, names = made_batches(step, 0, 1)
        indices = views[0].indices.tolist()
        seen += indices
        assert names == [samples.ids[index] for index in indices] and views[0].indices.dtype == torch.long
        whole = samples.view(indices)
        assert torch.equal(views[0].inputs["input_ids"], whole.inputs["input_ids"]) and len(views) == 3
        for view in views:
            ids, real = view.inputs["input_ids"], view.inputs["attention_mask"]
            assert ids.shape == whole.inputs["input_ids"].shape and view.modality == "text" and view.mask is None
            assert torch.equal(view.indices, views[0].indices) and torch.equal(ids == 1, real == 0)
            assert (view.padding is None and real.all()) or torch.equal(view.padding, real == 0)
            assert (ids[:, 0] == 0).all() and ((ids == 2).sum(1) == 1).all() and (real.sum(1) >= 3).all()
    assert len(seen) == len(set(seen)) == len(samples) // 8 * 8
    assert max(view.inputs["input_ids"].shape[1] for view in views) <= 32


def test_two_parts_hold_the_rows_of_one(samples):
    made_batches = pickle.loads(pickle.dumps(batches(samples, "deletion", "crop", "same")))
    state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for step in (0, 3, 11):
        whole, ids = made_batches(step, 0, 1)
        for part in range(2):
            half, names = made_batches(step, part, 2)
            assert names == ids[part::2]
            for mine, theirs in zip(half, whole, strict=True):
                assert all(torch.equal(mine.inputs[name], theirs.inputs[name][part::2]) for name in theirs.inputs)
                assert torch.equal(mine.indices, theirs.indices[part::2])
    assert state == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_batch_is_a_function_of_seed_and_step(samples):
    names = ("deletion", "deletion")
    first, _ = batches(samples, *names)(1, 0, 1)
    assert same(batches(samples, *names)(1, 0, 1)[0], first) and not same(first[:1], first[1:])
    assert not same(batches(samples, *names)(2, 0, 1)[0], first) and not same(
        batches(samples, *names, seed=4)(1, 0, 1)[0], first
    )
    assert isinstance(batches(samples), MaskedBatches)


def test_rows_of_a_batch_are_of_similar_length(samples):
    made_batches = batches(samples, "same")
    spread = [np.ptp(samples.lengths[made_batches.sampler(step)]) for step in range(made_batches.steps_per_epoch)]
    assert np.mean(spread) < np.ptp(samples.lengths) / 2
    with pytest.raises(ValueError, match=r"usable samples, fewer than one batch: train\.batch_size is 99"):
        text.batches(samples, replace(samples.config, views=["same"]), samples.frontend, 99, seed=0)


# Settings.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": ["same", "shuffle"]}, r"data\.views holds 'shuffle'; it may hold same, deletion, crop"),
        (
            {"views": ["same"], "break_mode": "none"},
            r"data\.break_mode is none, and nothing reads it: data\.views makes views of single rows",
        ),
        ({"views": ["same"], "mask_prob": 0.5}, r"data\.mask_prob is 0\.5, and nothing reads it"),
        ({"views": ["same"], "mask_kind": "random"}, r"data\.mask_kind is random, and nothing reads it"),
        (
            {"views": ["same"], "reference_teacher_input": True},
            r"data\.reference_teacher_input is True, and nothing reads it",
        ),
        (
            {"augment": {"deletion": 0.1}},
            r"data\.augment\.deletion is 0\.1, and nothing reads it: data\.views has no deletion",
        ),
        (
            {"views": ["crop"], "augment": {"deletion_length": 2}},
            r"data\.augment\.deletion_length is 2, .* no deletion",
        ),
        ({"views": ["deletion"], "augment": {"crop": [0.1, 0.2]}}, r"data\.augment\.crop is .* no crop"),
    ],
)
def test_what_nothing_reads_is_an_error(samples, tmp_path, fields, message):
    data = replace(samples.config, **{**fields, "augment": AugmentConfig(**fields.get("augment", {}))})
    with pytest.raises(ValueError, match=message):
        text.prepare(data, samples.frontend, tmp_path, seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deletion", 0.0),
        ("deletion", 1.0),
        ("deletion_length", 0),
        ("crop", [0.5, 1.1]),
        ("crop", [0.5]),
        ("crop", [0.0, 0.0]),
        ("crop", [0.9, 0.1]),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"data\.augment\.{name} is .*; it must (be|have) "):
        AugmentConfig(**{name: value})


# Training.


@pytest.mark.parametrize("fields", [{}, {"embedding_norm": True}], ids=["positions apart", "embedding norm"])
def test_every_weight_learns_from_views(tmp_path: Path, fields):
    data = text.DataConfig(path="demo", vocab_size=300, block_size=64, views=["same", "crop"])
    frontend = text.FrontendConfig(max_positions=64, **fields)
    text.prepare(data, frontend, tmp_path, seed=0)
    views, _ = text.batches(text.Samples(data, frontend, split="train", folder=tmp_path), data, frontend, 4, seed=0)(
        0, 0, 1
    )
    trunk = {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 16, "dropout": 0.1}
    encoder = D2vModel(D2vConfig(frontends={"text": vars(frontend)}, trunk=trunk))
    objective = byol.build(encoder, byol.Config(hidden_dim=16, out_dim=8)).train()
    loss = objective(views)
    (loss.total / loss.count).backward()
    assert loss.total.isfinite() and int(loss.count) == 4
    assert not [
        name for name, weight in objective.student.named_parameters() if weight.grad is None or not weight.grad.any()
    ]


def test_the_two_readings_of_a_row_differ_by_dropout(samples):
    views, _ = batches(samples, "same", "same")(0, 0, 1)
    assert same(views[:1], views[1:])
    trunk = {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 16}
    for dropout in (0.0, 0.1):
        encoder = D2vModel(
            D2vConfig(frontends={"text": vars(samples.frontend)}, trunk={**trunk, "dropout": dropout})
        ).train()
        assert torch.equal(encoder(views[0]).x, encoder(views[1]).x) == (dropout == 0)


def test_data2vec_refuses_views_in_which_nothing_is_hidden(samples):
    encoder = D2vModel(
        D2vConfig(
            frontends={"text": vars(samples.frontend)}, trunk={"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 16}
        )
    )
    objective = data2vec.build(encoder, data2vec.Config(top_k=1))
    with pytest.raises(ValueError, match=r"data\.views makes views in which nothing is: leave it out"):
        objective.check(batches(samples, "same", "crop")(0, 0, 1)[0])
    objective.check(batches(samples)(0, 0, 1)[0])
