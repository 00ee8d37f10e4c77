"""d2v: multimodal self-distillation; this package knows tokens and never knows what an image, a waveform or a word is."""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder

__version__ = "0.1.0"
__all__ = ["D2vConfig", "D2vForCTC", "D2vForImageClassification", "D2vForSequenceClassification", "D2vModel"]

_HOMES = {name: "d2v.tasks" for name in __all__} | {"D2vConfig": "d2v.configuration", "D2vModel": "d2v.modeling"}
_AUTO = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"


def __getattr__(name: str):
    if name in _HOMES:  # transformers' modelling code takes seconds to import; only those who build a model wait for it
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'd2v' has no attribute {name!r}")


def _register(auto) -> None:
    """AutoConfig learns of D2vConfig; the others of D2vModel and the task models, which register themselves."""
    if auto.__name__ == _AUTO[0]:
        auto.AutoConfig.register("d2v", importlib.import_module("d2v.configuration").D2vConfig, exist_ok=True)
    else:
        importlib.import_module("d2v.tasks")


class _WhenAutoIsImported(MetaPathFinder):
    """Registers at the moment when transformers' Auto classes are first imported: importing them here would cost every program 0.7 s."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register
        return spec


for _name in _AUTO:
    if _name in sys.modules:
        _register(sys.modules[_name])
    else:
        sys.meta_path.insert(0, _WhenAutoIsImported(_name))
