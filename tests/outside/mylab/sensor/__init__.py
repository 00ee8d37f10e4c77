"""Signals of a sensor: one .npy file of numbers each, in a folder by class; a token is eight numbers."""

from mylab.sensor.batches import batches
from mylab.sensor.config import DataConfig, FrontendConfig, LabelledConfig
from mylab.sensor.frontend import Frontend
from mylab.sensor.labelled import labelled_task
from mylab.sensor.samples import Samples, inherit, prepare, save_preprocessor

VIEWS = ("noisy",)
PREPARED = ()

__all__ = [
    "PREPARED",
    "VIEWS",
    "DataConfig",
    "Frontend",
    "FrontendConfig",
    "LabelledConfig",
    "Samples",
    "batches",
    "inherit",
    "labelled_task",
    "prepare",
    "save_preprocessor",
]
