"""Speech: waveforms of any format and rate, read as frames of 20 ms."""

from d2v.modalities.speech.batches import batches
from d2v.modalities.speech.config import DataConfig, LabelledConfig
from d2v.modalities.speech.frontend import Frontend, FrontendConfig
from d2v.modalities.speech.samples import Samples, prepare, save_preprocessor
from d2v.modalities.speech.views import VIEWS

__all__ = [
    "VIEWS",
    "DataConfig",
    "Frontend",
    "FrontendConfig",
    "LabelledConfig",
    "Samples",
    "batches",
    "prepare",
    "save_preprocessor",
]
