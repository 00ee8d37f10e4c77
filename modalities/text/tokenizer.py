"""Trains, finds, adapts and copies the tokenizer of a run.

Always a fast one that puts <s> before and </s> after, with pad and mask tokens.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, BertWordPieceTokenizer, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from d2v import files
from d2v.config.bases import read_yaml
from d2v.modalities.text.frontend import MODALITY
from d2v.training.preparation import data_of

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Bytes of a word that merges are learned from at a time: the trainer's time grows with the square of a word's length
LONG_WORD = Regex(r"[\s\S]{1000}")
# files that make a tokenizer
WHOLE: tuple[set[str], ...] = ({FILES[0]}, {"vocab.json", "merges.txt"}, {"vocab.txt"})
# folders of a run or an export that may hold its tokenizer
WITHIN = ("student", "teacher", "tokenizer", MODALITY)
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3 of a trained tokenizer, as RoBERTa has them; <mask> is last
# What may serve as each special token, best first. Missing ones are added in the order of the keys: <mask> last.
NAMES = {
    "bos": ("<s>", "[CLS]", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]"),
    "eos": ("</s>", "[SEP]", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}


def train(lines: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` tokens, special ones included. ValueError: fewer than the bytes need."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIALS) + 1
    if vocab_size < smallest:
        raise ValueError(
            f"data.vocab_size is {vocab_size}: "
            f"256 bytes and {len(SPECIALS) + 1} special tokens need at least {smallest}"
        )
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    own = backend.pre_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([own, pre_tokenizers.Split(LONG_WORD, "isolated")])
    backend.train_from_iterator(lines, trainer)
    backend.pre_tokenizer = own
    return adapt(backend, {})


def load(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a local folder or of the Hub, adapted. ValueError: neither, or a folder without its files."""
    folder = Path(name).expanduser()
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if names and "tokenizer_config.json" not in names:
        return adapt(_bare(name, folder, names), {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if names else name, trust_remote_code=False)
    except Exception as error:  # of damaged files whatever transformers and tokenizers raise
        where = f"a folder (looked for {folder.absolute()})" if not names else "readable"
        reason = _first_line(error)
        if "trust_remote_code" in str(error):
            reason = "its tokenizer_config.json names code of its own (auto_map), which is not run"
        raise ValueError(f"data.tokenizer {name!r} is not {where}, nor to be had from the Hub: {reason}") from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"data.tokenizer {name!r} is a {type(tokenizer).__name__}, which has no fast version; give one that has"
        )
    roles = {"bos": tokenizer.cls_token or tokenizer.bos_token, "eos": tokenizer.sep_token or tokenizer.eos_token}
    roles |= {"pad": tokenizer.pad_token, "unk": tokenizer.unk_token, "mask": tokenizer.mask_token}
    return adapt(tokenizer.backend_tokenizer, {role: token for role, token in roles.items() if token})


def _bare(name: str, folder: Path, names: set[str]) -> Tokenizer:
    """The tokenizer of a folder that says nothing of its special tokens. ValueError: there is none."""
    try:
        if "tokenizer.json" in names:
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if {"vocab.json", "merges.txt"} <= names:
            return _byte_level(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        if "vocab.txt" in names:
            return _word_piece(folder / "vocab.txt")
    except Exception as error:  # tokenizers' own is no subclass of it
        raise ValueError(f"data.tokenizer {name!r} cannot be read: {' '.join(str(error).split())}") from None
    raise ValueError(
        f"data.tokenizer {name!r} holds no tokenizer: it has {', '.join(sorted(names)[:8])}; needed is "
        "tokenizer.json, or vocab.json and merges.txt, or vocab.txt, or tokenizer_config.json and what it names"
    )


def adapt(backend: Tokenizer, given: dict[str, str]) -> PreTrainedTokenizerFast:
    """`backend` with every special token of NAMES, those in `given` by the names there.

    It writes <s> A </s> or <s> A </s> </s> B </s>.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    roles = {}
    for role, names in NAMES.items():
        known = [name for name in names if name in vocab]
        roles[role] = given.get(role) or (known or names)[0]
    if roles["unk"] not in vocab:  # bytes know no unknown token: do not spend an id on one
        del roles["unk"]
    if roles["pad"] in (roles["bos"], roles["eos"]):  # a common trick for GPT-2, which would take every <s> for padding
        roles["pad"] = NAMES["pad"][0]
    # lstrip: the blank before <mask> is part of what it replaces
    backend.add_special_tokens(
        [AddedToken(name, lstrip=role == "mask", special=True, normalized=False) for role, name in roles.items()]
    )
    bos, eos = roles["bos"], roles["eos"]
    special = [(name, backend.token_to_id(name)) for name in dict.fromkeys((bos, eos))]
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", pair=f"{bos} $A {eos} {eos} $B {eos}", special_tokens=special
    )
    backend.no_truncation()
    backend.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token=bos,
        sep_token=eos,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": name for role, name in roles.items()},
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes folder/tokenizer whole or not at all: several processes may prepare the same run."""
    with files.writing(folder / "tokenizer"):
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".tokenizer-", dir=folder))
        try:
            tokenizer.save_pretrained(draft)
            files.record(draft, files.files_in(draft))
            draft.chmod(0o755)
        except BaseException:
            shutil.rmtree(draft)
            raise
    try:
        draft.rename(folder / "tokenizer")
    except OSError:
        if not (folder / "tokenizer" / FILES[0]).is_file():  # a folder with other files
            _move_beside_others(draft, folder / "tokenizer")
        shutil.rmtree(draft)


def _move_beside_others(draft: Path, place: Path) -> None:
    """Moves files into a folder; one of the same name that d2v did not write stays there, as `.kept`."""
    ours = {*files.recorded(place), files.RECORD}
    for file in draft.iterdir():
        target = place / file.name
        if file.name not in ours and target.exists():
            target.rename(files.unused(target))
        file.replace(target)


def find(folder: Path) -> Path | None:
    """Where the tokenizer of a run folder (in tokenizer/) or of an export (in itself) lies; None if there is none."""
    return next((place for place in (folder / "tokenizer", folder) if (place / FILES[0]).is_file()), None)


def read(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a run or export. ValueError: there is none, or it is damaged."""
    place = find(folder)
    if place is None:
        raise ValueError(
            f"{folder} has no tokenizer: looked for {folder / 'tokenizer' / FILES[0]} and {folder / FILES[0]}"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    except Exception as error:  # of damaged files whatever transformers and tokenizers raise
        raise ValueError(f"the tokenizer in {place} cannot be read: {_first_line(error)}") from error
    for name in ("bos", "eos", "pad", "mask"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise ValueError(f"the tokenizer in {place} has no {name}_token: its {FILES[1]} is damaged or incomplete")
    return tokenizer


def of(folder: Path, name: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer of a run or export, or else the one of this name. ValueError: there is neither."""
    return load(name) if name and find(folder) is None else read(folder)


def of_model(source: Path) -> str | None:
    """What `load` takes for the tokenizer of a run, an export, a folder of transformers or a Hub name; None: none."""
    for place in (source / "export", source, source / "tokenizer"):
        names = {file.name for file in place.iterdir()} if place.is_dir() else set()
        if any(files_of_one <= names for files_of_one in WHOLE):
            return str(place)
    if source.exists() or len(source.parts) > 2 or source.is_absolute():
        return None
    try:
        return str(source) if cached_file(str(source), FILES[0]) else None
    except OSError:
        return None


def same(name: str, place: str) -> bool:
    """Whether two tokenizers turn text into the same ids. ValueError: `name` is none."""
    run = Path(place)
    while run.name in WITHIN:
        run = run.parent
    for saved in (run / "pretraining.yaml", run / "config.yaml"):  # it may have been named so, and not be at hand
        if saved.is_file() and data_of(read_yaml(saved), MODALITY).get("tokenizer") == name:
            return True
    return load(name).backend_tokenizer.to_str() == load(place).backend_tokenizer.to_str()


def longest(place: str) -> int:
    """The most tokens that the model of a tokenizer reads; a very large number where the tokenizer does not say."""
    config = Path(place) / FILES[1]
    found = json.loads(config.read_text()).get("model_max_length") if config.is_file() else None
    return int(found) if found else sys.maxsize


def copy(source: Path, target: Path) -> None:
    """Copies the tokenizer files of a run or export into `target` itself. ValueError: `source` has none."""
    place = find(source)
    if place is None:
        raise ValueError(f"{source} has no tokenizer to copy")
    for name in FILES:
        if (place / name).is_file() and place.resolve() != target.resolve():
            shutil.copyfile(place / name, target / name)


def encode(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> list[list[int]]:
    """Ids of each line without special tokens, on all cores; the name of a special token in a line, <s>, is text."""
    # said aloud, it does not warn when workers fork later; they never tokenize
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        encoded = [encoding.ids for encoding in backend.encode_batch_fast(lines, add_special_tokens=False)]
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        for row, ids in enumerate(encoded):
            if not special.isdisjoint(ids):  # a vocabulary whose own pieces they are
                encoded[row] = _apart(tokenizer, lines[row], special)
    finally:
        backend.encode_special_tokens = False
    return encoded


def _apart(tokenizer: PreTrainedTokenizerFast, line: str, special: set[int]) -> list[int]:
    """Ids of a line in which the names of special tokens are cut behind their first letter."""
    names = "|".join(re.escape(name) for name in tokenizer.all_special_tokens)
    pieces = re.split(f"(?<=(?=(?:{names})).)", line)
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch_fast(pieces, add_special_tokens=False):
        ids += [number for number in encoding.ids if number not in special]
    return ids


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of all tokens that are not special."""
    special = set(tokenizer.all_special_ids)
    return sorted(number for number in tokenizer.get_vocab().values() if number not in special)


def _byte_level(model: models.BPE) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_piece(path: Path) -> Tokenizer:
    words = path.read_text(encoding="utf-8").split("\n")
    words = [word for word in words if not word.startswith("[")]
    lowercase = not any(word != word.lower() for word in words)
    # BERT's lowercase vocabularies have no accents in words, though some have combining marks as pieces of their own
    accents = any(len(word.removeprefix("##")) > 1 and _has_accent(word) for word in words)
    return BertWordPieceTokenizer(str(path), lowercase=lowercase, strip_accents=lowercase and not accents)._tokenizer


def _has_accent(word: str) -> bool:
    return any(unicodedata.category(letter) == "Mn" for letter in unicodedata.normalize("NFD", word))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
