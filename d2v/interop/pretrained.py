"""A folder or Hub name that transformers loads: whole, or an error that names the first weight that does not fit."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from d2v.interop.renaming import why_unread
from d2v.models.alignment import D2vForAlignment
from d2v.models.detection import D2vForObjectDetection
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForCTC, D2vForImageClassification, D2vForSequenceClassification

CUSTOM = "its config.json names code of its own (auto_map), which is not run"


def read_config(source: str | Path) -> PreTrainedConfig:
    """The config of a folder or Hub name. ValueError: there is none, or one of no architecture that is known."""
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"{source} has no config.json: it is not the folder of a model")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)  # else a terminal is asked whether to run it
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = CUSTOM
        raise ValueError(
            f"{source} is no folder of a model that can be read, nor to be had from the Hub: {reason}"
        ) from None


def load_whole(
    auto: Any, source: str | Path, drop: Callable[[str], bool] = lambda name: False, **arguments: Any
) -> Any:
    """What `auto.from_pretrained` makes of `source`, in float32; names for which `drop` is true may be missing or left
    over.

    ValueError: any other.
    """
    # transformers would take the precision that the weights were saved in, in which sums and norms lose much
    arguments = {"dtype": torch.float32, **arguments}
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
    try:
        with _without_its_report():
            model, report = auto.from_pretrained(source, **arguments)
    except (SafetensorError, OSError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{source} cannot be loaded: {why_unread(error)}") from None
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(f"{source} cannot be loaded: {CUSTOM}") from None
        raise
    for problem, names in (
        ("lacks", report["missing_keys"]),
        ("has, and the model does not,", report["unexpected_keys"]),
    ):
        wrong = sorted(name for name in names if not drop(name))
        if wrong:  # from_pretrained only warns, and fills what is missing at random
            raise ValueError(f"{source} {problem} the weight {wrong[0]} ({len(wrong)} in all)")
    for name, given, needed in sorted(report["mismatched_keys"]):
        raise ValueError(f"{source} has {name} of shape {tuple(given)}; its config asks for {tuple(needed)}")
    return model


@contextmanager
def _without_its_report() -> Iterator[None]:
    """Within it transformers prints no table of weights that fit or do not, which are checked here, and no bar."""
    logger, has_bar = logging.getLogger("transformers"), is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if has_bar:
            enable_progress_bar()


def load_ours(source: str | Path) -> Any:
    """The D2vModel or task model that the config of a folder or Hub name names.

    ValueError: none of them, or not whole.
    """
    tasks = (
        D2vForAlignment,
        D2vForCTC,
        D2vForImageClassification,
        D2vForObjectDetection,
        D2vForSequenceClassification,
    )
    known = {kind.__name__: kind for kind in (D2vModel, *tasks)}
    named = (read_config(source).architectures or [D2vModel.__name__])[0]
    if named not in known:
        raise ValueError(f"{source} holds a {named}; this reads {', '.join(known)}")
    return load_whole(known[named], source)
