"""The text modality: tokenizers, blocks, masks, views, and the frontend against its plain statement."""

import json
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from d2v.modalities import text
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.batches import MaskedBatches

LINES = [
    f"{a} {b} {c}, and then {b} again."
    for a in ("The sea", "A ship")
    for b in ("rises", "turns", "sinks")
    for c in ("slowly", "at night")
]


@pytest.fixture
def novels(tmp_path: Path) -> Path:
    """Three documents of four lines, the second with a line that is longer than any block."""
    documents = [LINES[:4], [*LINES[4:7], " ".join(LINES * 3)], LINES[8:]]
    path = tmp_path / "novels.txt"
    path.write_text("\n\n".join("\n".join(document) for document in documents) + "\nI\n", encoding="utf-8")
    return path


def prepared(path: Path | str, folder: Path, **settings) -> tuple[text.DataConfig, text.FrontendConfig]:
    data = text.DataConfig(path=str(path), **{"block_size": 32, "vocab_size": 300, "max_bad_share": 0.2, **settings})
    frontend = text.FrontendConfig(max_positions=64)
    text.prepare(data, frontend, folder, seed=0)
    return data, frontend


@pytest.fixture
def samples(novels: Path, tmp_path: Path) -> text.Samples:
    data, frontend = prepared(novels, tmp_path / "run")
    return text.Samples(data, frontend, split="train", folder=tmp_path / "run")


def made(samples: text.Samples, size: int = 4, **settings) -> MaskedBatches:
    data = replace(samples.config, **settings)
    return text.batches(samples, data, samples.frontend, size, seed=3, bad_log=lambda *_: None)


# Tokenizers.


def test_trained_tokenizer_has_robertas_special_tokens(tmp_path: Path, novels: Path):
    _, frontend = prepared(novels, tmp_path / "a")
    tokenizer = tokenizers.read(tmp_path / "a")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert frontend.mask_token_id == tokenizer.mask_token_id == len(tokenizer) - 1 == frontend.vocab_size - 1
    assert (frontend.bos_token_id, frontend.pad_token_id, frontend.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer("The sea\u00e9 \u65e5").input_ids) == "<s>The sea\u00e9 \u65e5</s>"
    prepared(novels, tmp_path / "b")
    assert (tmp_path / "a/tokenizer/tokenizer.json").read_bytes() == (
        tmp_path / "b/tokenizer/tokenizer.json"
    ).read_bytes()


def test_prepare_again_changes_nothing(tmp_path: Path, novels: Path):
    data, frontend = prepared(novels, tmp_path)
    before = (tmp_path / "tokenizer/tokenizer.json").stat().st_mtime_ns, replace(frontend)
    novels.unlink()  # an export is evaluated without the data that it was trained on
    text.prepare(data, frontend, tmp_path, seed=0)
    assert before == ((tmp_path / "tokenizer/tokenizer.json").stat().st_mtime_ns, frontend)


def test_export_loads_with_autotokenizer(tmp_path: Path, novels: Path):
    data, frontend = prepared(novels, tmp_path / "run")
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text(json.dumps({"model_type": "d2v"}))
    text.save_preprocessor(export, tmp_path / "run", data, frontend)
    loaded, own = AutoTokenizer.from_pretrained(export), tokenizers.read(tmp_path / "run")
    assert loaded("The sea", "sinks").input_ids == own("The sea", "sinks").input_ids
    assert set(loaded("a")) == {"input_ids", "attention_mask"} and loaded.mask_token_id == frontend.mask_token_id
    assert loaded.model_max_length == frontend.max_positions
    assert len(text.Samples(data, frontend, split="train", folder=export)) == 12  # an export serves in place of a run
    text.save_preprocessor(export, export, data, frontend)


def test_bare_tokenizer_folders(tmp_path: Path, novels: Path):
    """vocab.json with merges.txt, and vocab.txt, neither with a tokenizer_config.json.

    Missing special tokens are added.
    """
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz,.",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/vocab.txt").write_text("\n".join(words))
    _, frontend = prepared(novels, tmp_path / "run_bert", tokenizer=str(tmp_path / "bert"))
    assert (frontend.pad_token_id, frontend.bos_token_id, frontend.eos_token_id, frontend.mask_token_id) == (0, 2, 3, 4)
    assert tokenizers.read(tmp_path / "run_bert")("The.").tokens() == ["[CLS]", "t", "##h", "##e", ".", "[SEP]"]

    with (tmp_path / "bert/vocab.txt").open("a", encoding="utf-8") as file:
        file.write("\nüber\nsüß")  # a vocabulary of lower case that has accents keeps those of texts
    assert tokenizers.load(str(tmp_path / "bert")).tokenize("Über SÜß") == ["über", "süß"]

    (tmp_path / "gpt").mkdir()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    (tmp_path / "gpt/vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate([*letters, "th", "<|endoftext|>"])})
    )
    (tmp_path / "gpt/merges.txt").write_text("#version: 0.2\nt h\n")
    _, frontend = prepared(novels, tmp_path / "run_gpt", tokenizer=str(tmp_path / "gpt"))
    assert frontend.bos_token_id == frontend.eos_token_id == 257 and (
        frontend.pad_token_id,
        frontend.mask_token_id,
    ) == (258, 259)
    assert tokenizers.read(tmp_path / "run_gpt")("the").tokens() == ["<|endoftext|>", "th", "e", "<|endoftext|>"]


@pytest.mark.parametrize(("name", "size"), [("gpt2", 50259), ("bert-base-uncased", 30522)])
def test_real_tokenizers(shared: Path, tmp_path: Path, novels: Path, name: str, size: int):
    data, frontend = prepared(novels, tmp_path / "run", tokenizer=str(shared / "data/tokenizers" / name))
    assert frontend.vocab_size == size
    batch = made(text.Samples(data, frontend, split="train", folder=tmp_path / "run"), 2)(0, 0, 1)[0][0]
    network = text.Frontend(frontend, 8, 2)
    assert network.position_table.num_embeddings == 66  # whatever the id of <pad>
    assert network.embed(**batch.inputs).shape == (*batch.inputs["input_ids"].shape, 8)


def test_errors_name_what_is_wrong(tmp_path: Path, novels: Path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none/readme").write_text("x")
    for settings, message in (
        ({"tokenizer": str(tmp_path / "none")}, r"holds no tokenizer: it has readme"),
        ({"tokenizer": str(tmp_path / "nowhere")}, r"data\.tokenizer .*nowhere.* is not a folder"),
        ({"vocab_size": 100}, r"data\.vocab_size is 100.*at least 261"),
        ({"break_mode": "eos"}, r"data\.break_mode is 'eos'; it may be complete_doc, none"),
        ({"block_size": 65}, r"data\.block_size 65 .*max_positions, which is 64"),
        ({"mask_prob": 0.0}, r"data\.mask_prob is 0\.0; it must be above 0 and at most 1"),
        ({"keep_token_prob": 0.5, "random_token_prob": 0.5}, r"sum to less than 1"),
        ({"text": "sentence"}, r"data\.text is 'sentence'; the columns .* are text"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(novels, tmp_path / "run", **settings)
    with pytest.raises(ValueError, match=r"data\.path is required"):
        prepared("", tmp_path / "run")
    with pytest.raises(ValueError, match="has no tokenizer"):
        text.Samples(text.DataConfig(path=str(novels)), text.FrontendConfig(), split="train", folder=tmp_path / "run")
    data, frontend = prepared(novels, tmp_path / "run")
    with pytest.raises(ValueError, match=r"frontend\.vocab_size 7"):
        text.Samples(data, replace(frontend, vocab_size=7), split="train", folder=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"blocks of data\.block_size 32 tokens, fewer than one batch: train\.batch_size is 999"
    ):
        made(text.Samples(data, frontend, split="train", folder=tmp_path / "run"), 999)


# Rows.


@pytest.mark.parametrize("relative", [False, True])
def test_files_of_another_encoding_are_named(relative, tmp_path: Path, monkeypatch):
    for name, encoding in (("one", "utf-8"), ("two", "latin-1"), ("sub/three", "latin-1"), ("four", "utf-16")):
        file = tmp_path / "books" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(["Über den Fluss", *["", "und weiter geht es"] * 9]), encoding=encoding)
    monkeypatch.chdir(tmp_path)
    data, frontend = prepared("books" if relative else tmp_path / "books", tmp_path / "run")
    found = text.Samples(data, frontend, split="train", folder=tmp_path / "run")
    assert not any("empty rows" in line for line in found.report.lines())
    assert len(found) == 38 and len(found.report.unreadable) == 2
    assert "text files of data.path that are not UTF-8: two.txt, sub/three.txt" in found.report.lines()


def test_empty_rows_of_a_table_of_texts_alone_are_told(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"text": "a b c"}\n{"text": " "}\n{"text": ""}\n{"text": "d e f"}\n')
    data, frontend = prepared(tmp_path, tmp_path / "run", max_bad_share=0.0)
    found = text.Samples(data, frontend, split="train", folder=tmp_path / "run")
    assert len(found) == 2 and "2 empty rows are taken for borders of documents" in found.report.lines()


def test_report_counts_lines_not_borders(samples: text.Samples):
    assert (samples.report.found, samples.report.usable, len(samples)) == (13, 12, 12)
    too_short = [reason for _, reason in samples.report.too_short]
    assert too_short == ["1 tokens, at least 2 are needed"] and samples.report.unreadable == []
    assert samples.report.amount.endswith("tokens") and samples.report.classes is None
    assert samples.corpus.documents.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    samples.report.check(0.2, "here")


def test_single_words_stay_where_they_are_asked_for(samples: text.Samples, tmp_path: Path):
    data = replace(samples.config, min_tokens=1)
    every = text.Samples(data, samples.frontend, split="train", folder=tmp_path / "run")
    assert len(every) == 13 and every.report.too_short == [] and every.view([0, 12]).inputs["input_ids"].shape[0] == 2


def test_bytes_that_are_no_text_are_counted(tmp_path: Path, novels: Path):
    data, frontend = prepared(novels, tmp_path / "run")
    broken = tmp_path / "broken.txt"
    broken.write_bytes(novels.read_bytes() + b"\xff\xfe not utf-8\n")
    found = text.Samples(replace(data, path=str(broken)), frontend, split="train", folder=tmp_path / "run").report
    assert [reason for _, reason in found.unreadable] == [
        "not UTF-8, or U+FFFD in it, which stands for what is not"
    ] and found.usable == 12


def test_table_of_labelled_sentences(tmp_path: Path):
    for split, count in (("train", 40), ("test", 8)):
        rows = [f'"{line}",{i % 3},kind{i % 3}' for i, line in enumerate((LINES * 4)[:count])]
        (tmp_path / f"{split}.csv").write_text(
            "text,label,category\n" + "\n".join(rows) + ('\n"",1,kind1\n' if split == "test" else "\n")
        )
    data, frontend = prepared(tmp_path, tmp_path / "run")
    test = text.Samples(data, frontend, split="test", folder=tmp_path / "run")
    assert (test.report.found, len(test)) == (9, 8) and test.report.classes == {"0": 3, "1": 3, "2": 2}
    assert (
        test.column("label").tolist() == ["0", "1", "2", "0", "1", "2", "0", "1"]
        and test.column("category")[1] == "kind1"
    )
    with pytest.raises(ValueError, match="no column 'speaker'; its columns are text, label, category"):
        test.column("speaker")
    view = test.view([0, 5])
    tokenizer = tokenizers.read(tmp_path / "run")
    expected = tokenizer([LINES[0], LINES[5]], truncation=True, max_length=32, padding=True)
    assert (
        view.inputs["input_ids"].tolist() == expected.input_ids
        and view.inputs["attention_mask"].tolist() == expected.attention_mask
    )
    assert view.mask is None and view.modality == "text" and test.ids[5] == "test:5"
    assert test.lengths[[0, 5]].tolist() == view.inputs["attention_mask"].sum(1).tolist()
    raw = test.raw([0, 5])
    assert raw.shape == (2, frontend.vocab_size) and np.allclose((raw**2).sum(1), 1) and not raw[:, [0, 1, 2]].any()


def test_demo_needs_no_files(tmp_path: Path):
    data, frontend = prepared("demo", tmp_path, vocab_size=600, block_size=64)
    train, test = (text.Samples(data, frontend, split=split, folder=tmp_path) for split in ("train", "test"))
    assert train.classes == test.classes and len(train.classes) == 10
    assert set(train.column("label")) == set(test.column("label")) == set(range(10))
    assert 2 * len(test) < len(train) < 4 * len(test) + 40
    assert not set(train.dataset["text"]) & set(test.dataset["text"])
    with pytest.raises(ValueError, match="the demo has the splits train, test"):
        text.Samples(data, frontend, split="dev", folder=tmp_path)


# Blocks.


def slow_blocks(samples: text.Samples | SimpleNamespace, capacity: int) -> list[list[int]]:
    """Whole rows of a document while they fit.

    A row that does not fit a block is cut into full pieces and a rest that goes on as a row.
    """
    done, current, document = [], [], 0
    for row, number in enumerate(samples.corpus.documents):
        ids = samples.corpus.tokens[samples.corpus.offsets[row] : samples.corpus.offsets[row + 1]].tolist()
        if number != document or len(current) + len(ids) > capacity:
            done, current, document = [*done, current], [], number
        while len(ids) > capacity:
            done, ids = [*done, ids[:capacity]], ids[capacity:]
        current = current + ids
    return [block for block in [*done, current] if len(block) > 1]


def blocks(corpus: corpora.Corpus, capacity: int, break_mode: str) -> np.ndarray:
    return np.concatenate([*corpora.blocks(corpus, capacity, break_mode)])


@pytest.mark.parametrize("capacity", [15, 31, 60, 500])
def test_blocks_hold_whole_lines_of_one_document(samples: text.Samples, capacity: int):
    found = [
        samples.corpus.tokens[start:stop].tolist() for start, stop in blocks(samples.corpus, capacity, "complete_doc")
    ]
    assert found == slow_blocks(samples, capacity)
    assert max(map(len, found)) <= capacity and (capacity < 500 or len(found) == 3)


def test_stream_is_cut_regardless(samples: text.Samples):
    found = blocks(samples.corpus, 31, "none")
    assert (np.diff(found)[:-1] == 31).all() and (found[1:, 0] == found[:-1, 1]).all() and found[0, 0] == 0


def test_shuffled_blocks_hold_each_row_once_in_another_order(samples: text.Samples):
    def rows(corpus: corpora.Corpus) -> list[list[int]]:
        return [corpus.tokens[start:stop].tolist() for start, stop in pairwise(corpus.offsets)]

    before, mixed = samples.corpus, corpora.shuffled(samples.corpus, seed=1)
    of = dict(zip(before.rows, rows(before), strict=True))
    assert (
        rows(mixed) == [of[row] for row in mixed.rows]
        and mixed.rows.tolist() != sorted(mixed.rows) == before.rows.tolist()
    )
    assert rows(corpora.shuffled(before, 1)) == rows(mixed) != rows(corpora.shuffled(before, 2))
    batches = made(samples, break_mode="shuffled")
    mixed = corpora.shuffled(before, batches.seed)
    found = [mixed.tokens[start:stop].tolist() for start, stop in batches.blocks]
    assert found == slow_blocks(SimpleNamespace(corpus=mixed), 31)
    inputs = batches(0, 0, 1)[0][0].inputs
    read = [
        ids[1:real]
        for ids, real in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True)
    ]
    assert all(block in found for block in read)


# Batches and masks.


def test_two_parts_hold_the_rows_of_one(samples: text.Samples):
    batches = pickle.loads(pickle.dumps(made(samples)))
    assert batches.steps_per_epoch == len(batches.blocks) // 4
    for step in (0, 1, 7):
        (whole,), ids = batches(step, 0, 1)
        parts = [batches(step, part, 2) for part in range(2)]
        for part, ((view,), names) in enumerate(parts):
            assert names == ids[part::2]
            assert all(torch.equal(view.inputs[name], whole.inputs[name][part::2]) for name in whole.inputs)
            assert torch.equal(view.mask.hidden, whole.mask.hidden[part::2])
    state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    batches(5, 0, 1)
    assert state == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_blocks_start_with_bos_and_padding_is_never_hidden(samples: text.Samples):
    shares, hidden_bos = [], 0
    for step in range(40):
        ((view,), _) = made(samples, 8)(step, 0, 1)
        ids, hidden = view.inputs["input_ids"], view.mask.hidden
        padding = view.inputs["attention_mask"] == 0
        assert (ids[:, 0] == 0).all() and torch.equal(padding, ids == 1) and not (hidden & padding).any()
        assert (view.padding is None and not padding.any()) or torch.equal(view.padding, padding)
        assert hidden.any(1).all() and "corrupted_ids" not in view.inputs
        shares.append(hidden.sum() / (~padding).sum())
        hidden_bos += int(hidden[:, 0].sum())
    assert hidden_bos > 0  # <s> may be hidden too
    assert 0.24 < np.mean(shares) < 0.36  # spans overlap: 1 - (1 - .35 / 4) ** 4 = 0.31


def test_berts_variant(samples: text.Samples):
    chosen = kept = random = 0
    for step in range(60):
        ((view,), _) = made(samples, 8, mask_prob=0.5, mask_length=1, random_token_prob=0.1, keep_token_prob=0.1)(
            step, 0, 1
        )
        ids, corrupted, hidden = view.inputs["input_ids"], view.inputs["corrupted_ids"], view.mask.hidden
        assert (corrupted[hidden] == samples.frontend.mask_token_id).all()
        changed = (corrupted != ids) & ~hidden
        assert (corrupted[changed] > 3).all() and (corrupted[changed] != samples.frontend.mask_token_id).all()
        chosen, random = chosen + int(hidden.sum()), random + int(changed.sum())
        kept += int((view.inputs["attention_mask"].sum(1) // 2).sum())  # how many were chosen in all
    assert abs(chosen / kept - 0.8) < 0.03 and abs(random / kept - 0.1) < 0.03


# Frontend.


def network(dim: int = 16, **fields) -> text.Frontend:
    made = text.Frontend(text.FrontendConfig(vocab_size=40, max_positions=12, mask_token_id=39, **fields), dim, 2)
    (
        torch.nn.init.constant_(made.tokens.weight, torch.nan),
        torch.nn.init.constant_(made.position_table.weight, torch.nan),
    )
    made.init_weights()
    return made


def test_init_fills_everything():
    made = network(256)
    assert made.position_table.weight.shape == (14, 256)
    for table in (made.tokens.weight, made.position_table.weight):
        assert torch.isfinite(table).all() and not table[1].any() and abs(table[2:].std() - 0.02) < 0.001
    assert all(parameter.requires_grad for parameter in made.parameters()) and not list(made.buffers())


def test_positions_count_what_is_not_padding():
    made = network()
    padding = torch.tensor([[False] * 5, [False, True, False, False, True]])
    rows = torch.tensor([[2, 3, 4, 5, 6], [2, 1, 3, 4, 1]])
    tokens = torch.zeros(2, 5, 16)
    assert torch.equal(made.positions(tokens, padding), made.position_table.weight[rows])
    assert torch.equal(
        made.positions(tokens, None).expand(2, -1, -1), made.position_table.weight[rows[:1]].expand(2, -1, -1)
    )
    with pytest.raises(ValueError, match="13 tokens; the model reads at most 12"):
        made.positions(torch.zeros(1, 13, 16), None)


def test_hide_writes_the_mask_embedding():
    made = network()
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    hidden = torch.tensor([[False, True, False, False], [True, False, False, False]])
    tokens = made.embed(input_ids=ids, attention_mask=(ids != 1).long())
    assert torch.equal(tokens, made.tokens.weight[ids]) and not tokens[1, 3].any()
    expected = made.tokens.weight[torch.where(hidden, 39, ids)]
    assert torch.equal(made.hide(tokens, hidden, input_ids=ids), expected)
    made.hide(tokens, hidden, input_ids=ids).sum().backward()
    assert made.tokens.weight.grad[39].any() and not made.tokens.weight.grad[1].any()
    twice = hidden.repeat_interleave(2, dim=0)
    corrupted = torch.tensor([[0, 39, 9, 2], [39, 7, 2, 1]])
    assert torch.equal(
        made.hide(tokens.repeat_interleave(2, dim=0), twice, input_ids=ids, corrupted_ids=corrupted),
        made.tokens.weight[torch.where(twice, 39, corrupted.repeat_interleave(2, 0))],
    )


def test_alibi_is_a_setting_of_small_budgets():
    assert network().bias(4) is None and network().bias(4, torch.zeros(1, 2, dtype=torch.long)) is None
    made = network(alibi="fixed")
    distance = torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    slopes = torch.tensor([2.0**-4, 2.0**-8])  # of two heads
    torch.testing.assert_close(made.bias(3), -(slopes[:, None, None] * distance)[None])
    torch.testing.assert_close(made.bias(3, torch.tensor([[2, 0]]))[0, :, 0, 1], -2 * slopes)
    with pytest.raises(ValueError, match="alibi is 'near'; it may be none, fixed, one, head"):
        network(alibi="near")


def test_padding_comes_from_the_attention_mask_or_the_ids():
    made = network()
    ids = torch.tensor([[0, 5, 2], [0, 2, 1]])
    assert torch.equal(made.padding(ids), ids == 1) and torch.equal(made.padding(ids, (ids != 1).long()), ids == 1)
    assert made.padding(ids[:1]) is None and made.padding(ids, torch.ones_like(ids)) is None


def test_frontend_wants_the_tokenizers_numbers():
    with pytest.raises(ValueError, match=r"mask_token_id -1 .* vocab_size is 0; `prepare`"):
        text.Frontend(text.FrontendConfig(), 8, 2)
