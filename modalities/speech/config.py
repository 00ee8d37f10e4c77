"""Settings of speech: how it is read, what pretraining joins, hides and changes, where labels or transcripts are."""

from dataclasses import dataclass
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.common.checks import HIDDEN, OF_MASKED_VIEWS, check_ranges, check_settings, check_views
from d2v.modalities.speech.beam import DecodeConfig
from d2v.modalities.speech.letters import CASES
from d2v.modalities.speech.views import VIEWS, AugmentConfig
from d2v.settings import check_fields, section, setting

SINGLE = "data.views makes views of single clips"
MASK_KINDS = ("span", "block", "random", "multi_block")
OF_SHARE = MASK_KINDS[:-1]  # those that hide a share of the tokens
OF_BLOCKS = {"views": False, "mask_kind": "multi_block"}


@dataclass
class ReadConfig:
    """Where speech is and how it is read; defaults are data2vec Base's."""

    path: Any = setting(
        "",
        'A folder, a table, a Hub data set, a list of these, "demo" or "demo-anagrams": synthetic words; required.',
        place=True,
    )
    split: str = setting("train", "The split to train on.")
    label: str = setting("label", "The column with the class, if there is one.")
    max_bad_share: float = setting(0.1, "Share of bad clips above which a run stops.", least=0, most=1)
    check_files: bool = setting(True, "Every file is decoded once before training; false: headers are read only.")
    cache_hours: float = setting(
        2.0,
        "A corpus of up to this many hours is kept decoded in memory (0.23 GB an hour at 16 kHz).",
        least=0,
        limit=1_000_000,
    )
    min_seconds: float = setting(0.1, "Shorter clips are left out.", least=0, limit=1_000_000)
    max_seconds: float = setting(
        20.0, "Longer clips are cropped: at random in training, in the middle in evaluation.", above=0, limit=1_000_000
    )
    normalize: bool = setting(True, "Each clip has zero mean and unit variance.")

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        check_fields(self, "data")
        in_order = self.max_seconds >= self.min_seconds
        check_settings(self, ("max_seconds", in_order, f"at least data.min_seconds, {self.min_seconds}"))


@dataclass
class DataConfig(ReadConfig):
    """Speech to pretrain on: how clips are joined, what is hidden in them, or which views of them are made."""

    pack_seconds: float = setting(
        0.0,
        "Clips are joined and cut into streams of this length, for corpora of very short clips; 0: they are not.",
        least=0,
        limit=1_000_000,
        only={"views": False},
        why=SINGLE,
    )
    mask_kind: str = setting(
        "span",
        "span: overlapping spans (data2vec 1.0); block, random: as many tokens in every clip of one length, "
        "and the student does not read them (2.0); multi_block: `masks` spans, which the student predicts from one "
        "other (I-JEPA).",
        among=MASK_KINDS,
        only={"views": False},
        why=SINGLE,
    )
    masks: int = setting(
        1,
        "Masks of each clip; more than one not with mask_kind span.",
        least=1,
        limit=1000,
        only={"views": False},
        why=SINGLE,
    )
    mask_prob: float = setting(
        0.65,
        "Share of a clip's tokens that is hidden, before spans overlap.",
        above=0,
        below=1,
        only=[{"views": False, "mask_kind": OF_SHARE}, {"mask_views": True}],
        why=HIDDEN,
    )
    mask_length: int = setting(
        10,
        "Of span and block: tokens side by side that are hidden together.",
        least=1,
        limit=100_000,
        only=[{"views": False, "mask_kind": ("span", "block")}, {"mask_views": True}],
        why=HIDDEN,
    )
    mask_adjust: float = setting(
        0.0,
        "Of block: added to the share that blocks cover.",
        least=0,
        most=1,
        only={"views": False, "mask_kind": "block"},
        why=SINGLE,
    )
    target_scale: list[float] = setting(
        [0.15, 0.2],
        "Of multi_block: the share of a clip's tokens in a target is drawn from here, once a batch.",
        above=0,
        most=1,
        count=2,
        only=OF_BLOCKS,
        why=SINGLE,
    )
    context_scale: list[float] = setting(
        [0.85, 1.0],
        "Of multi_block: the share of tokens in the span that is read, targets not yet taken out.",
        above=0,
        most=1,
        count=2,
        only=OF_BLOCKS,
        why=SINGLE,
    )
    min_context: int = setting(
        10,
        "Of multi_block: fewest tokens that are read; targets stay in the span where they would leave fewer.",
        least=1,
        limit=1_000_000,
        only=OF_BLOCKS,
        why=SINGLE,
    )
    min_masks: int = setting(
        1,
        "Of span: the fewest spans of a clip.",
        least=1,
        limit=100_000,
        only=[{"views": False, "mask_kind": "span"}, {"mask_views": True}],
        why=HIDDEN,
    )
    equalise: bool = setting(
        True,
        "Of span: every clip of a batch hides the same share.",
        only={"views": False, "mask_kind": "span"},
        why=SINGLE,
    )
    views: list[str] = setting(
        [],
        "One reading of each clip a name, for methods that compare them: crop, and crop with speed, reverb, noise, "
        "gain, mask or all.",
    )
    mask_views: bool = setting(
        False, "Spans are hidden in some clips of each view (iBOT); false: views hide nothing.", only={"views": True}
    )
    mask_chance: float = setting(
        0.5,
        "Share of a view's clips in which mask_views hides spans.",
        above=0,
        most=1,
        only={"mask_views": True},
        why=OF_MASKED_VIEWS,
    )
    augment: AugmentConfig = section(AugmentConfig, "How views are made.")

    def __post_init__(self):
        """ValueError: a value that makes no sense, or two settings that contradict each other."""
        super().__post_init__()
        fits = self.masks == 1 or self.mask_kind != "span"
        check_settings(self, ("masks", fits, "1, or more with data.mask_kind block, random or multi_block"))
        check_ranges(self, "target_scale", "context_scale")
        check_views(self.views, VIEWS)


@dataclass
class TuningConfig(ReadConfig, labels.SplitConfig):
    """Speech to fine-tune on, and what of it is hidden in training; `split` is the one to train on."""

    group: str = setting(
        "", "A column such as speaker: validation and test are of groups that are not trained on; empty: none."
    )
    mask_prob: float = setting(
        0.0,
        "Share of a training clip's tokens in spans that are hidden, before they overlap; 0: nothing is hidden.",
        least=0,
        below=1,
    )
    mask_length: int = setting(
        10, "Tokens side by side that are hidden together.", least=1, limit=100_000, only={"mask_prob": True}
    )
    channel_prob: float = setting(
        0.0,
        "Share of channels in spans that are zero in every token of a training clip, before they overlap; 0: none is.",
        least=0,
        below=1,
    )
    channel_length: int = setting(
        64, "Channels side by side that are zero together.", least=1, limit=1_000_000, only={"channel_prob": True}
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        super().__post_init__()
        self.check_splits()


@dataclass
class LabelledConfig(TuningConfig):
    """Utterances and the column with their label."""

    regression: bool = setting(False, "The label is a number.")


@dataclass
class TranscribedConfig(TuningConfig):
    """Utterances and the column with their transcript."""

    transcript: str = setting("text", "The column with the transcript.")
    case: str = setting(
        "keep", "keep: letters stay as they are; lower, upper: those of all transcripts become so.", among=tuple(CASES)
    )
    decode: DecodeConfig = section(DecodeConfig, "How the scored splits are read at the end of a run.")
