"""Settings of speech: what is read and how, what is joined, hidden and changed in pretraining, and where labels and transcripts are."""

from dataclasses import dataclass, field
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.common.checks import check_masked_views, check_settings, check_unread
from d2v.modalities.speech.beam import DecodeConfig
from d2v.modalities.speech.letters import CASES
from d2v.modalities.speech.views import AugmentConfig, check_augment

MASK_KINDS = ("span", "block", "random")


@dataclass
class ReadConfig:
    """Where speech is and how it is read; defaults are data2vec Base's."""

    path: Any = ""  # folder, table, Hub name, a list of these, or "demo": synthetic vowels
    split: str = "train"
    label: str = "label"
    max_bad_share: float = 0.1
    check_files: bool = True  # decode every file once before training; False reads headers only
    cache_hours: float = 2.0  # a corpus of up to this many hours is kept decoded in memory (0.23 GB an hour at 16 kHz)
    min_seconds: float = 0.1
    max_seconds: float = 20.0  # longer clips are cropped: at random in training, in the middle in evaluation
    normalize: bool = True  # each clip to zero mean and unit variance

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        check_settings(
            self,
            ("cache_hours", self.cache_hours >= 0, "0 or more"),
            ("min_seconds", self.min_seconds >= 0, "0 or more"),
            (
                "max_seconds",
                self.max_seconds >= self.min_seconds and self.max_seconds > 0,
                f"at least data.min_seconds, {self.min_seconds}",
            ),
        )


@dataclass
class DataConfig(ReadConfig):
    """The same for pretraining, and how clips are joined and masked."""

    pack_seconds: float = (
        0.0  # > 0: clips are joined and cut into streams of this length; for corpora of very short clips
    )
    mask_kind: str = "span"  # span: overlapping spans (1.0); block, random: counts fixed by the length, and what is hidden is left out (2.0)
    masks: int = 1  # masks per clip, of block and random
    mask_prob: float = 0.65
    mask_length: int = 10  # tokens; of span and block
    mask_adjust: float = 0.0  # added to the share that blocks cover; of block
    min_masks: int = 1  # spans; of span
    equalise: bool = True  # every row of a batch hides the same share; of span
    # one reading of each clip a name, for methods that compare them: crop, and crop with speed, reverb, noise, gain, mask or all
    views: list[str] = field(default_factory=list)
    mask_views: bool = False  # spans are hidden in this share of each view's clips (iBOT); else views hide nothing
    mask_chance: float = 0.5
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # how views are made

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        super().__post_init__()
        check_settings(
            self,
            ("pack_seconds", self.pack_seconds >= 0, "0 (off) or more"),
            ("mask_kind", self.mask_kind in MASK_KINDS, ", ".join(MASK_KINDS)),
            (
                "masks",
                self.masks == 1 or (self.masks > 1 and self.mask_kind != "span"),
                "1, or more with data.mask_kind block or random",
            ),
            ("mask_prob", 0 < self.mask_prob < 1, "between 0 and 1"),
            ("mask_length", self.mask_length >= 1, "at least 1"),
            ("mask_adjust", self.mask_adjust >= 0, "0 or more"),
            ("min_masks", self.min_masks >= 1, "at least 1"),
        )
        check_augment(self.views, self.augment)
        if self.views:
            check_unread(
                self,
                ("pack_seconds", "mask_kind", "masks", "mask_adjust", "equalise"),
                "data.views makes views of single clips",
            )
        check_masked_views(self, ("mask_prob", "mask_length", "min_masks"))


@dataclass
class TuningConfig(ReadConfig, labels.SplitConfig):
    """Where labelled speech is, and what of it is hidden in training; `split` is the one to train on."""

    group: str = ""  # a column such as speaker: validation and test are of groups that are not trained on
    mask_prob: float = 0.0  # share of a training clip's tokens in spans that are hidden, before overlap; 0: none
    mask_length: int = 10  # tokens
    channel_prob: float = 0.0  # the same of channels, which are zero in every token
    channel_length: int = 64  # channels

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        super().__post_init__()
        self.check_splits()
        check_settings(
            self,
            ("mask_prob", 0 <= self.mask_prob < 1, "at least 0 (nothing is hidden) and below 1"),
            ("mask_length", self.mask_length >= 1, "at least 1"),
            ("channel_prob", 0 <= self.channel_prob < 1, "at least 0 (nothing is hidden) and below 1"),
            ("channel_length", self.channel_length >= 1, "at least 1"),
        )


@dataclass
class LabelledConfig(TuningConfig):
    """Utterances and the column with their label."""

    regression: bool = False  # the label is a number


@dataclass
class TranscribedConfig(TuningConfig):
    """Utterances and the column with their transcript."""

    transcript: str = "text"
    case: str = "keep"  # lower, upper: of all transcripts
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        super().__post_init__()
        if self.case not in CASES:
            raise ValueError(f"data.case is {self.case!r}; it may be {', '.join(CASES)}")
