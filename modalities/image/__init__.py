"""Images: patches of pixels, hidden in blocks, or views of the same image."""

from d2v.modalities.common.kinds import IMAGES
from d2v.modalities.image.batches import batches
from d2v.modalities.image.config import DataConfig, LabelledConfig
from d2v.modalities.image.frontend import Frontend, FrontendConfig
from d2v.modalities.image.labelled import labelled_task
from d2v.modalities.image.samples import Samples, inherit, prepare, queries, save_preprocessor
from d2v.modalities.image.side import Side, SideConfig
from d2v.modalities.image.views import VIEWS

PREPARED = ()
QUERIES = IMAGES

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
