"""Writes features of files, recordings or texts, one row a sample, to a parquet or npy file.

d2v embed CONFIG model=PATH data.path=FOLDER out=features.parquet [embed.layers=[last] ...]

`model` is a run's folder, its export/ or one of its checkpoints, a folder of transformers or a name on the Hub; it
brings its size and how it was fed. CONFIG names the modality and how its data is found. Columns are id (the path below
data.path, or split and row) and features; of a model that aligns modalities these are unit vectors in the space that
they share, in which `d2v search` finds what words, a picture or a sound ask for. embed.pool=none writes each token.
Parts are kept in out.parts/ until the end: the same command goes on from them, and makes those again whose files have
changed since. Samples that cannot be read are left out, counted and named. Of a joint run part=NAME says which part is
meant.
"""

import dataclasses
import glob
from pathlib import Path
from typing import Any

import torch

from d2v import plugins
from d2v.config.cli import run_cli, take_arguments
from d2v.config.joint import load_parts
from d2v.evaluation.config import PROJECTED, TOKENS
from d2v.evaluation.embedding import embed_all, fingerprint
from d2v.evaluation.feature_table import FORMATS, Shards
from d2v.evaluation.load_encoder import open_alignment, open_model, projection_of
from d2v.files import check_new, locked
from d2v.modalities.common.part_inputs import PartInputs
from d2v.protocols import Rows
from d2v.reading import named
from d2v.settings import places_in
from d2v.shown import printable
from d2v.split_names import uses


def main(argv: list[str]) -> None:
    """`argv`: CONFIG model=PATH out=FILE [key=value ...]. ValueError: whatever the user can mend."""
    given, rest = take_arguments(argv, "model", "out", "part")
    if not rest or "=" in rest[0] or not (given["model"] and given["out"]):
        raise ValueError("usage: d2v embed CONFIG model=PATH data.path=FOLDER out=FILE.parquet [key=value ...]")
    configs, out = load_parts(rest[0], rest[1:], given["part"]), Path(given["out"])
    if len(configs) > 1:
        raise ValueError(f"{rest[0]} has several parts: give part=NAME of {', '.join(configs)}")
    (config,) = configs.values()
    if out.suffix not in FORMATS:
        raise ValueError(f"out={out} must end in {' or '.join(FORMATS)}")
    if config.embed.pool == TOKENS and out.suffix != ".parquet":
        raise ValueError(f"embed.pool=none writes as many tokens as a sample has: out={out} must end in .parquet")
    check_new(out, config.run.overwrite)
    modality = plugins.load("d2v.modalities", config.modality)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, data, frontend, folder = open_model(config, given["model"], print, quirks=False)
    aligned = open_alignment(given["model"])
    encoder = encoder.to(device)
    projection = projection_of(aligned, config.modality)
    asked = config.embed.of_model(projects=projection is not None)
    projection = projection.to(device) if projection is not None and asked.layers == [PROJECTED] else None
    rows = modality.Samples.open(data, data.split)

    data_settings = {key: value for key, value in dataclasses.asdict(data).items() if key != "max_bad_share"}
    settings = {
        "model": given["model"],
        "weights": fingerprint(encoder, projection),
        "data": data_settings,
        "frontend": dataclasses.asdict(frontend),  # images may be read at another size
        "embed": dataclasses.asdict(asked),
    }
    with locked(out.with_name(f"{out.name}.parts")):
        shards = Shards(out, settings, places=["model", *places_in({"data": data})], overwrite=config.run.overwrite)

        def part(start: int, stop: int):
            chosen = Rows(rows.select(range(start, stop)), start)
            samples = modality.Samples(data, frontend, split=data.split, folder=folder, rows=chosen)
            if start == 0:
                more = ["data.split=NAME, or several as NAME+NAME"]
                print(*samples.report.notes, uses(samples.report.splits, {data.split: "is embedded"}, more), sep="\n")
            return samples

        inputs = PartInputs(rows, data.path)
        embed_all(encoder, part, inputs, len(rows), shards, asked, device, projection=projection)
        shards.check(data.max_bad_share, data.path)
        bad, total = dict(shards.bad()), len(shards)
        weights = fingerprint(encoder if projection is None else aligned)
        where = {"modality": config.modality, "weights": weights, **places_of_tokens(encoder.frontend(config.modality))}
        shards.join({**about(settings, data), **where})
        left_out = f"; left out {len(bad)}: {named(bad)}" if bad else ""
        width = encoder.trunk.config.dim if projection is None else f"{projection.out_features} projected"
        each = "tokens of " if asked.pool == TOKENS else ""
        print(f"{total} samples of {each}{width} numbers in {out}{printable(left_out)}")


def places_of_tokens(frontend: Any) -> dict[str, Any]:
    """Where tokens lie in a sample: the seconds from one to the next, or the rows and columns of a grid."""
    seconds, grid = getattr(frontend, "token_seconds", None), frontend.grid
    return {"token_seconds": seconds} if seconds else {"grid": list(grid)} if grid else {}


def about(settings: dict, data: Any) -> dict:
    """What a table says of itself, so that `d2v search` can read queries as its rows were, from any folder."""
    said = dataclasses.asdict(data)
    for place in places_in({"data": data}):
        name = place.removeprefix("data.")
        if name in said:
            said[name] = absolute(said[name])
    return {**settings, "model": absolute(settings["model"]), "data": said}


def absolute(path: Any) -> Any:
    """A path, pattern or list of these that is right from every folder; a name on the Hub stays."""
    if isinstance(path, list):
        return [absolute(one) for one in path]
    is_local = isinstance(path, str) and path and (Path(path).exists() or glob.has_magic(path))
    return str(Path(path).absolute()) if is_local else path


if __name__ == "__main__":
    run_cli(main)
