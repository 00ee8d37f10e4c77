"""An encoder from a folder or the Hub, ours or a stock one, checked against the config that it is to be used with."""

from dataclasses import fields
from pathlib import Path

from d2v import plugins
from d2v.interop.fidelity import QUIRKS
from d2v.interop.huggingface import from_transformers
from d2v.interop.pretrained import load_whole, read_config
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel


def open_encoder(path: str, modality: str, *, quirks: bool = True) -> D2vModel:
    """The encoder of `model=path`, which must read `modality`.

    Of a task model without its head; a stock one of transformers becomes ours. `quirks` false: without those of the
    reference's that make a sample's features depend on the padding beside it. ValueError: no whole model there, or it
    reads another modality.
    """
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"model={path} is no folder with a config.json; give a run's export/ folder")
    try:
        config = read_config(path)
        if not isinstance(config, D2vConfig):
            model = from_transformers(path)
            encoder = model if isinstance(model, D2vModel) else model.base_model
            _check_modality(encoder.config, modality)
            return encoder
        _check_modality(config, modality)
        if not quirks:
            known = {field.name for field in fields(plugins.load("d2v.modalities", modality).FrontendConfig)}
            config.frontends[modality] |= dict.fromkeys(QUIRKS & known, False)
        return load_whole(D2vModel, path, lambda name: not name.startswith(("frontends.", "trunk.")), config=config)
    except ValueError as error:
        raise ValueError(f"model={path}: {error}") from None


def _check_modality(config: D2vConfig, modality: str) -> None:
    if not config.frontends:
        raise ValueError("no encoder of d2v: its config.json names no frontends")
    if modality not in config.frontends:
        raise ValueError(f"reads {', '.join(config.frontends)}, but the config is for {modality}")
