"""A small world of four colours, each with pictures, tones and words, and a real encoder whose projections fit it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from colours import COLOURS
from torch import Tensor

from d2v import plugins
from d2v.config.loading import from_dict
from d2v.models.alignment import D2vForAlignment
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.heads import mean_of_tokens
from d2v.types import View

FRONTENDS = {
    "image": {"image_size": 8, "patch_size": 4, "relative_bias": False, "class_token": False, "positions": "sincos"},
    "speech": {"kind": "mel", "sample_rate": 8000, "mel_bins": 20, "pos_groups": 4, "pos_kernel": 3, "pos_depth": 1},
    "text": {"max_positions": 32},
}
DATA: dict[str, dict[str, Any]] = {
    "image": {"mean": [0.4], "std": [0.3], "min_block": 1},
    "speech": {"max_seconds": 2},
    "text": {"vocab_size": 280, "block_size": 32, "min_tokens": 1},
}


def pooled(encoder: D2vModel, view: View) -> Tensor:
    return mean_of_tokens(encoder(view).x.float(), view.padding)


def samples_of(table: Path, prepared: Path) -> dict[str, Any]:
    """The samples of each modality of a table, and in `prepared` their tokenizer; frontends as they became."""
    found = {}
    for name, frontend in FRONTENDS.items():
        values = {"model": {"frontends": {name: frontend}}, "data": {"path": str(table), **DATA[name]}}
        config, modality = from_dict(values), plugins.load("d2v.modalities", name)
        modality.prepare(config.data, config.frontend, prepared, 0)
        found[name] = modality.Samples(config.data, config.frontend, split="train", folder=prepared)
    return found


def samples_of_text(path: Path, prepared: Path, like: Any) -> Any:
    """Another table of texts, with the tokenizer of some."""
    module = plugins.load("d2v.modalities", "text")
    return module.Samples(replace(like.config, path=str(path)), like.frontend, split="train", folder=prepared)


def model_of(samples: dict[str, Any], seed: int = 0, *, fitted: bool = True) -> D2vForAlignment:
    """A random encoder; least squares fit its projections to colours, unless they are to be random too."""
    torch.manual_seed(seed)
    frontends = {name: one.frontend for name, one in samples.items()}
    trunk = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
    model = D2vForAlignment(D2vConfig(frontends, trunk, {"projection_dim": len(COLOURS)})).eval()
    for name, one in samples.items() if fitted else ():
        with torch.no_grad():
            features = torch.cat([pooled(model.encoder, one.view([row])) for row in range(len(one))])  # (n, D)
        wanted = torch.eye(len(COLOURS))[[list(COLOURS).index(label) for label in one.column("label")]]
        weights = torch.linalg.lstsq(features.double(), wanted.double(), driver="gelsd").solution  # (D, colours)
        model.projections[name].weight.data = weights.T.float()
    return model


def export(model: D2vForAlignment, samples: dict[str, Any], prepared: Path, folder: Path) -> Path:
    """As a joint run does: beside the weights a folder for each modality, which says how its inputs are read."""
    model.save_pretrained(folder)
    for name, one in samples.items():
        (folder / name).mkdir()
        plugins.load("d2v.modalities", name).save_preprocessor(folder / name, prepared, one.config, one.frontend)
    return folder


def write_configs(folder: Path) -> None:
    """NAME.yaml of each modality, by which its samples are read."""
    for name, frontend in FRONTENDS.items():
        values = {"model": {"frontends": {name: frontend}}, "data": DATA[name]}
        (folder / f"{name}.yaml").write_text(json.dumps(values))
