"""Speech: waveforms of any format and rate, read as frames of 20 ms."""

from d2v.modalities.common.kinds import AUDIO
from d2v.modalities.speech.batches import batches
from d2v.modalities.speech.config import DataConfig, LabelledConfig
from d2v.modalities.speech.frontend import Frontend, FrontendConfig
from d2v.modalities.speech.labelled import labelled_task
from d2v.modalities.speech.samples import Samples, inherit, prepare, queries, save_preprocessor
from d2v.modalities.speech.side import Side, SideConfig
from d2v.modalities.speech.views import VIEWS

PREPARED = ()
QUERIES = AUDIO

__all__ = [
    "PREPARED",
    "QUERIES",
    "VIEWS",
    "DataConfig",
    "Frontend",
    "FrontendConfig",
    "LabelledConfig",
    "Samples",
    "Side",
    "SideConfig",
    "batches",
    "inherit",
    "labelled_task",
    "prepare",
    "queries",
    "save_preprocessor",
]
