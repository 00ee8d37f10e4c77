"""A model as an ONNX file with free batch and length, written only if onnxruntime computes from it what torch does.

B samples, T content tokens, E extra tokens, D width.
"""

import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2v import plugins
from d2v.models.alignment import D2vForAlignment
from d2v.models.detection import D2vForObjectDetection
from d2v.models.encoder import D2vModel

TOLERANCE = 1e-4  # of the largest difference, where features are of the order of 1


def export_onnx(model: Any, path: str | Path) -> float:
    """Writes a D2vModel or task model.

    Returns the largest difference to it, measured at two lengths and batch sizes, with padding. Inputs have Hugging
    Face's names. Outputs of an encoder: last_hidden_state (B, T, D) and, with a class token, extra (B, E, D); of a
    task: logits, or embeds (B, P). ValueError: a package is absent, the model reads several modalities or is a
    detector, or the file computes something else.
    """
    # torch.onnx imports onnxscript when it is too late for a good message
    absent = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        which = f"package {absent[0]}, which is" if len(absent) == 1 else f"packages {' and '.join(absent)}, which are"
        raise ValueError(f"ONNX needs the {which} not installed: pip install 'd2v[onnx]'")
    import onnxruntime

    path, graph = Path(path), _Graph(model.eval())
    short, long = _example(model, rows=2, tokens=5), _example(model, rows=3, tokens=12)
    with torch.no_grad(), warnings.catch_warnings():
        # what is kept by functools.lru_cache is a constant of the graph; whether it may be is measured below
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        expected = [_arrays(graph, short), _arrays(graph, long)]  # also fills caches with real tensors
        names = [graph.output] if graph.task else ["last_hidden_state", "extra"][: len(expected[0])]
        free = tuple(_free_dimensions(x) for x in long.values())
        program = torch.onnx.export(
            graph.eval(),
            tuple(long.values()),
            dynamo=True,
            input_names=list(long),
            output_names=names,
            dynamic_shapes=(free,),
            verbose=False,
        )
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as draft:
        program.save(Path(draft) / path.name)  # and beside it, if the weights are large, their own file
        session = onnxruntime.InferenceSession(Path(draft) / path.name)
        differences = []
        for inputs, wanted in zip((short, long), expected, strict=True):
            outputs = session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
            differences += [_difference(np.asarray(x), y) for x, y in zip(outputs, wanted, strict=True)]
        worst = float(np.max(differences))  # of a nan it is nan, unlike Python's max
        if not worst <= TOLERANCE:
            raise ValueError(
                f"{path} is not written: onnxruntime's features differ from torch's by {worst:.1e}, "
                f"more than {TOLERANCE}"
            )
        for file in Path(draft).iterdir():
            file.replace(path.with_name(file.name))
    return worst


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest one, relative to the largest number; inf for another shape.

    What torch fills with the lowest number there is, letters in padding, has to be just that, and is no measure of the
    others: beside it every error would be small.
    """
    filled = wanted == np.finfo(wanted.dtype).min
    if found.shape != wanted.shape or not (found[filled] == wanted[filled]).all():
        return float("inf")
    found, wanted = found[~filled], wanted[~filled]
    return float(abs(found - wanted).max() / max(1, abs(wanted).max()))


def _arrays(graph: nn.Module, inputs: dict[str, Tensor]) -> list[Any]:
    """What torch computes, as arrays of numpy."""
    return [x.cpu().numpy() for x in graph(*inputs.values())]


def _free_dimensions(x: Tensor) -> dict[int, Any]:
    """Those of a file's input that may have any size: all but an image's channels, height and width."""
    return dict.fromkeys(range(x.ndim if x.ndim < 4 else 1), torch.export.Dim.DYNAMIC)


class _Graph(nn.Module):
    """The model with inputs by position and plain outputs."""

    def __init__(self, model: Any):
        super().__init__()
        if isinstance(model, D2vForObjectDetection):
            raise ValueError("no ONNX file of a detector is written: how many boxes it finds is known when it has run")
        self.model, self.task = model, not isinstance(model, D2vModel)
        self.output = "embeds" if isinstance(model, D2vForAlignment) else "logits"
        encoder = model.encoder if self.task else model
        if len(encoder.config.frontends) != 1:
            raise ValueError(
                f"an ONNX file takes the inputs of one modality; this model reads {', '.join(encoder.config.frontends)}"
                "; d2v.models.slices.one_modality takes one out"
            )
        self.names = list(_example(model, rows=1, tokens=1))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits or embeddings, or the features of content tokens and, if there are some, of extra tokens."""
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)))
        if self.task:
            return (outputs[self.output],)
        return (outputs.x,) if outputs.extra is None else (outputs.x, outputs.extra)


def _example(model: Any, rows: int, tokens: int) -> dict[str, Tensor]:
    """Inputs that give `tokens` tokens, the first row half as many, or images, which have a size."""
    encoder = model if isinstance(model, D2vModel) else model.encoder
    (modality,) = encoder.config.frontends
    config, generator = encoder.frontend(modality).config, torch.Generator().manual_seed(0)
    if modality == "image":
        shape = (rows, config.channels, config.image_size, config.image_size)
        inputs = {"pixel_values": torch.randn(shape, generator=generator)}
    else:
        tokens = min(tokens, config.max_positions) if modality == "text" else tokens
        length = tokens
        if modality != "text":
            length = plugins.load("d2v.modalities", modality).frontend.receptive_field(config, tokens)
        attention_mask = torch.ones(rows, length, dtype=torch.long)
        attention_mask[0, -(-length // 2) :] = 0
        if modality == "text":
            inputs = {"input_ids": torch.randint(config.vocab_size, (rows, length), generator=generator)}
        else:
            inputs = {"input_values": torch.randn(rows, length, generator=generator)}
        inputs["attention_mask"] = attention_mask
    return {name: value.to(model.device) for name, value in inputs.items()}
