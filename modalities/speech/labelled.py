"""Classes or numbers of whole utterances, for fine-tuning: see tuning.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2v.modalities.common import answers, labels
from d2v.modalities.speech import choice, transcribed
from d2v.modalities.speech.config import LabelledConfig, TranscribedConfig
from d2v.modalities.speech.samples import Samples, save_preprocessor
from d2v.modalities.speech.tuning import LabelledBatches
from d2v.models.task_models import D2vForCTC, D2vForSequenceClassification
from d2v.protocols import Labelled, LabelledTask, Unlabelled
from d2v.reading import Limit

READ = ("path", "split", "max_bad_share", "min_seconds", "max_seconds", "label")
UNLABELLED = Unlabelled(Samples, answers.says, READ, answers.known)


def labelled_task(data: dict) -> LabelledTask:
    """Letters of transcripts by CTC, or classes or numbers, as the settings say or else the data has.

    ValueError: as choose.
    """
    kind, settings, said = choice.choose(data)
    if kind == choice.LETTERS:
        return LabelledTask(
            TranscribedConfig, D2vForCTC, transcribed.open_data, kind, settings, said, transcribed.UNLABELLED
        )
    return LabelledTask(LabelledConfig, D2vForSequenceClassification, open_data, kind, settings, said, UNLABELLED)


def open_data(config: Any, folder: Path, bad_log: Callable[[str, str], None], say: Callable[[str], None]) -> Labelled:
    """The batches and splits of a run. ValueError: as Samples and labels.open_splits."""
    data, frontend, train = config.data, config.frontend, config.train

    def make(split: str) -> Samples:
        samples = Samples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    opened = labels.open_splits(data, train.seed, make, group=data.group)
    for note in opened.notes:
        say(note)
    dim = config.model.trunk.dim
    limit = Limit(bad_log, data.max_bad_share, len(opened.indices))
    batches = LabelledBatches(
        opened, data, frontend, dim=dim, batch_size=train.batch_size, seed=train.seed, bad_log=limit
    )
    return labels.labelled(opened, batches, lambda place: save_preprocessor(place, folder, data, frontend))
