"""What the core asks of a modality, typed.

A folder that offers this pretrains, evaluates, embeds and fine-tunes without an edit elsewhere.

B samples of a batch, N masked rows, T content tokens, K visible tokens, E extra tokens, D width, H heads, V words,
n samples of a split.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from d2v.types import View


class NoSplitError(ValueError):
    """The data has no split of the name that was asked for; `splits`: those that it has, as far as they are known."""

    def __init__(self, message: str, splits: Sequence[str] = ()):
        super().__init__(message)
        self.splits = list(splits)


@contextmanager
def asked_by(split: str, path: str = "data.path") -> Iterator[None]:
    """Within it samples are opened that these settings name: errors name them in place of data.split and data.path."""
    try:
        yield
    except ValueError as error:
        said = str(error).replace("data.split", split).replace("data.path", path)
        if said == str(error):
            raise
        raise type(error)(said) from error


BadLog = Callable[[str, str], None]  # notes the id of a sample that could not be read, and why


class Frontend(Protocol):
    """From raw inputs to tokens: a torch module made by `Frontend(config, dim, num_heads)`.

    One whose config has an image_size also has `resize_from(other)`, which fills its weights with those of a frontend
    of another size. One whose tokens follow in time has `token_seconds`, from one to the next. One whose first weights
    may come from a run's data has `begin_with(samples)`, which says what did in a few words, or "" for nothing.
    """

    main_input: ClassVar[str]  # Hugging Face's name of the input that says which frontend is meant, e.g. pixel_values
    zero_padding: ClassVar[bool]  # tokens of padding become zero before positions are added
    positions_read_tokens: ClassVar[bool]  # positions are computed from the tokens (a convolution), so hidden ones too
    config: Any  # its FrontendConfig
    source_dim: int  # width C of what `sources` gives

    @property
    def is_encoder(self) -> bool:
        """Whether its tokens are features already, to which a trunk has nothing to add."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns in which tokens lie; None: they are a sequence."""
        ...

    def init_weights(self) -> None:
        """Fills its own parameters."""
        ...

    def embed(self, **inputs: Tensor) -> Tensor:
        """Local features (B, T, D) of raw inputs, by Hugging Face's names."""
        ...

    def content_dim(self) -> int:
        """P, how many numbers a token is made of. ValueError: it is made of none, or of more than its own."""
        ...

    def content(self, **inputs: Tensor) -> Tensor:
        """(B, T, P) float32, what each token is made of: its pixels, its frames. ValueError as of `content_dim`."""
        ...

    def vocabulary(self) -> Tensor:
        """(V, D), the vectors of all words, where `main_input` holds numbers of words. ValueError: it does not, or no
        word can be hidden."""
        ...

    def sources(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens as `embed` gives them, and what lies before their projection, and before the norm there,
        (B, T, C) each; the tokens themselves where they are not projected. Asked for by wav2vec2 alone."""
        ...

    def padding(self, **inputs: Tensor) -> Tensor | None:
        """(B, T) bool, True where there is no data; None: nowhere."""
        ...

    def hide(self, tokens: Tensor, hidden: Tensor, **inputs: Tensor) -> Tensor:
        """(N, T, D) with the mask token, or zero, where `hidden` (N, T)."""
        ...

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor | None:
        """What is added to tokens, (T, D) or (N, T, D); None: nothing."""
        ...

    def extra(self) -> Tensor | None:
        """Tokens that stand before the content, (1, E, D); None: none."""
        ...

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> Tensor | None:
        """What is added to attention logits: (H, E + T, E + T), or by row for the tokens `keep` (N, K).

        None: nothing.
        """
        ...


class Report(Protocol):
    """What a scan of a split found."""

    unreadable: list[tuple[str, str]]  # id and reason
    too_short: list[tuple[str, str]]
    notes: list[str]  # how the samples were chosen, a line each
    splits: list[str]  # that the data has, by name; one or none: it is not divided
    advice: str  # a setting that would help to read samples of these sizes, or ""

    def lines(self, most: int = 5) -> list[str]:
        """For a person, one line each; of bad samples the first `most` are named."""
        ...

    def check(self, max_bad_share: float, where: Any) -> None:
        """ValueError: nothing is usable, or too much is bad."""
        ...


class Samples(Protocol):
    """The usable samples of a split, read as a model reads them in evaluation.

    Those that have looked at sizes and times of their files may have `origin`, a string that is another one if these
    are; a run that goes on then need not read the files to know that they are the same.
    """

    ids: list[str]
    lengths: np.ndarray | None  # (n,) in any unit, to batch similar ones together; None: all are of one length
    classes: list[str] | None  # names of integer labels, if the source knows them
    raw_name: str  # what `raw` is, for a table
    report: Report

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray:
        """(n,) values of a column of the data, None where one is missing. ValueError: there is none of that name."""
        ...

    def view(self, indices: Iterable[int]) -> View:
        """The view of some samples, without masks or augmentation."""
        ...

    def raw(self, indices: Iterable[int]) -> np.ndarray:
        """(B, any) the baseline that needs no network: averaged pixels, mean spectrum, counts of words."""
        ...

    def picture(self, index: int) -> Any:
        """A sample as a person sees it: a picture of Pillow, or text. ValueError: it can no longer be read."""
        ...


class Stream(Samples, Protocol):
    """Samples that are embedded in passing; `view` and `windows` raise ValueError for one that turns out to be bad."""

    cut: np.ndarray | None  # (n,) bool: longer than the model reads at once; None: none

    def windows(self, index: int, overlap: float, batch_size: int) -> Iterator[tuple[View, Tensor]]:
        """Views of a long sample's windows, and which tokens count (B, T) so that each counts once."""
        ...


class Rowed(Samples, Protocol):
    """Samples that may be one side of pairs."""

    rows: np.ndarray  # (n,) which rows of the source they are, in its order


class Pictures(Samples, Protocol):
    """Samples whose tokens lie in a grid, for the report dense."""

    def masks(self, indices: Iterable[int], folder: str) -> np.ndarray:
        """(B, S, S) uint8 class numbers of pixels from a PNG in `folder` of the name of each. ValueError: none."""
        ...


class Source(Protocol):
    """Rows of the data before any is read, such as a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def select(self, indices: range) -> "Source":
        """Some of them."""
        ...

    def __getitem__(self, row: int) -> Any:
        """What describes a row, such as the path of its file; features that are kept are good as long as it stays."""
        ...


class Rows(NamedTuple):
    """A source that is open already, or a part of it for samples that are read once, in passing.

    Whether those decode shows then.
    """

    dataset: Any  # a Source
    first: int  # number of its first row in the whole
    whole: bool = False  # all of it, which is checked as if it had been opened here


class Side(Protocol):
    """How training reads one side of pairs: each row in one augmented view, of which nothing is hidden.

    A modality that may be a side exports it, and SideConfig, the dataclass of what is read of its DataConfig then.
    """

    # (n,) equal where two samples are the very same to the model, so that neither is a wrong answer for the other's
    # partner; None: that is not asked
    keys: np.ndarray | None

    def __init__(self, samples: Rowed, data: Any, frontend: Any, bad_log: BadLog): ...

    @staticmethod
    def open(config: Any, split: str) -> Source | None:
        """The rows of a split, unread, with what lies beside their files; None: the other side opens what has both."""
        ...

    @staticmethod
    def column(config: Any, source: Any) -> str:
        """The column of the source that is read. ValueError: there is none."""
        ...

    @staticmethod
    def prepare(data: Any, frontend: Any, folder: Path, seed: int, source: Callable[[], Any]) -> None:
        """As the modality's `prepare`, from the rows that `source` opens."""
        ...

    def width(self, indices: np.ndarray) -> int:
        """How long, in units of its own, the views of these samples can become; 0: all views are of one size."""
        ...

    def read(self, index: int, generator: np.random.Generator, width: int) -> Any:
        """The view of a sample, cut to `width`. UnreadableError, OSError: it can no longer be read."""
        ...

    def view(self, read: Sequence[Any], width: int) -> View:
        """What was read of B samples as a View, as wide as `width`."""
        ...


class Batches(Protocol):
    """Training batches as a pure function: `part` of `parts` of the global batch of a step."""

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """The views of this part's samples, and their ids."""
        ...


Score = Callable[[list[np.ndarray], Sequence[Any]], dict[str, float]]  # scores by name, of answers and labels


class ScoredSplit(NamedTuple):
    """Labelled samples that are scored: one label for each of `indices` into `samples`."""

    samples: Any  # view, lengths, ids, picture of Samples
    indices: np.ndarray | range  # (n,); a range of all samples, of which no array is made
    labels: Any  # n, a sequence or an array

    def some(self, places: np.ndarray) -> "ScoredSplit":
        """Those at some of the n places."""
        if len(places) == len(self.indices):
            return self
        labels = self.labels[places] if isinstance(self.labels, np.ndarray) else [self.labels[n] for n in places]
        return ScoredSplit(self.samples, np.asarray(self.indices)[places], labels)


class Labelled(NamedTuple):
    """What a modality's labelled data gives a run of fine-tuning."""

    batches: Batches  # views with labels
    training: ScoredSplit  # what they are of
    splits: dict[str, ScoredSplit]  # those that are scored: "validation" chooses, "test" is only looked at in the end
    head: dict[str, Any]  # of the model's config: id2label, label2id, num_labels, problem_type
    score: Score
    metric: str  # the score that chooses if train.metric does not say
    rows: Callable[[ScoredSplit, list[np.ndarray]], list[dict]]  # of the predictions file
    classes: list[str] | None  # of the confusion matrix
    save_preprocessor: Callable[[Path], None]
    row_scores: Callable[[list[dict]], dict[str, float]] | None = None  # what costs too much for `score`, of the rows
    draw: Callable[[ScoredSplit, list[np.ndarray], Path], None] | None = None  # a picture of what was predicted


# What a model's answer to one of some samples (by its number) says, as the cells of a table, a dictionary a row.
Says = Callable[[Any, int, np.ndarray], list[dict[str, Any]]]


class Known(NamedTuple):
    """Labels that data to be predicted for has all the same, by which predictions are scored."""

    column: str  # which they become in the table of predictions: label, transcript; "": none
    values: Sequence[Any]  # of each row of the source, as they are shown; None: it has none
    wanted: Sequence[Any]  # the same as they are scored; None: it is not scored
    # scores by name, of the rows that are scored and what is said of each, as cells of a table
    score: Callable[[Sequence[Any], list[list[dict[str, Any]]]], dict[str, float]]
    note: str = ""  # what is said of rows that are not scored


class Unlabelled(NamedTuple):
    """How data without labels is read by a model that learnt some, and what its answers say."""

    samples: Any  # a type of Samples, opened and read as a modality's are
    # of the model's config and the section data, and whether the shares of all classes are wanted. ValueError: of a
    # model that knows none, or what was given cannot be read
    says: Callable[[Any, Any, bool], Says]
    settings: tuple[str, ...]  # of the section data, those that count; all others are the model's
    # of the model's config, the settings, where its tokenizer is and the rows, unread; None: they have no labels.
    # ValueError: what they have is no such label
    known: Callable[[Any, Any, Path, Any], Known | None]


class LabelledTask(NamedTuple):
    """One kind of labelled data of a modality: its settings, the task model that learns it, and what opens it."""

    config: type  # the dataclass of the section data
    model: type  # a TaskModel
    open: Callable[[Any, Path, BadLog, Callable[[str], None]], Labelled]  # of a FinetuneConfig, run folder, log, say
    kind: str = ""  # where a modality has several: whose part of a config's `kinds` counts
    settings: Mapping[str, str] = MappingProxyType({})  # of the section data, what was found in the data
    said: str = ""  # which kind was chosen, and why
    unlabelled: Unlabelled | None = None  # of what `d2v predict` reads; None: it does not read this kind


class Modality(Protocol):
    """What a modality's package exports; see docs/extending.md."""

    FrontendConfig: type  # dataclass of model.frontends.<name>
    DataConfig: type  # dataclass of the section data, with path, split and max_bad_share
    Frontend: type  # a torch module that is a Frontend
    VIEWS: tuple[str, ...]  # what data.views may hold, the ordinary kind first; empty: no views
    PREPARED: tuple[str, ...]  # folders that `prepare` makes in a run's folder, e.g. a tokenizer's
    QUERIES: tuple[str, ...]  # endings of files that `queries` reads; empty: it reads words

    class Samples:
        """A type whose objects are Samples."""

        def __init__(self, config: Any, frontend: Any, *, split: str, folder: Path, rows: Rows | None = None): ...

        @staticmethod
        def open(config: Any, split: str) -> Source:
            """The rows of a split, unread."""
            ...

    @staticmethod
    def prepare(data: Any, frontend: Any, folder: Path, seed: int) -> None:
        """Before samples are read: makes what a run needs from its data (a tokenizer).

        Fills the fields of `frontend` that follow from it.
        """
        ...

    @staticmethod
    def inherit(data: Any, source: Path, former: dict | None) -> None:
        """Fills settings of `data` that a model's weights depend on with what the one in `source` was fed by.

        `source` is a run's folder, an export, a folder of transformers, a Hub name or a checkpoint's file. Whether the
        user gave another value is the caller's to check: d2v/training/inherited.py. `former`: the section data of the
        run that is resumed, whose `source` may be gone. ValueError: it does not have them.
        """
        ...

    @staticmethod
    def batches(samples: Any, data: Any, frontend: Any, batch_size: int, seed: int, bad_log: BadLog) -> Batches:
        """Masked or augmented training batches."""
        ...

    @staticmethod
    def save_preprocessor(folder: Path, samples_folder: Path, data: Any, frontend: Any) -> None:
        """Writes beside an export what Hugging Face's Auto classes need to read inputs."""
        ...

    @staticmethod
    def queries(given: Sequence[str], data: Any, frontend: Any, folder: Path) -> Samples:
        """What somebody looks for, as samples in its order: paths of files, or words where QUERIES is empty.

        It and QUERIES may be missing: `d2v search` then finds samples of this modality by their ids alone.
        """
        ...

    @staticmethod
    def labelled_task(data: dict) -> LabelledTask:
        """The kind of labelled data that the section data, as plain values, asks for, or that lies in data.path."""
        ...
