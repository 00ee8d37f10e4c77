"""Several data sets as one, of the columns that all of them have."""

import datasets
import numpy as np


def join(parts: list[datasets.Dataset], split: str) -> datasets.Dataset:
    """One data set of the common columns; class names are united.

    ValueError: no common column, or one that is of different types.
    """
    everywhere = set.intersection(*(set(part.column_names) for part in parts))
    common = [name for name in parts[0].column_names if name in everywhere]  # in the order of the first
    if not common:
        listed = "; ".join(", ".join(part.column_names) for part in parts)
        raise ValueError(f"the parts of data.path share no column: {listed}")
    parts = [part.select_columns(common) for part in parts]
    for name in common:
        kinds = [part.features[name] for part in parts]
        if all(isinstance(kind, datasets.ClassLabel) for kind in kinds) and any(kind != kinds[0] for kind in kinds):
            parts = _with_united_classes(parts, name)
    try:
        return datasets.concatenate_datasets([part.select_columns(common) for part in parts])
    except ValueError as error:
        raise ValueError(f"the parts of data.path (split {split!r}) do not fit together: {error}") from error


def _with_united_classes(parts: list[datasets.Dataset], name: str) -> list[datasets.Dataset]:
    """The parts with a column of class labels numbered by the names of all of them."""
    names: set[str] = set()
    for part in parts:
        names.update(part.features[name].names)
    united = datasets.ClassLabel(names=sorted(names))
    renumbered = []
    for part in parts:
        labels = part.features[name].int2str(list(part[name]))
        codes = np.asarray(united.str2int(labels))
        renumbered.append(part.remove_columns(name).add_column(name, codes, feature=united))
    return renumbered
