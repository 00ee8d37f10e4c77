"""An encoder from a folder or the Hub, checked against the config that it is to be used with."""

from dataclasses import fields
from pathlib import Path

from d2v import plugins
from d2v.configuration import D2vConfig
from d2v.interop.fidelity import QUIRKS
from d2v.modeling import D2vModel


def open_encoder(path: str, modality: str, *, quirks: bool = True) -> D2vModel:
    """The encoder of `model=path`, which must read `modality`. ValueError: no model there, or it reads another modality.

    `quirks` false: without those of the reference's that make a sample's features depend on the padding beside it.
    """
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"model={path} is no folder with a config.json; give a run's export/ folder")
    try:
        config = D2vConfig.from_pretrained(path)
        if not config.frontends:
            raise ValueError(f"model={path} is no encoder of d2v: its config.json names no frontends")
        if modality not in config.frontends:
            raise ValueError(f"model={path} reads {', '.join(config.frontends)}, but the config is for {modality}")
        if not quirks:
            known = {field.name for field in fields(plugins.load("modalities", modality).FrontendConfig)}
            config.frontends[modality] |= dict.fromkeys(QUIRKS & known, False)
        return D2vModel.from_pretrained(path, config=config)
    except OSError as error:
        raise ValueError(f"model={path} cannot be loaded: {str(error).splitlines()[0]}") from None
