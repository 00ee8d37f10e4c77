"""Data2VecTextModel and its tasks: text as in RoBERTa, post-norm."""

import logging
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils.hub import cached_file

from d2v.interop.huggingface import shared
from d2v.interop.huggingface.shared import Head, Kind
from d2v.interop.renaming import Prefixes
from d2v.models.task_models import D2vForSequenceClassification

log = logging.getLogger(__name__)
MODALITY = "text"
MODEL = transformers.Data2VecTextModel
BARE = {"add_pooling_layer": False}
SETTINGS = shared.SETTINGS | {
    "vocab_size": "frontend.vocab_size",
    "pad_token_id": "frontend.pad_token_id",
    "bos_token_id": "frontend.bos_token_id",
    "eos_token_id": "frontend.eos_token_id",
    "hidden_dropout_prob": "trunk.dropout",
    "attention_probs_dropout_prob": "trunk.attention_dropout",
}
REQUIRED = shared.REQUIRED | {"is_decoder": False, "add_cross_attention": False}
HELD = shared.POST_NORM | {
    "frontend.embedding_norm": (
        (False,),
        "the norm of its embeddings is before the first block, and it has no 2.0 trunk",
    )
}
HEADS = {
    transformers.Data2VecTextForSequenceClassification: Head(
        D2vForSequenceClassification,
        [("classifier.dense.", "head.dense."), ("classifier.out_proj.", "head.out.")],
        lambda config: shared.classifier(
            config, pooling="first", dense_dim=config.hidden_size, activation="tanh", dropout=_dropout(config)
        ),
        lambda ours: {
            "classifier_dropout": None if ours["task.dropout"] == ours["trunk.dropout"] else ours["task.dropout"]
        },
    )
}
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt")
POSITIONS, TYPES = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"


def _dropout(config: Any) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def read_beside(source: str, config: Any) -> dict[str, Any]:
    """The id of the mask token, which a stock config does not have, where a whole tokenizer says it."""
    try:
        names = [name for name in TOKENIZERS if cached_file(source, name, _raise_exceptions_for_missing_entries=False)]
        if "tokenizer.json" not in names and names != ["vocab.json", "merges.txt"]:
            return {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of damaged files whatever transformers and tokenizers raise
        log.warning("the tokenizer of %s cannot be read: %s", source, " ".join(str(error).split())[:300])
        return {}
    mask = tokenizer.mask_token_id
    return {"frontend.mask_token_id": mask} if mask is not None and mask < config.vocab_size else {}


def read_settings(config: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    """The mask token is the last one, as RoBERTa's, where no tokenizer beside it says otherwise."""
    pad = config.pad_token_id
    return {
        "frontend.position_offset": pad,  # it counts positions from there
        "frontend.max_positions": config.max_position_embeddings - pad - 1,
        "frontend.mask_token_id": config.vocab_size - 1,
    }


def write_settings(ours: dict[str, Any]) -> dict[str, Any]:
    """One token type; positions are counted from the padding id."""
    return {
        "max_position_embeddings": ours["frontend.max_positions"] + ours["frontend.pad_token_id"] + 1,
        "type_vocab_size": 1,
    }


def names(ours: dict[str, Any]) -> Prefixes:
    """Theirs -> ours."""
    prefixes = shared.blocks(
        ours["trunk.depth"],
        "encoder.layer.{n}.",
        shared.projections("attention.self.", shared.WORDS)
        | {
            "attention.output.dense.": "attention.proj.",
            "attention.output.LayerNorm.": "norm1.",
            "intermediate.dense.": "mlp.fc1.",
            "output.dense.": "mlp.fc2.",
            "output.LayerNorm.": "norm2.",
        },
    )
    return [
        *prefixes,
        ("embeddings.word_embeddings.", "frontends.text.tokens."),
        ("embeddings.position_embeddings.", "frontends.text.position_table."),
        ("embeddings.LayerNorm.", "trunk.input_norm."),
    ]


def to_our_tensors(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """Token type 0, which every token has, becomes part of the positions; the others have no place."""
    types, pad = state[TYPES], ours["frontend.pad_token_id"]
    if (types[1:] != 0).any():
        log.warning(
            "the token types 1 to %d are left out: d2v gives every token type 0, as data2vec's tokenizer does",
            len(types) - 1,
        )
    positions = torch.cat([state[POSITIONS][: pad + 1], state[POSITIONS][pad + 1 :] + types[0]])
    others = {key: value for key, value in state.items() if key != TYPES}
    return {**others, POSITIONS: _moved(positions, pad, ours["frontend.position_offset"])}


def to_their_tensors(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """The one token type is zero."""
    positions = _moved(state[POSITIONS], ours["frontend.position_offset"], ours["frontend.pad_token_id"])
    return {**state, TYPES: torch.zeros(1, ours["trunk.dim"]), POSITIONS: positions}


def _moved(positions: Tensor, old: int, new: int) -> Tensor:
    """The table with the row of padding at `new` instead of `old`; nothing reads the rows before it."""
    return positions if old == new else torch.cat([positions.new_zeros(new, positions.shape[1]), positions[old:]])


KIND = Kind(
    modality=MODALITY,
    model=MODEL,
    bare=BARE,
    heads=HEADS,
    settings=SETTINGS,
    required=REQUIRED,
    held=HELD,
    read_settings=read_settings,
    write_settings=write_settings,
    names=names,
    to_our_tensors=to_our_tensors,
    to_their_tensors=to_their_tensors,
    read_beside=read_beside,
)
