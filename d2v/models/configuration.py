"""D2vConfig: the configuration that `from_pretrained` reads."""

from dataclasses import asdict, is_dataclass
from typing import Any

from transformers import PreTrainedConfig


class D2vConfig(PreTrainedConfig):
    """`frontends`: modality name -> fields of its FrontendConfig; `trunk`: fields of TrunkConfig; all as plain dicts.

    `task`: fields of the task model's own settings (d2v/models/task_models.py: ClassifierConfig or CTCConfig); an
    encoder alone has none.
    `origin`: see d2v/interop/huggingface/conversion.py; empty where a model is d2v's own.
    `label_mean`, `label_std`: of the numbers that a regression learnt, which its head tells as 0 and 1, given before
    the model is built.
    """

    model_type = "d2v"

    def __init__(
        self,
        frontends: dict | None = None,
        trunk: Any = None,
        task: Any = None,
        origin: dict | None = None,
        label_mean: float = 0.0,
        label_std: float = 1.0,
        **kwargs,
    ):
        self.frontends = {name: _fields(config) for name, config in (frontends or {}).items()}
        self.trunk = _fields(trunk or {})
        self.task = _fields(task or {})
        self.origin = origin or {}
        self.label_mean, self.label_std = label_mean, label_std
        super().__init__(**kwargs)

    @property
    def has_units(self) -> bool:
        """Whether the head's numbers are in other units than their labels."""
        return (self.label_mean, self.label_std) != (0, 1)


def _fields(config: Any) -> dict:
    return asdict(config) if is_dataclass(config) else dict(config)  # type: ignore[arg-type]
