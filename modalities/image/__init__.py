"""Images: patches of pixels, hidden in blocks."""

from modalities.image.data import DataConfig, ImageBatches, Samples, batches, prepare, save_preprocessor
from modalities.image.frontend import MODALITY, Frontend, FrontendConfig

__all__ = ["MODALITY", "DataConfig", "Frontend", "FrontendConfig", "ImageBatches", "Samples", "batches", "prepare", "save_preprocessor"]
