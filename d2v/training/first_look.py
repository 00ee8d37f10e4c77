"""Looks at a run's data before its processes meet, as who waits for others does so only for so long.

On each machine the first process to come makes what is known of the data; the others wait for its file, and map it.
"""

import contextlib
import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from d2v import cache
from d2v.config.schema import Config


def look_first(config: Config, modality: Any) -> None:
    """Where there are several processes; a single one looks when it opens the data, and so does who keeps nothing.

    What is wrong with the data is said then, too, by one process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or not cache.is_usable():
        return
    data, frontend, init_from = copy.deepcopy(config.data), copy.deepcopy(config.frontend), config.train.init_from
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(ValueError, OSError):
        folder = Path(name)  # the run's own is not made yet
        for prepared in modality.PREPARED:
            if (Path(config.run.dir) / prepared).is_dir() and not config.run.overwrite:
                shutil.copytree(Path(config.run.dir) / prepared, folder / prepared)
        if init_from:
            modality.inherit(data, Path(init_from).expanduser(), None)
        modality.prepare(data, frontend, folder, config.train.seed)
        modality.Samples(data, frontend, split=data.split, folder=folder)
