"""Speech: waveforms of any format and rate, read as frames of 20 ms."""

from modalities.speech.batches import Batches, ViewBatches, batches
from modalities.speech.data import DataConfig, Samples, prepare, save_preprocessor
from modalities.speech.frontend import MODALITY, Frontend, FrontendConfig
from modalities.speech.views import VIEWS

__all__ = [
    "MODALITY", "VIEWS", "Batches", "DataConfig", "Frontend", "FrontendConfig", "Samples", "ViewBatches", "batches", "prepare", "save_preprocessor",
]  # fmt: skip
