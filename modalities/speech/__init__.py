"""Speech: waveforms of any format and rate, read as frames of 20 ms."""

from modalities.speech.batches import Batches, batches
from modalities.speech.data import DataConfig, Samples, prepare, save_preprocessor
from modalities.speech.frontend import MODALITY, Frontend, FrontendConfig

__all__ = ["MODALITY", "Batches", "DataConfig", "Frontend", "FrontendConfig", "Samples", "batches", "prepare", "save_preprocessor"]
