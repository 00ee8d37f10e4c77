"""Text: byte-pair tokens and learned positions; blocks of whole lines; span masks."""

from d2v.modalities.text.data import Batches, DataConfig, Samples, ViewBatches, batches, prepare, save_preprocessor
from d2v.modalities.text.frontend import Frontend, FrontendConfig
from d2v.modalities.text.views import VIEWS

__all__ = [
    "VIEWS", "Batches", "DataConfig", "Frontend", "FrontendConfig", "Samples", "ViewBatches", "batches", "prepare", "save_preprocessor",
]  # fmt: skip
