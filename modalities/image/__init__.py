"""Images: patches of pixels, hidden in blocks, or views of the same image."""

from d2v.modalities.image.batches import ImageBatches, batches
from d2v.modalities.image.data import DataConfig, Samples, prepare, save_preprocessor
from d2v.modalities.image.frontend import MODALITY, Frontend, FrontendConfig
from d2v.modalities.image.views import VIEWS

__all__ = [
    "MODALITY",
    "VIEWS",
    "DataConfig",
    "Frontend",
    "FrontendConfig",
    "ImageBatches",
    "Samples",
    "batches",
    "prepare",
    "save_preprocessor",
]
