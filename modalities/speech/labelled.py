"""Classes or numbers of whole utterances, for fine-tuning: see tuning.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from d2v.finetuning.config import FinetuneConfig
from d2v.finetuning.labelled import Labelled
from d2v.modalities.common import labels
from d2v.modalities.speech.data import Samples, save_preprocessor
from d2v.modalities.speech.tuning import Batches, LabelledConfig, check_start


@dataclass
class DataConfig(LabelledConfig):
    """Utterances and the column with their label."""

    regression: bool = False  # the label is a number


def open_data(
    config: FinetuneConfig, folder: Path, bad_log: Callable[[str, str], None], say: Callable[[str], None]
) -> Labelled:
    """The batches and splits of a run. ValueError: as Samples, check_start and labels.open_splits."""
    data, frontend, train = config.data, config.frontend, config.train
    check_start(data, train.init_from)

    def make(split: str) -> Samples:
        samples = Samples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    opened = labels.open_splits(data, train.seed, make, group=data.group)
    dim = config.model.trunk.dim
    batches = Batches(opened, data, frontend, dim=dim, batch_size=train.batch_size, seed=train.seed, bad_log=bad_log)
    return labels.labelled(opened, batches, lambda place: save_preprocessor(place, folder, data, frontend))
