"""How a model was fed, as what lies with it says: the settings of its run, or a preprocessor of transformers."""

import logging
from pathlib import Path
from typing import Any

from d2v.config.bases import read_yaml
from d2v.interop.renaming import read_checkpoint
from d2v.training.preparation import data_of

log = logging.getLogger(__name__)
FILES = ("preprocessor_config.json", "processor_config.json")  # in which transformers keeps one


def of_run(source: Path, modality: str) -> dict[str, Any]:
    """The section data of a run by its folder, of several modalities that of one; empty: it is no run's.

    ValueError: it cannot be read.
    """
    path = source / "config.yaml"
    return data_of(read_yaml(path), modality) if path.is_file() else {}


def of_fairseq(source: Path) -> dict[str, Any]:
    """The task's settings of a fairseq checkpoint; empty: it is none, or has none. ValueError: it cannot be read."""
    cfg = read_checkpoint(source).get("cfg") if source.is_file() else None
    task = cfg.get("task") if isinstance(cfg, dict) else None
    return task if isinstance(task, dict) else {}


def preprocessor(auto: Any, source: Path) -> Any | None:
    """What an Auto class of transformers reads of a folder or Hub name; None: there is nothing, which is said.

    ValueError: it is damaged, or of another kind.
    """
    if source.is_file() or (source.exists() and not any((source / name).is_file() for name in FILES)):
        log.warning("%s does not say how the model was fed (it has no %s): the config does", source, FILES[0])
        return None
    try:
        return auto.from_pretrained(str(source))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        if source.exists():
            raise ValueError(f"{source}: {FILES[0]} cannot be read: {reason}") from None
        log.warning("%s does not say how the model was fed: the config does (%s)", source, reason)
        return None
