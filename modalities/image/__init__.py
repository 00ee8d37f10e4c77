"""Images: patches of pixels, hidden in blocks, or views of the same image."""

from modalities.image.batches import ImageBatches, batches
from modalities.image.data import DataConfig, Samples, prepare, save_preprocessor
from modalities.image.frontend import MODALITY, Frontend, FrontendConfig
from modalities.image.views import VIEWS

__all__ = ["MODALITY", "VIEWS", "DataConfig", "Frontend", "FrontendConfig", "ImageBatches", "Samples", "batches", "prepare", "save_preprocessor"]
