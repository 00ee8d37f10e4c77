"""Speech: waveforms of any format and rate, read as frames of 20 ms."""

from d2v.modalities.speech.batches import batches
from d2v.modalities.speech.config import DataConfig, LabelledConfig
from d2v.modalities.speech.frontend import Frontend, FrontendConfig
from d2v.modalities.speech.labelled import labelled_task
from d2v.modalities.speech.samples import Samples, inherit, prepare, save_preprocessor
from d2v.modalities.speech.side import Side, SideConfig
from d2v.modalities.speech.views import VIEWS

PREPARED = ()

__all__ = [
    "PREPARED",
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
    "save_preprocessor",
]
