"""Settings of text: what is read and how, and what is joined, hidden and changed in pretraining."""

from dataclasses import dataclass
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.common.checks import check_masked_views, check_unread
from d2v.modalities.text.views import AugmentConfig, check_augment
from d2v.settings import check_fields, section, setting

BREAK_MODES = ("complete_doc", "none", "shuffled")
MASK_KINDS = ("span", "random")


@dataclass
class ReadConfig:
    """Where text is, and how it becomes tokens."""

    path: Any = setting(
        "",
        "Text files (a line or paragraph a line, an empty line between documents), tables with a text column, "
        'Hub data sets, a list of these, or "demo": Python\'s documentation; required.',
    )
    split: str = setting("train", "The split to train on.")
    max_bad_share: float = setting(0.1, "Share of bad rows above which a run stops.", least=0, most=1)
    text: str = setting("text", "The column with the text.")
    label: str = setting("label", "The column with the class, if there is one.")
    tokenizer: str | None = setting(
        None, "A folder or a Hub name; null: a byte-level BPE (byte-pair encoding) is trained on the data."
    )
    vocab_size: int = setting(8192, "Tokens of the BPE that is trained, with the special ones.")
    block_size: int = setting(512, "Tokens of a block or row, with <s>; longer rows are cut.", least=4)

    def __post_init__(self):
        """ValueError: a number that makes no sense, or an unknown choice."""
        check_fields(self, "data")


@dataclass
class DataConfig(ReadConfig):
    """Text to pretrain on: how rows are joined into blocks, what is hidden in them, or which views of rows are made."""

    # complete_doc would give a class away in every block of a file that is sorted by class: shuffled is for those
    break_mode: str = setting(
        "complete_doc",
        "complete_doc: blocks hold whole rows of one document; none: the stream is cut every block_size tokens; "
        "shuffled: whole rows in a random order, for rows that have nothing to do with each other.",
        among=BREAK_MODES,
    )
    mask_kind: str = setting(
        "span",
        "span: overlapping spans (data2vec 1.0); random: single tokens, as many in every row of one length, "
        "and the student does not read them (2.0).",
        among=MASK_KINDS,
    )
    masks: int = setting(1, "Masks of each block; more than one with mask_kind random only.", least=1)
    mask_prob: float = setting(0.35, "Share of a block's tokens that is hidden, before spans overlap.", above=0, most=1)
    mask_length: int = setting(4, "Of span: tokens side by side that are hidden together.", least=1)
    random_token_prob: float = setting(
        0.0,
        "Of span: share of the chosen tokens that become other tokens instead of hidden ones "
        "(BERT: 0.1, with mask_prob 0.15, mask_length 1 and keep_token_prob 0.1).",
        least=0,
        below=1,
    )
    keep_token_prob: float = setting(
        0.0, "Of span: share of the chosen tokens that stay as they are instead of hidden.", least=0, below=1
    )
    reference_teacher_input: bool = setting(
        False,
        "The reference's bug (fairseq issue 4881): its teacher reads the hidden tokens only, side by side.",
    )
    views: list[str] = setting(
        [],
        "One reading of each row a name, for methods that compare them: same, deletion, crop; a sample is a row then.",
    )
    mask_views: bool = setting(False, "Spans are hidden in some rows of each view (iBOT); false: views hide nothing.")
    mask_chance: float = setting(0.5, "Share of a view's rows in which mask_views hides spans.", above=0, most=1)
    augment: AugmentConfig = section(AugmentConfig, "How views are made.")


@dataclass
class LabelledConfig(ReadConfig, labels.SplitConfig):
    """Where labelled text is; `split` is the one to train on."""

    text_pair: str = setting("", "The column with the second text of a pair; empty: single texts.")
    regression: bool = setting(False, "The label is a number.")


def check(data: DataConfig) -> None:
    """ValueError: two settings of blocks, masks or views that contradict each other."""
    check_augment(data.views, data.augment)
    if data.views:
        others = ("break_mode", "mask_kind", "masks", "random_token_prob", "keep_token_prob", "reference_teacher_input")
        check_unread(data, others, "data.views makes views of single rows")
    check_masked_views(data, ("mask_prob", "mask_length"))
    if data.masks > 1 and data.mask_kind == "span":
        raise ValueError(f"data.masks {data.masks} must be 1, or more with data.mask_kind=random")
    if data.mask_kind == "random" and (
        data.reference_teacher_input or data.random_token_prob or data.keep_token_prob or data.mask_prob == 1
    ):
        raise ValueError(
            "data.mask_kind random leaves tokens out: reference_teacher_input, *_token_prob and data.mask_prob 1 "
            "have no place in it"
        )
    random, keep = data.random_token_prob, data.keep_token_prob
    if random + keep >= 1:
        raise ValueError(f"data.random_token_prob {random} and data.keep_token_prob {keep} must sum to less than 1")
