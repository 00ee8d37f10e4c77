"""Settings of text: what is read and how, and what is joined, hidden and changed in pretraining."""

from dataclasses import dataclass, field
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.common.checks import check_masked_views, check_unread
from d2v.modalities.text.views import AugmentConfig, check_augment

BREAK_MODES = ("complete_doc", "none", "shuffled")
MASK_KINDS = ("span", "random")


@dataclass
class ReadConfig:
    """Text files (one line or paragraph each line, an empty line between documents), tables with a text column, Hub data sets, or "demo"."""

    path: Any = ""
    split: str = "train"
    max_bad_share: float = 0.1
    text: str = "text"  # the column with the text
    label: str = "label"  # the column with the class, if there is one
    tokenizer: str | None = None  # a folder or a Hub name; None: a byte-level BPE is trained on the data
    vocab_size: int = 8192  # of the BPE that is trained
    block_size: int = 512  # tokens, with <s>


@dataclass
class DataConfig(ReadConfig):
    """The same for pretraining, how rows are joined into blocks, and what is hidden in them."""

    # complete_doc: blocks hold whole lines of one document; none: the stream is cut every block_size tokens; shuffled: whole rows in a random order,
    # for rows that have nothing to do with each other. A file that is sorted by class would give the class away in every block.
    break_mode: str = "complete_doc"
    mask_kind: str = "span"  # span: overlapping spans (1.0); random: counts fixed by the length, and what is hidden is left out (2.0)
    masks: int = 1  # masks per block, of random
    mask_prob: float = 0.35
    mask_length: int = 4  # of span
    random_token_prob: float = 0.0  # BERT's variant: mask_prob 0.15, mask_length 1, 0.1 and 0.1
    keep_token_prob: float = 0.0
    reference_teacher_input: bool = (
        False  # the reference's bug (fairseq issue 4881): its teacher reads the hidden tokens only, side by side
    )
    # one reading of each row a name, for methods that compare them: same, deletion, crop; a sample is a row then
    views: list[str] = field(default_factory=list)
    mask_views: bool = False  # spans are hidden in this share of each view's rows (iBOT); else views hide nothing
    mask_chance: float = 0.5
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # how views are made


@dataclass
class LabelledConfig(ReadConfig, labels.SplitConfig):
    """Where labelled text is; `split` is the one to train on."""

    text_pair: str = ""  # the column with the second text of a pair
    regression: bool = False  # the label is a number


def check(data: DataConfig) -> None:
    """ValueError: a setting of blocks, masks or views out of range, or two that contradict each other."""
    check_augment(data.views, data.augment)
    if data.views:
        others = ("break_mode", "mask_kind", "masks", "random_token_prob", "keep_token_prob", "reference_teacher_input")
        check_unread(data, others, "data.views makes views of single rows")
    check_masked_views(data, ("mask_prob", "mask_length"))
    if data.break_mode not in BREAK_MODES:
        raise ValueError(f"data.break_mode {data.break_mode!r} is none of {', '.join(BREAK_MODES)}")
    if data.mask_kind not in MASK_KINDS:
        raise ValueError(f"data.mask_kind {data.mask_kind!r} is none of {', '.join(MASK_KINDS)}")
    if data.masks < 1 or (data.masks > 1 and data.mask_kind == "span"):
        raise ValueError(f"data.masks {data.masks} must be 1, or more with data.mask_kind=random")
    if data.mask_kind == "random" and (
        data.reference_teacher_input or data.random_token_prob or data.keep_token_prob or data.mask_prob == 1
    ):
        raise ValueError(
            "data.mask_kind random leaves tokens out: reference_teacher_input, *_token_prob and data.mask_prob 1 have no place in it"
        )
    if not 0 < data.mask_prob <= 1:
        raise ValueError(f"data.mask_prob {data.mask_prob} must lie in (0, 1]")
    if data.mask_length < 1:
        raise ValueError(f"data.mask_length {data.mask_length} must be at least 1")
    random, keep = data.random_token_prob, data.keep_token_prob
    if random < 0 or keep < 0 or random + keep >= 1:
        raise ValueError(
            f"data.random_token_prob {random} and data.keep_token_prob {keep} must be 0 or more and sum to less than 1"
        )
