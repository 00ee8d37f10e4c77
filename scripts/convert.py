"""Turns transformers' Data2Vec and ViT models into d2v's, d2v's into those, and either into an ONNX file.

d2v convert SOURCE TARGET [modality=NAME] [run.overwrite=true]

SOURCE is a folder, a run's folder or a name on the Hub; what it holds says the direction. TARGET is a new folder, with
the preprocessor or tokenizer of SOURCE, or a file that ends in .onnx. `modality` takes one out of a model of several;
where no class of transformers fits it, it stays a model of d2v. That of a modality of your own is named by its module.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from d2v import plugins
from d2v.config.cli import run_cli, take_arguments
from d2v.config.written import in_home
from d2v.files import check_file, check_folder, check_place, record_results, replaced, writing
from d2v.interop.huggingface import from_transformers, to_transformers
from d2v.interop.onnx import export_onnx
from d2v.interop.pretrained import load_ours, read_config
from d2v.models.configuration import D2vConfig
from d2v.models.slices import one_modality
from d2v.shown import printable
from d2v.training.preparation import FILES, preparation_of
from d2v.training.weights import folder_of_model, read_encoder

OPTIONS = {"run.overwrite=true": True, "run.overwrite=false": False}


def main(argv: list[str]) -> None:
    """`argv`: SOURCE TARGET [modality=NAME] [run.overwrite=true]. ValueError: whatever the user can mend."""
    given, rest = take_arguments(argv, "modality")
    paths, options = [in_home(a) for a in rest if a not in OPTIONS], [OPTIONS[a] for a in rest if a in OPTIONS]
    if len(paths) != 2:
        raise ValueError(
            "usage: d2v convert SOURCE TARGET [modality=NAME] [run.overwrite=true]; "
            f"{len(paths)} of two paths were given: {' '.join(paths)}"
        )
    if "." in given["modality"]:  # of a package of the user's, who names it: a model alone has nothing imported
        plugins.load("d2v.modalities", given["modality"])
    source, target = _model_of(paths[0]), Path(paths[1])
    _check_target(target, source, any(options))
    model, taken_out = _opened(source, given["modality"])
    if target.suffix == ".onnx":
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            record_results(target.with_name(name) for name in _onnx_files(target))
            difference = export_onnx(model, target)
        print(f"{target}: onnxruntime and torch differ by at most {difference:.1e}")
        return
    converted, why = _converted(model, source, taken_out=taken_out)
    (modality,) = model.config.frontends
    with replaced(target) as draft:
        converted.save_pretrained(draft)
        copied = copy_preprocessor(str(preparation_of(Path(source), modality)), draft)
    beside = ", ".join(copied) or "no preprocessor or tokenizer: SOURCE has none"
    print(printable(f"{target}: {type(converted).__name__}, with {beside}{why}"))


def _opened(source: str, modality: str) -> tuple[Any, bool]:
    """The model of ours that a source is or becomes, and whether it was taken out of one of several modalities.

    ValueError: it reads several and none was named, or it does not read the one that was.
    """
    config = read_config(source)
    if not isinstance(config, D2vConfig):
        model = from_transformers(source)
        _check_modality(source, list(model.config.frontends), modality)
        return model, False
    _check_modality(source, list(config.frontends), modality)
    if len(config.frontends) < 2:
        return load_ours(source), False
    return one_modality(read_encoder(source, config), modality), True


def _check_modality(source: str, names: list[str], modality: str) -> None:
    """ValueError: as _opened."""
    if modality and modality not in names:
        raise ValueError(f"modality is {modality}; {source} reads {', '.join(names)}")
    if not modality and len(names) > 1:
        raise ValueError(
            f"{source} reads {', '.join(names)}: say which one is taken out of it, e.g. modality={names[0]}"
        )


def _converted(model: Any, source: str, *, taken_out: bool) -> tuple[Any, str]:
    """What is written: of transformers a model of ours, of ours one of transformers, and what more is said of it.

    What was taken out of a model of several modalities stays one of ours where no class of transformers holds it.
    ValueError: none does.
    """
    if not isinstance(read_config(source), D2vConfig):
        return model, ""
    try:
        return to_transformers(model), ""
    except ValueError as error:
        if not taken_out:
            raise
        return model, f"; it stays a model of d2v: {error}"


def copy_preprocessor(source: str, folder: Path) -> list[str]:
    """Copies the preprocessor's and tokenizer's files of a folder or Hub name; their names."""
    copied = []
    for name in FILES:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            shutil.copyfile(path, folder / name)
            copied.append(name)
    return copied


def _check_target(target: Path, source: str, overwrite: bool) -> None:
    """ValueError: nothing can be written there, or something is there that may not be replaced.

    What d2v wrote may be, if it is not the source's own.
    """
    check_place(target)
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; run.overwrite=true replaces it")
    if target.exists() and target.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
        raise ValueError(f"{target} holds SOURCE, {source}; run.overwrite does not remove it")
    if target.exists() and target.is_dir() != (target.suffix != ".onnx"):
        raise ValueError(
            f"{target} is not what would be written there (a folder, or an .onnx file); "
            "run.overwrite does not remove it"
        )
    if target.suffix != ".onnx":
        check_folder(target)
        return
    for name in _onnx_files(target):
        check_file(target.with_name(name))


def _onnx_files(target: Path) -> list[str]:
    """The file, and the one beside it that holds large weights."""
    return [target.name, f"{target.name}.data"]


def _model_of(source: str) -> str:
    return str(folder_of_model(Path(source)))


if __name__ == "__main__":
    run_cli(main)
