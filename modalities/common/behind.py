"""The samples behind rows of a table that `d2v embed` wrote, as a person sees them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from d2v import plugins
from d2v.config.loading import from_dict
from d2v.modalities.common.tables import identifiers
from d2v.protocols import Rows
from d2v.training.weights import home


def pictures(about: dict[str, Any], ids: Collection[str], path: str = "") -> dict[str, Any]:
    """A picture of Pillow, or words, by the id of each row whose sample can still be read.

    `about`: what the table says of itself (d2v/evaluation/index.py); `path`: where its data is, if it has moved.
    ValueError: the data or the settings cannot be opened.
    """
    name = about["modality"]
    values = {"model": {"frontends": {name: about["frontend"]}}, "data": about["data"]}
    config, module = from_dict(values, about["model"], ours=False), plugins.trusted("d2v.modalities", name)
    data = config.data
    data.path = path or data.path
    dataset = module.Samples.open(data, data.split)
    wanted, found = set(ids), dict[str, Any]()
    for row, one in enumerate(identifiers(dataset, data.path, data.split)):
        if one not in wanted:
            continue
        rows = Rows(dataset.select([row]), row)
        samples = module.Samples(data, config.frontend, split=data.split, folder=home(Path(about["model"])), rows=rows)
        if len(samples):  # else it is damaged by now
            found[one] = samples.picture(0)
    return found
