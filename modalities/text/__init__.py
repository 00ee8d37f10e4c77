"""Text: byte-pair tokens and learned positions; blocks of whole lines; span masks."""

from modalities.text.data import Batches, DataConfig, Samples, ViewBatches, batches, prepare, save_preprocessor
from modalities.text.frontend import Frontend, FrontendConfig
from modalities.text.views import VIEWS

__all__ = [
    "VIEWS", "Batches", "DataConfig", "Frontend", "FrontendConfig", "Samples", "ViewBatches", "batches", "prepare", "save_preprocessor",
]  # fmt: skip
