"""d2v: multimodal self-distillation; this package knows tokens and never knows what an image, a waveform or a word is."""

import importlib

from transformers import AutoConfig

from d2v.configuration import D2vConfig

__version__ = "0.1.0"
__all__ = ["D2vConfig", "D2vModel"]

AutoConfig.register("d2v", D2vConfig)  # AutoModel learns of D2vModel when such a config is read: see D2vConfig.from_dict


def __getattr__(name: str):
    if name == "D2vModel":  # transformers' modelling code takes seconds to import; only those who build a model wait for it
        return importlib.import_module("d2v.modeling").D2vModel
    raise AttributeError(f"module 'd2v' has no attribute {name!r}")
