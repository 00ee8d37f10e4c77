"""Settings of text: what is read and how, and what is joined, hidden and changed in pretraining."""

from dataclasses import dataclass
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.common.checks import HIDDEN, OF_MASKED_VIEWS, check_views
from d2v.modalities.common.documents import AUTO, SAMPLES_BY
from d2v.modalities.text.views import VIEWS, AugmentConfig
from d2v.settings import check_readers, check_values, section, setting

BREAK_MODES = ("complete_doc", "none", "shuffled")
SINGLE = "data.views makes views of single rows"
MASK_KINDS = ("span", "random")


@dataclass
class ReadConfig:
    """Where text is, and how it becomes tokens."""

    path: Any = setting(
        "",
        "Text files (a line or paragraph a line, an empty line between documents, or see sample_by), tables with a "
        "text column, "
        'Hub data sets, a list of these, "demo": Python\'s documentation, or "demo-topics": drawn; required.',
        place=True,
    )
    split: str = setting("train", "The split to train on.")
    max_bad_share: float = setting(0.1, "Share of bad rows above which a run stops.", least=0, most=1)
    text: str = setting("text", "The column with the text.")
    sample_by: str = setting(
        AUTO,
        "What a sample of text files is: line; document: a file; auto: a file where they lie in folders of classes, "
        "such as pos/ and neg/, else a line.",
        among=SAMPLES_BY,
    )
    label: str = setting("label", "The column with the class, if there is one.")
    tokenizer: str | None = setting(
        None, "A folder or a Hub name; null: a byte-level BPE (byte-pair encoding) is trained on the data.", place=True
    )
    vocab_size: int = setting(
        8192, "Tokens of the BPE that is trained, with the special ones.", least=1, limit=1_000_000
    )
    block_size: int = setting(512, "Tokens of a block or row, with <s>; longer rows are cut.", least=4, limit=1_000_000)

    def __post_init__(self):
        """ValueError: a number that makes no sense, or an unknown choice."""
        check_values(self, "data")


@dataclass
class DataConfig(ReadConfig):
    """Text to pretrain on: how rows are joined into blocks, what is hidden in them, or which views of rows are made."""

    min_tokens: int = setting(
        2,
        "Rows of fewer tokens are left out; 1 keeps single words, where nothing is hidden in them.",
        least=1,
        limit=1000,
    )
    # complete_doc would give a class away in every block of a file that is sorted by class: shuffled is for those
    break_mode: str = setting(
        "complete_doc",
        "complete_doc: blocks hold whole rows of one document; none: the stream is cut every block_size tokens; "
        "shuffled: whole rows in a random order, for rows that have nothing to do with each other.",
        among=BREAK_MODES,
        only={"views": False},
        why=SINGLE,
    )
    mask_kind: str = setting(
        "span",
        "span: overlapping spans (data2vec 1.0); random: single tokens, as many in every row of one length, "
        "and the student does not read them (2.0).",
        among=MASK_KINDS,
        only={"views": False},
        why=SINGLE,
    )
    masks: int = setting(
        1,
        "Masks of each block; more than one with mask_kind random only.",
        least=1,
        limit=1000,
        only={"views": False},
        why=SINGLE,
    )
    mask_prob: float = setting(
        0.35,
        "Share of a block's tokens that is hidden, before spans overlap.",
        above=0,
        most=1,
        only=[{"views": False}, {"mask_views": True}],
        why=HIDDEN,
    )
    mask_length: int = setting(
        4,
        "Of span: tokens side by side that are hidden together.",
        least=1,
        limit=100_000,
        only=[{"views": False, "mask_kind": "span"}, {"mask_views": True}],
        why=HIDDEN,
    )
    random_token_prob: float = setting(
        0.0,
        "Of span: share of the chosen tokens that become other tokens instead of hidden ones "
        "(BERT: 0.1, with mask_prob 0.15, mask_length 1 and keep_token_prob 0.1).",
        least=0,
        below=1,
        only={"views": False, "mask_kind": "span"},
        why=SINGLE,
    )
    keep_token_prob: float = setting(
        0.0,
        "Of span: share of the chosen tokens that stay as they are instead of hidden.",
        least=0,
        below=1,
        only={"views": False, "mask_kind": "span"},
        why=SINGLE,
    )
    reference_teacher_input: bool = setting(
        False,
        "The reference's bug (fairseq issue 4881): its teacher reads the hidden tokens only, side by side.",
        only={"views": False, "mask_kind": "span"},
        why=SINGLE,
    )
    views: list[str] = setting(
        [],
        "One reading of each row a name, for methods that compare them: same, deletion, crop; a sample is a row then.",
    )
    mask_views: bool = setting(
        False, "Spans are hidden in some rows of each view (iBOT); false: views hide nothing.", only={"views": True}
    )
    mask_chance: float = setting(
        0.5,
        "Share of a view's rows in which mask_views hides spans.",
        above=0,
        most=1,
        only={"mask_views": True},
        why=OF_MASKED_VIEWS,
    )
    augment: AugmentConfig = section(AugmentConfig, "How views are made.")


@dataclass
class LabelledConfig(ReadConfig, labels.SplitConfig):
    """Where labelled text is; `split` is the one to train on."""

    text_pair: str = setting("", "The column with the second text of a pair; empty: single texts.")
    regression: bool = setting(False, "The label is a number.")


def check(data: DataConfig) -> None:
    """ValueError: two settings of blocks, masks or views that contradict each other."""
    check_views(data.views, VIEWS)
    check_readers({"data": data})
    if data.masks > 1 and data.mask_kind == "span":
        raise ValueError(f"data.masks {data.masks} must be 1, or more with data.mask_kind=random")
    if data.mask_kind == "random" and data.mask_prob == 1:
        raise ValueError("data.mask_prob is 1; data.mask_kind=random leaves out what is hidden, and that would be all")
    random, keep = data.random_token_prob, data.keep_token_prob
    if random + keep >= 1:
        raise ValueError(f"data.random_token_prob {random} and data.keep_token_prob {keep} must sum to less than 1")
