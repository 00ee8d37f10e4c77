"""Word vectors from co-occurrence: the slow way, and a run that begins with them once, in all its processes alike."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from d2v.config.loading import load_config
from d2v.modalities import text
from d2v.modalities.text import cooccurrence
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.training.loop import Loop
from d2v.training.pretraining import assemble
from d2v.training.setup import build_objective
from scripts import evaluate, pretrain

DIM = 6


def rows() -> list[list[int]]:
    """Rows of up to nine of the words 4 to 15, of which 4 follows 5; 16 stands alone in a row; 0 ends each."""
    draw = np.random.default_rng(0)
    found = [[int(word) for word in draw.integers(4, 16, draw.integers(2, 9))] for _ in range(40)]
    return [[*row, 5, 4, 0] for row in found] + [[16, 0]]


def corpus() -> SimpleNamespace:
    every = rows()
    return SimpleNamespace(
        tokens=np.concatenate(every).astype(np.int32), offsets=np.cumsum([0, *(len(row) for row in every)])
    )


def slow_ppmi(window: int) -> np.ndarray:
    """(18, 18), word by word and neighbour by neighbour."""
    counts = np.zeros((18, 18))
    for row in rows():
        words = row[:-1]
        for i, word in enumerate(words):
            for j, other in enumerate(words):
                if i != j and abs(i - j) <= window:
                    counts[word, other] += 1
    found, smooth = np.zeros_like(counts), counts.sum(axis=1) ** 0.75
    for word, other in zip(*counts.nonzero(), strict=True):
        together, alone = counts[word, other] / counts.sum(), counts[word].sum() / counts.sum()
        found[word, other] = max(0, np.log(together / (alone * smooth[other] / smooth.sum())))
    return found


@pytest.mark.parametrize(("window", "chunk"), [(1, 10**6), (3, 10**6), (3, 7)])
def test_vectors_are_the_slow_way(window, chunk, monkeypatch):
    monkeypatch.setattr(cooccurrence, "CHUNK", chunk)
    words, found = cooccurrence.vectors(corpus().tokens, corpus().offsets, 18, DIM, window)
    assert words.tolist() == [*range(4, 16)] and found.shape == (12, DIM) and found.dtype == np.float32
    left = np.linalg.svd(slow_ppmi(window)[4:16])[0][:, :DIM]  # singular values fall
    for channel in left.T:
        channel *= np.sign(channel[np.abs(channel).argmax()])
    slow = np.stack([row / (sum(x * x for x in row) / DIM) ** 0.5 for row in left])
    np.testing.assert_allclose(found, slow, atol=1e-5)


def encoder(**settings) -> D2vModel:
    torch.manual_seed(1)
    frontend = {"vocab_size": 18, "max_positions": 8, "mask_token_id": 17, "init_std": 0.1, **settings}
    return D2vModel(D2vConfig({"text": frontend}, {"depth": 1, "dim": 8, "num_heads": 2, "mlp_dim": 8}))


def test_a_table_begins_with_them():
    """As large as the random one, of which special tokens and lonely words keep their rows."""
    plain, begun = encoder(), encoder(init="cooccurrence", init_window=2)
    assert plain.begin_with("text", SimpleNamespace(corpus=corpus())) == ""
    assert begun.begin_with("text", SimpleNamespace(corpus=corpus())) == "words by co-occurrence"
    old, new = (one.frontends["text"].tokens.weight for one in (plain, begun))
    found = cooccurrence.vectors(corpus().tokens, corpus().offsets, 18, 8, 2)[1]
    torch.testing.assert_close(new[4:16], torch.from_numpy(found * 0.1))
    torch.testing.assert_close(new[4:16].square().mean(dim=1), torch.full((12,), 0.01))
    assert torch.equal(new[:4], old[:4]) and torch.equal(new[16:], old[16:]) and new.requires_grad
    others = [name for name, value in plain.state_dict().items() if not torch.equal(value, begun.state_dict()[name])]
    assert others == ["frontends.text.tokens.weight"]


def test_more_channels_than_words_stay_random():
    lines = np.array([4, 5, 6, 0, 5, 4, 0, 6, 4, 0]), np.array([0, 4, 7, 10])
    samples = SimpleNamespace(corpus=SimpleNamespace(tokens=lines[0], offsets=lines[1]))
    plain, begun = encoder(), encoder(init="cooccurrence", init_window=1)
    begun.begin_with("text", samples)
    old, new = (one.frontends["text"].tokens.weight for one in (plain, begun))
    words = cooccurrence.vectors(*lines, 18, 8, 1)[0]
    assert (
        2 <= len(words) <= 3 and torch.equal(new[:, 2:], old[:, 2:]) and not torch.equal(new[words, 0], old[words, 0])
    )
    lonely = SimpleNamespace(corpus=SimpleNamespace(tokens=np.array([4, 0]), offsets=np.array([0, 2])))
    begun.begin_with("text", lonely)  # nothing to learn from


# A run.


BEGUN = ("model.frontends.text.init=cooccurrence", "model.frontends.text.init_window=3")


def table(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["frontends.text.tokens.weight"]


def test_student_and_teacher_of_a_run_begin_with_them(tmp_path):
    config = load_config(tiny.arguments("text", tmp_path, *BEGUN)[0], tiny.arguments("text", tmp_path, *BEGUN)[1:])
    text.prepare(config.data, config.frontend, tmp_path, 0)
    samples = text.Samples(config.data, config.frontend, split=config.data.split, folder=tmp_path)
    made = []
    for given in (None, samples):
        torch.manual_seed(0)
        made.append(build_objective(config, len(samples), given))
    plain, begun = made
    tables = [side.frontends["text"].tokens.weight for side in (*plain.encoders, *begun.encoders)]
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[2], tables[3])
    assert (tables[0] != tables[2]).any(dim=1).sum() > 100
    corpus, dim = samples.corpus, config.model.trunk.dim
    words, found = cooccurrence.vectors(corpus.tokens, corpus.offsets, len(tables[2]), dim, 3)
    torch.testing.assert_close(tables[2][words], torch.from_numpy(found) * config.frontend.init_std)


QUICK = (*BEGUN, "train.steps=2", "run.health_every=2", "run.save_every=2")


def two_processes(folder: Path) -> None:
    pretrain.main(tiny.arguments("text", folder / "two", *QUICK))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The same run by one process and by two."""
    root = tmp_path_factory.mktemp("cooccurrence")
    processes = tiny.start(two_processes, root, world=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "plot", lambda self: None)
        pretrain.main(tiny.arguments("text", root / "one", *QUICK))
    assert tiny.wait(processes) == [0, 0]
    return root


def test_two_processes_begin_alike(runs):
    torch.testing.assert_close(table(runs / "two" / "export"), table(runs / "one" / "export"), rtol=0, atol=1e-6)


def test_they_are_not_found_for_weights_that_were_trained(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(cooccurrence, "vectors")
    pretrain.main(tiny.arguments("text", runs / "one", *QUICK))
    assert "resuming from step 2" in capsys.readouterr().out
    from_one = f"train.init_from={runs / 'one' / 'export'}"
    config = tiny.config_of("text", tmp_path, *QUICK, from_one, "run.dry=true")
    Path(config.run.dir).mkdir(exist_ok=True)
    assemble(config, text, Accelerator(cpu=True))


def test_random_inits_of_an_evaluation_begin_as_the_run_did(runs, capsys):
    command = tiny.arguments("text", runs / "one", *QUICK)
    evaluate.main([*command, f"model={runs / 'one' / 'export'}", "evaluate.random_seeds=2", "evaluate.probe=false"])
    assert "random init (2 seeds), words by co-occurrence" in capsys.readouterr().out
