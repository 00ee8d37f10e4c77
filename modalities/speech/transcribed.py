"""Transcripts of utterances, for fine-tuning by CTC on their letters: see tuning.py."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import Wav2Vec2Processor

from d2v.finetuning.scores import transcription
from d2v.modalities.common import labels, tables
from d2v.modalities.speech import beam
from d2v.modalities.speech.audio import Long
from d2v.modalities.speech.config import TranscribedConfig
from d2v.modalities.speech.frontend import lengths
from d2v.modalities.speech.letters import SPACE, Vocabulary, normalise, tokens_needed
from d2v.modalities.speech.samples import Samples, feature_extractor
from d2v.modalities.speech.tuning import LabelledBatches
from d2v.protocols import Known, Labelled, Says, ScoredSplit, Unlabelled
from d2v.reading import Limit
from d2v.shown import printable
from d2v.types import View


class Transcripts:
    """The clips of a split that have a transcript and are whole: one above max_seconds would lose words.

    In training the transcript also fits: CTC can spell it in the clip's tokens.
    """

    def __init__(self, samples: Samples, data: TranscribedConfig, *, training: bool):
        """ValueError: no such column, or too many bad transcripts."""
        self._samples, self.report = samples, samples.report
        longest = round(data.max_seconds * samples.rate)
        try:
            texts = [normalise(str(value), data.case) for value in samples.column(data.transcript, empty="")]
        except ValueError as error:
            raise ValueError(f"data.transcript is {data.transcript!r}: {error}") from None
        rows = []
        for row, (name, text, size) in enumerate(zip(samples.ids, texts, samples.lengths.tolist(), strict=True)):
            tokens = lengths(samples.frontend, size)
            needed = tokens_needed(text)
            if not text:
                self.report.unreadable.append((name, "empty transcript"))
            elif "\ufffd" in text:
                self.report.unreadable.append((name, "its transcript is not UTF-8"))
            elif SPACE in text:
                self.report.unreadable.append((name, f"its transcript holds {SPACE!r}, which stands between words"))
            elif size > longest:
                self.report.too_long.append(
                    (name, f"{size / samples.rate:.1f} s, data.max_seconds is {data.max_seconds}")
                )
            elif training and needed > tokens:
                self.report.too_short.append((name, f"its transcript needs {needed} tokens, the clip has {tokens}"))
            else:
                rows.append(row)
        self._rows = np.array(rows, dtype=np.int64)
        self.lengths = samples.lengths[self._rows]
        self.ids = [samples.ids[row] for row in rows]
        self.texts = [texts[row] for row in rows]
        self.report.usable = len(rows)
        self.report.amount = f"{self.lengths.sum() / samples.rate / 3600:.2f} hours"
        self.report.check(data.max_bad_share, data.path)

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, index: int) -> Image.Image:
        """The clip's spectrogram. ValueError: it can no longer be read."""
        return self._samples.picture(int(self._rows[index]))

    def column(self, name: str) -> np.ndarray:
        """Values of a data column per usable clip. ValueError: there is none of that name."""
        return self._samples.column(name)[self._rows]

    def clip(self, index: int) -> np.ndarray | Long:
        """A clip as Samples give it, (S,) float32."""
        return self._samples.clip(self._rows[index])

    def view(self, indices: Iterable[int]) -> View:
        """Whole clips, unmasked; input_values (B, S)."""
        return self._samples.view([self._rows[index] for index in indices])


def check_letters(split: str, texts: Sequence[str], vocabulary: Vocabulary, max_share: float) -> str:
    """One line if texts hold characters that were not trained on, which no search says; else "".

    ValueError: too large a share of them does.
    """
    unknown = [vocabulary.unknown(text) for text in texts]
    number = sum(map(bool, unknown))
    if not number:
        return ""
    characters = sorted(set().union(*unknown))
    said = (
        f"{number} of {len(texts)} transcripts of the {split} split hold characters that training does not have: "
        f"{' '.join(characters[:20])}"
    )
    if number > max_share * len(texts):
        raise ValueError(f"{said}; data.max_bad_share is {max_share}, and data.case=lower or upper makes cases alike")
    return f"{said}; they count as errors"


def predictions(
    split: ScoredSplit, outputs: list[np.ndarray], vocabulary: Vocabulary, search: Callable[[np.ndarray], str] | None
) -> list[dict]:
    """The rows of a predictions file, of the logits (T, V) of each clip of a split."""
    rows = []
    for index, text, logits in zip(split.indices, split.labels, outputs, strict=True):
        rows.append({"id": split.samples.ids[index], "transcript": text, **_read(logits, vocabulary, search)})
    return rows


def _read(logits: np.ndarray, vocabulary: Vocabulary, search: Callable[[np.ndarray], str] | None) -> dict[str, str]:
    """What logits (T, V) spell, and what the search says."""
    return {"prediction": vocabulary.greedy(logits), **({"beam": search(logits)} if search else {})}


def says(config: Any, data: TranscribedConfig, every: bool) -> Says:
    """What a model of letters heard; the search, if one is asked for, finds the words of data.decode.lexicon.

    ValueError: `every`; a search for the words that were trained on, which a model does not keep; as beam.build.
    """
    if every:
        raise ValueError("probabilities=true asks for those of classes, and this model writes letters: leave it out")
    if data.decode.lm and not data.decode.lexicon:
        raise ValueError(
            f"data.decode.lm {data.decode.lm!r} needs data.decode.lexicon=FILE here, a word a line: those that were "
            "trained on are not kept with the model; data.decode.beam=0 data.decode.lm='' reads without it"
        )
    vocabulary = Vocabulary([config.id2label[code] for code in range(config.num_labels)])
    search = beam.build(data.decode, vocabulary, []) if data.decode.beam else None
    return lambda samples, index, logits: [_read(logits, vocabulary, search)]


def known(config: Any, settings: Any, folder: Path, source: datasets.Dataset) -> Known | None:
    """The transcripts in the column of data.transcript, or beside the recordings."""
    data = settings.data
    if data.transcript not in source.column_names:
        return None
    cells = tables.cells_of(source, data.transcript)
    texts = [None if cell is None else normalise(str(cell), data.case) or None for cell in cells]
    return Known("transcript", texts, texts, _error_rates)


def _error_rates(texts: Sequence[str], rows: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Of the search, where there is one, too."""
    found = [row for (row,) in rows]
    rates = transcription(texts, [row["prediction"] for row in found])
    if "beam" in found[0]:
        rates |= beam_scores([{"transcript": text, **row} for text, row in zip(texts, found, strict=True)])
    return rates


READ = ("path", "split", "max_bad_share", "min_seconds", "max_seconds", "decode", "transcript", "case")
UNLABELLED = Unlabelled(Samples, says, READ, known)


def beam_scores(rows: list[dict]) -> dict[str, float]:
    """Error rates of what the search says, of the rows of a predictions file."""
    scores = transcription([row["transcript"] for row in rows], [row["beam"] for row in rows])
    return {f"beam_{name}": value for name, value in scores.items()}


def open_data(config: Any, folder: Path, bad_log: Callable[[str, str], None], say: Callable[[str], None]) -> Labelled:
    """The batches and splits of a run.

    ValueError: as Samples, Transcripts, check_letters, labels.divide and beam.build.
    """
    data, frontend, train = config.data, config.frontend, config.train
    if config.task.blank:
        raise ValueError(
            f"task.blank is {config.task.blank}; the vocabulary that is made of the transcripts has the blank at 0"
        )

    def make(split: str) -> Transcripts:
        samples = Samples(data, frontend, split=split, folder=folder)
        transcripts = Transcripts(samples, data, training=split == data.split)
        say("\n".join(transcripts.report.lines()))
        return transcripts

    transcripts, indices, parts = labels.divide(data, train.seed, make, group=data.group)
    for note in (
        labels.uses_of_splits(data, transcripts.report.splits),
        *labels.of_other_groups(transcripts, parts, data.group),
    ):
        say(note)
    trained = [transcripts.texts[index] for index in indices]
    vocabulary = Vocabulary.of_texts(trained)
    say(printable(f"letters: {len(vocabulary) - 3}: {' '.join(vocabulary.letters[3:])}"))
    splits = {}
    for name, (scored, places) in parts.items():
        splits[name] = ScoredSplit(scored, places, [scored.texts[place] for place in places])
        warning = check_letters(name, splits[name].labels, vocabulary, data.max_bad_share)
        if warning:
            say(printable(warning))
    search = beam.build(data.decode, vocabulary, trained) if data.decode.beam else None
    codes = [vocabulary.encode(text) for text in transcripts.texts]
    opened = labels.Opened(transcripts, indices, codes, None, splits)
    dim = config.model.trunk.dim
    limit = Limit(bad_log, data.max_bad_share, len(opened.indices))
    letters = vocabulary.letters

    batches = LabelledBatches(
        opened, data, frontend, dim=dim, batch_size=train.batch_size, seed=train.seed, bad_log=limit
    )
    processor = Wav2Vec2Processor(feature_extractor(data, frontend), vocabulary.tokenizer())
    return Labelled(
        batches=batches,
        training=ScoredSplit(transcripts, indices, trained),
        splits=splits,
        head={
            "id2label": dict(enumerate(letters)),
            "label2id": {letter: code for code, letter in enumerate(letters)},
            "pad_token_id": 0,
        },
        score=lambda outputs, texts: transcription(texts, [vocabulary.greedy(logits) for logits in outputs]),
        metric="wer",
        rows=lambda split, outputs: predictions(split, outputs, vocabulary, search),
        classes=None,
        save_preprocessor=lambda place: processor.save_pretrained(place),
        row_scores=beam_scores if search else None,
    )
