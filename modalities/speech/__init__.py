"""Speech: waveforms of any format and rate, read as frames of 20 ms."""

from d2v.modalities.speech.batches import Batches, ViewBatches, batches
from d2v.modalities.speech.data import DataConfig, Samples, prepare, save_preprocessor
from d2v.modalities.speech.frontend import MODALITY, Frontend, FrontendConfig
from d2v.modalities.speech.views import VIEWS

__all__ = [
    "MODALITY", "VIEWS", "Batches", "DataConfig", "Frontend", "FrontendConfig", "Samples", "ViewBatches", "batches", "prepare", "save_preprocessor",
]  # fmt: skip
