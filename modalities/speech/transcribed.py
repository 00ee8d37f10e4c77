"""Transcripts of utterances, for fine-tuning by CTC on their letters: see tuning.py."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import Wav2Vec2Processor

from d2v.finetuning.config import FinetuneConfig
from d2v.finetuning.labelled import Labelled, Split
from d2v.finetuning.scores import transcription
from d2v.modalities.common import labels
from d2v.modalities.speech import beam
from d2v.modalities.speech.data import Samples, feature_extractor
from d2v.modalities.speech.frontend import lengths
from d2v.modalities.speech.letters import CASES, SPACE, Vocabulary, normalise, tokens_needed
from d2v.modalities.speech.tuning import Batches, LabelledConfig, check_start
from d2v.types import View


@dataclass
class DataConfig(LabelledConfig):
    """Utterances and the column with their transcript."""

    transcript: str = "text"
    case: str = "keep"  # lower, upper: of all transcripts
    decode: beam.DecodeConfig = field(default_factory=beam.DecodeConfig)

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        super().__post_init__()
        if self.case not in CASES:
            raise ValueError(f"data.case is {self.case!r}; it may be {', '.join(CASES)}")


class Transcripts:
    """The clips of a split that have a transcript, and are whole: a clip above max_seconds would lose words; in training also a spellable one."""

    def __init__(self, samples: Samples, data: DataConfig, *, training: bool):
        """ValueError: no such column, or too many bad transcripts."""
        self._samples, self.report, longest = samples, samples.report, round(data.max_seconds * samples.rate)
        try:
            texts = [normalise(str(value), data.case) for value in samples.column(data.transcript, empty="")]
        except ValueError as error:
            raise ValueError(f"data.transcript is {data.transcript!r}: {error}") from None
        rows = []
        for row, (name, text, size) in enumerate(zip(samples.ids, texts, samples.lengths.tolist(), strict=True)):
            tokens, needed = lengths(samples.frontend, size), tokens_needed(text)
            if not text:
                self.report.unreadable.append((name, "empty transcript"))
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
        self.ids, self.texts = [samples.ids[row] for row in rows], [texts[row] for row in rows]
        self.report.usable, self.report.amount = len(rows), f"{self.lengths.sum() / samples.rate / 3600:.2f} hours"
        self.report.check(data.max_bad_share, data.path)

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> np.ndarray:
        """Values of a data column per usable clip. ValueError: there is none of that name."""
        return self._samples.column(name)[self._rows]

    def wave(self, index: int) -> np.ndarray:
        """See Samples."""
        return self._samples.wave(self._rows[index])

    def view(self, indices: Iterable[int]) -> View:
        """See Samples."""
        return self._samples.view([self._rows[index] for index in indices])


def check_letters(split: str, texts: list[str], vocabulary: Vocabulary, max_share: float) -> str:
    """One line if texts hold characters that were not trained on, which nobody can find. ValueError: too large a share of them does."""
    unknown = [vocabulary.unknown(text) for text in texts]
    number = sum(map(bool, unknown))
    if not number:
        return ""
    characters = sorted(set().union(*unknown))
    said = f"{number} of {len(texts)} transcripts of the {split} split hold characters that training does not have: {' '.join(characters[:20])}"
    if number > max_share * len(texts):
        raise ValueError(f"{said}; data.max_bad_share is {max_share}, and data.case=lower or upper makes cases alike")
    return f"{said}; they count as errors"


def open_data(
    config: FinetuneConfig, folder: Path, bad_log: Callable[[str, str], None], say: Callable[[str], None]
) -> Labelled:
    """The batches and splits of a run. ValueError: as Samples, Transcripts, check_start, check_letters, labels.divide and beam.build."""
    data, frontend, train = config.data, config.frontend, config.train
    check_start(data, train.init_from)
    if config.task.blank:
        raise ValueError(
            f"task.blank is {config.task.blank}; the vocabulary that is made of the transcripts has the blank at 0"
        )

    def make(split: str) -> Transcripts:
        found = Transcripts(Samples(data, frontend, split=split, folder=folder), data, training=split == data.split)
        say("\n".join(found.report.lines()))
        return found

    samples, indices, parts = labels.divide(data, train.seed, make, group=data.group)
    trained = [samples.texts[index] for index in indices]
    vocabulary = Vocabulary(trained)
    say(f"letters: {len(vocabulary) - 3}: {' '.join(vocabulary.letters[3:])}")
    splits = {name: Split(found, rows, [found.texts[row] for row in rows]) for name, (found, rows) in parts.items()}
    for name, split in splits.items():
        said = check_letters(name, list(split.labels), vocabulary, data.max_bad_share)
        if said:
            say(said)
    search = beam.build(data.decode, vocabulary, trained) if data.decode.beam else None
    opened = labels.Opened(samples, indices, [vocabulary.encode(text) for text in samples.texts], None, splits)
    dim = config.model.trunk.dim
    letters = vocabulary.letters

    def rows(split: Split, outputs: list[np.ndarray]) -> list[dict]:
        found = []
        for index, text, logits in zip(split.indices, split.labels, outputs, strict=True):
            row = {"id": split.samples.ids[index], "transcript": text, "prediction": vocabulary.greedy(logits)}
            found.append(row | ({"beam": search(logits)} if search else {}))
        return found

    def beam_scores(rows: list[dict]) -> dict[str, float]:
        found = transcription([row["transcript"] for row in rows], [row["beam"] for row in rows])
        return {f"beam_{name}": value for name, value in found.items()}

    processor = Wav2Vec2Processor(feature_extractor(data, frontend), vocabulary.tokenizer())
    return Labelled(
        batches=Batches(opened, data, frontend, dim=dim, batch_size=train.batch_size, seed=train.seed, bad_log=bad_log),
        splits=splits,
        head={
            "id2label": dict(enumerate(letters)),
            "label2id": {letter: code for code, letter in enumerate(letters)},
            "pad_token_id": 0,
        },
        score=lambda outputs, texts: transcription(texts, [vocabulary.greedy(logits) for logits in outputs]),
        metric="wer",
        rows=rows,
        classes=None,
        save_preprocessor=lambda place: processor.save_pretrained(place),
        row_scores=beam_scores if search else None,
    )
