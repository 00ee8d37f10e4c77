"""Text: byte-pair tokens and learned positions; blocks of whole lines; span masks."""

from modalities.text.data import Batches, DataConfig, Samples, batches, prepare, save_preprocessor
from modalities.text.frontend import Frontend, FrontendConfig

__all__ = ["Batches", "DataConfig", "Frontend", "FrontendConfig", "Samples", "batches", "prepare", "save_preprocessor"]
