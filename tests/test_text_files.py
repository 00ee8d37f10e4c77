"""Text files and tokens as users have them: encodings, names of special tokens in a text, words without an end."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from d2v.modalities import text
from d2v.modalities.common import sources
from d2v.modalities.common.sources import TEXTS, open_source
from d2v.modalities.text import tokenizer as tokenizers

LINES = [
    f"The {a} {b} {c} the sea, {n} times."
    for n, (a, b, c) in enumerate([("ship", "is", "on"), ("café", "faces", "über")] * 20)
]
ZEROS = "no text: it holds zero bytes; save it as UTF-8"
LITERALS = "<s> and </s>, <mask> <pad><unk> [CLS] [SEP]</s>"


def samples(path: Path, folder: Path, **settings) -> text.Samples:
    data = text.DataConfig(path=str(path), **{"block_size": 64, "vocab_size": 300, **settings})
    frontend = text.FrontendConfig(max_positions=64)
    text.prepare(data, frontend, folder, seed=0)
    return text.Samples(data, frontend, split="train", folder=folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_of_byte_order_are_honoured(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("\n".join(LINES), encoding=encoding)
    assert list(open_source(str(tmp_path), "train", TEXTS, "text")["text"]) == LINES
    found = samples(tmp_path, tmp_path / "run")
    assert found.report.usable == len(LINES) and found.report.unreadable == []
    (tmp_path / "b.txt").write_text("plain\n", encoding="utf-8")
    (tmp_path / "c.txt").write_bytes("\ufeffzuletzt ü\n".encode("utf-16-be"))
    assert list(open_source(str(tmp_path), "train", TEXTS, "text")["text"]) == [*LINES, "plain", "zuletzt ü"]


def test_bytes_that_are_no_text_are_bad_rows(tmp_path):
    (tmp_path / "a.txt").write_bytes("\n".join(LINES).encode() + b"\nbinary \0\0 rest of it\n")
    found = samples(tmp_path, tmp_path / "run").report
    assert found.usable == len(LINES) and [why for _, why in found.unreadable] == [ZEROS]
    (tmp_path / "a.txt").write_bytes("\n".join(LINES).encode("utf-16-le"))  # no mark says so
    with pytest.raises(ValueError, match=rf"none of the \d+ text samples of .* is usable: train:0: {ZEROS}"):
        samples(tmp_path, tmp_path / "run")


def test_what_is_no_file_is_named_and_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("a line\n")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone.txt")
    dataset = open_source(str(tmp_path), "train", TEXTS, "text")
    assert list(dataset["text"]) == ["a line"]
    assert sources.notes(dataset) == ["skipped: 2 that are no files (b.txt, c.txt)"]


def special_ids(tokenizer) -> set[int]:
    return {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}


def test_names_of_special_tokens_are_text_to_a_trained_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([*LINES, *[LITERALS] * 50]))
    found = samples(tmp_path, tmp_path / "run")
    tokenizer = tokenizers.read(tmp_path / "run")
    assert not special_ids(tokenizer) & set(found.corpus.tokens[:-1].tolist()) - {tokenizer.eos_token_id}
    assert (found.corpus.tokens == tokenizer.eos_token_id).sum() == len(LINES) + 50  # one behind each row
    (ids,) = tokenizers.encode(tokenizer, [LITERALS])
    assert tokenizer.decode(ids) == LITERALS and not special_ids(tokenizer) & set(ids)
    assert tokenizer("<mask>").input_ids.count(tokenizer.mask_token_id) == 1  # as everybody writes it elsewhere


def unigram() -> Tokenizer:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
    pieces += [(letter, -5.0) for letter in "▁<>/spadmkunTheit.,[]CLSEP"]
    backend = Tokenizer(models.Unigram([*dict(pieces).items()], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


def words() -> Tokenizer:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "the", "<", "s", ">"]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


@pytest.mark.parametrize("make", [unigram, words])
def test_names_of_special_tokens_are_text_to_a_loaded_tokenizer(tmp_path, make):
    (tmp_path / "own").mkdir()
    make().save(str(tmp_path / "own" / "tokenizer.json"))
    tokenizer = tokenizers.load(str(tmp_path / "own"))
    for line in (LITERALS, "<s>", "</s>", "the <s> the", "<s></s><mask>", "<<s>>"):
        (ids,) = tokenizers.encode(tokenizer, [line])
        assert ids and not special_ids(tokenizer) & set(ids), line
    if make is unigram:
        letters = tokenizer.convert_ids_to_tokens(tokenizers.encode(tokenizer, ["the <s>"])[0])
        assert "".join(letters).replace("▁", "") == "the<s>"


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_names_of_special_tokens_are_text_to_published_tokenizers(shared, name):
    tokenizer = tokenizers.load(str(shared / "data/tokenizers" / name))
    (ids,) = tokenizers.encode(tokenizer, [f"{LITERALS} <|endoftext|> [MASK] [PAD]"])
    assert not special_ids(tokenizer) & set(ids)


def test_a_megabyte_without_blanks_is_tokenized_in_seconds(tmp_path):
    letters = random.Random(0).choices("ACGT", k=1_000_000)
    (tmp_path / "dna.txt").write_text("".join(letters) + "\n" + "\n".join(LINES))
    start = time.perf_counter()
    found = samples(tmp_path, tmp_path / "run", vocab_size=1000)
    assert time.perf_counter() - start < 60  # 399 s before
    tokenizer = tokenizers.read(tmp_path / "run")
    assert len(tokenizer) == 1000 and tokenizer.decode(found.corpus.tokens[: found.corpus.offsets[1] - 1]) == "".join(
        letters
    )


def test_ordinary_text_has_the_tokens_that_it_had(tmp_path):
    """Cutting words of a thousand bytes changes neither merges nor what the tokenizer's file says."""
    lines = [*LINES, "x" * 999, "é" * 400, "a " * 5000]
    trained = tokenizers.train(lines, 400)
    backend = tokenizers._byte_level(models.BPE())
    backend.train_from_iterator(
        lines,
        tokenizers.trainers.BpeTrainer(
            vocab_size=399,
            min_frequency=2,
            special_tokens=list(tokenizers.SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    plain = tokenizers.adapt(backend, {})
    assert json.loads(trained.backend_tokenizer.to_str()) == json.loads(plain.backend_tokenizer.to_str())
    ids = [plain.backend_tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
    assert tokenizers.encode(trained, lines) == ids and all(np.array(row).max() < 400 for row in ids)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", '{"version": "1.0", "version": "1.0"}', "cannot be read"),
        ("tokenizer_config.json", "{}", "has no bos_token: its tokenizer_config.json is damaged or incomplete"),
    ],
)
def test_a_damaged_tokenizer_of_an_export_is_one_line(name: str, text: str, said: str, tmp_path: Path):
    tokenizer = tokenizers.train(["one two three"] * 20, 300)
    tokenizers.save(tokenizer, tmp_path)
    place = tokenizers.find(tmp_path)
    (place / name).write_text(text)
    with pytest.raises(ValueError, match="the tokenizer in") as error:
        tokenizers.read(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def reviews(folder: Path, count: int = 12) -> Path:
    """`count` films in pos/ and in neg/, of two lines each."""
    for kind, word in (("neg", "dull"), ("pos", "fine")):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            (folder / kind / f"{number}_7.txt").write_text(f"Film {number} was {word}.\n\nI saw it {number} times.\n")
    return folder


def test_files_in_folders_of_classes_are_samples(tmp_path):
    found = samples(reviews(tmp_path / "data"), tmp_path / "run")
    assert found.report.usable == 24 and found.report.classes == {"neg": 12, "pos": 12}
    assert found.ids[0] == "neg/0_7.txt" and found.picture(0) == "Film 0 was dull.\n\nI saw it 0 times."
    assert found.column("label").tolist() == [0] * 12 + [1] * 12 and found.classes == ["neg", "pos"]
    said = "a sample is a file, its folder the class (data.sample_by=line takes lines, without classes)"
    assert said in found.report.lines()
    starts = found.corpus.offsets[:-1].tolist()  # no block holds parts of two films, as these are sorted by class
    assert text.batches(found, found.config, found.frontend, 4, 0).blocks[:, 0].tolist() == starts


def test_lines_of_class_folders_and_files_of_a_flat_one_can_be_asked_for(tmp_path):
    folder = reviews(tmp_path / "data")
    lines = samples(folder, tmp_path / "lines", sample_by="line")
    assert lines.report.usable == 48 and lines.dataset.column_names == ["text"] and lines.classes is None
    files = samples(folder / "pos", tmp_path / "files", sample_by="document")
    assert files.report.usable == 12 and files.ids[1] == "10_7.txt" and "a sample is a file" in files.report.lines()
    assert samples(folder / "pos", tmp_path / "flat").report.usable == 24
    (tmp_path / "one" / "inner").mkdir(parents=True)
    (tmp_path / "one" / "inner" / "a.txt").write_text("\n".join(LINES))
    assert samples(tmp_path / "one", tmp_path / "single").report.usable == len(LINES)  # one folder is no class


def test_class_folders_may_lie_in_folders_of_splits_and_beside_a_readme(tmp_path):
    reviews(tmp_path / "data" / "train")
    (tmp_path / "data" / "test" / "pos").mkdir(parents=True)
    (tmp_path / "data" / "test" / "pos" / "a.txt").write_text("The only one of this split.")
    (tmp_path / "data" / "train" / "README.txt").write_text("Films.")
    data = text.DataConfig(path=str(tmp_path / "data"), block_size=64, vocab_size=300)
    frontend = text.FrontendConfig(max_positions=64)
    text.prepare(data, frontend, tmp_path / "run", seed=0)
    train, test = (text.Samples(data, frontend, split=split, folder=tmp_path / "run") for split in ("train", "test"))
    assert train.report.usable == 24 and train.report.splits == ["train", "test"]
    assert "not read, beside the folders of classes: 1 (README.txt)" in train.report.lines()
    assert test.ids == ["test/pos/a.txt"] and test.column("label").tolist() == [1]


def test_books_in_folders_stay_lines(tmp_path):
    for author in ("austen", "doyle"):
        (tmp_path / "data" / author).mkdir(parents=True)
        (tmp_path / "data" / author / "book.txt").write_text("\n".join(LINES * 60))
    found = samples(tmp_path / "data", tmp_path / "run")
    assert found.report.usable == 2 * 60 * len(LINES) and found.dataset.column_names == ["text"]
    assert any("a sample is a line, as files have 8" in line for line in found.report.lines())


@pytest.mark.parametrize("path", ["table", "demo"])
def test_samples_by_lines_or_files_are_of_text_files(path, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfine,1\ndull,0\n")
    with pytest.raises(ValueError, match=r"data.sample_by is 'line', and nothing reads it: .*: leave it out$"):
        samples(tmp_path if path == "table" else Path("demo"), tmp_path / "run", sample_by="line")
