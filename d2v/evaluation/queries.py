"""What somebody looks for, as a vector in the space of a table of features: by the model that made the table."""

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from d2v import plugins
from d2v.config.loading import typed
from d2v.evaluation.config import EmbedConfig
from d2v.evaluation.embedding import embed, fingerprint
from d2v.evaluation.index import Index
from d2v.evaluation.load_encoder import open_alignment, open_alone, projection_of


class Query(NamedTuple):
    """A vector (D,), and what it is of, as a person sees it: a picture of Pillow, or words."""

    vector: np.ndarray
    picture: Any


def readers(more: tuple[str, ...] = ()) -> dict[str, ModuleType]:
    """The modalities that read queries, ours and `more`, by their names: see Modality.queries of d2v/protocols.py."""
    found = {}
    for name in dict.fromkeys([*plugins.available("d2v.modalities"), *more]):
        module = plugins.trusted("d2v.modalities", name)
        if "queries" in vars(module):
            found[name] = module
    return found


def embedded(index: Index, modality: str, given: str, model: str = "", device: str | torch.device = "cpu") -> Query:
    """`given`, a file's path or words, as `modality` reads it; `model`: where the table's model is, if it has moved.

    ValueError: the table cannot be compared with it, or it cannot be read.
    """
    about = index.about
    path = _model(index, model)
    if modality != about["modality"] and not index.projected:
        raise ValueError(
            f"{index.path} holds features of {about['modality']} that are not projected, so that a query of {modality} "
            f"cannot be compared with them; embed its files with a model that aligns {about['modality']} and {modality}"
        )
    aligned = open_alignment(path) if index.projected else None
    projection = projection_of(aligned, modality)
    if index.projected and projection is None:
        known = "no modalities" if aligned is None else ", ".join(aligned.projections)
        raise ValueError(f"{path} aligns {known}: a query of {modality} cannot be compared with {index.path}")
    same = modality == about["modality"]
    data = {name: value for name, value in about["data"].items() if name != "path"} if same else {}
    opened = open_alone(path, modality, data, about["frontend"] if same else {})
    weights = fingerprint(opened.encoder if aligned is None else aligned)
    if weights != about["weights"]:
        raise ValueError(
            f"{index.path} was made by {about['model']} (weights {about['weights']}), and {path} is another model "
            f"(weights {weights}): what they give cannot be compared; embed the files again by it, or leave model= out"
        )
    samples = readers((modality,))[modality].queries([given], opened.data, opened.frontend, opened.folder)
    settings = typed(EmbedConfig, about["embed"], "embed", str(index.path))
    layer = None if projection is None else projection.to(device)
    part = embed(opened.encoder.to(device), samples, settings, device, projection=layer)
    if part.bad:
        raise ValueError(f"query={given} cannot be read by {modality}: {part.bad[0][1]}")
    return Query(part.features[0], samples.picture(0))


def _model(index: Index, model: str) -> str:
    """Where the table's model is. ValueError: the table does not say it, or it is gone."""
    if not index.about:
        raise ValueError(
            f"{index.path} does not say which model made it; embed its files again, or search it by id=NAME"
        )
    path = model or index.about["model"]
    if not model and Path(path).is_absolute() and not Path(path).exists():
        raise ValueError(f"{index.path} was made by the model {path}, which is gone; model=PATH says where it is now")
    return path
