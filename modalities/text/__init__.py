"""Text: byte-pair tokens and learned positions; blocks of whole lines; span masks."""

from d2v.modalities.text.batches import batches
from d2v.modalities.text.config import DataConfig, LabelledConfig
from d2v.modalities.text.frontend import Frontend, FrontendConfig
from d2v.modalities.text.samples import Samples, prepare, save_preprocessor
from d2v.modalities.text.views import VIEWS

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
