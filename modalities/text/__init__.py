"""Text: byte-pair tokens and learned positions; blocks of whole lines; span masks."""

from d2v.modalities.text.batches import batches
from d2v.modalities.text.config import DataConfig, LabelledConfig
from d2v.modalities.text.frontend import Frontend, FrontendConfig
from d2v.modalities.text.labelled import labelled_task
from d2v.modalities.text.samples import Samples, inherit, prepare, queries, save_preprocessor
from d2v.modalities.text.side import Side, SideConfig
from d2v.modalities.text.views import VIEWS

PREPARED = ("tokenizer",)
QUERIES = ()

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
