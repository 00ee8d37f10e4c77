"""Frozen features of samples: tokens by layer, pooled over what is no padding, in batches of similar length.

B samples of a batch, T content tokens, D width, N samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from d2v.models.heads import mean_of_tokens
from d2v.protocols import Samples
from d2v.reading import Reader
from d2v.types import Features, View


@contextmanager
def frozen(encoder: torch.nn.Module) -> Iterator[None]:
    """Inside, the encoder is in eval mode and nothing has gradients; afterwards the mode of each part is as before."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def by_length(lengths: np.ndarray | None, batch_size: int, indices: np.ndarray) -> list[np.ndarray]:
    """`indices` in batches of samples of similar length, shortest first; `lengths` is of all samples."""
    order = indices if lengths is None else indices[np.argsort(lengths[indices], kind="stable")]
    return np.split(order, range(batch_size, len(order), batch_size)) if len(order) else []


def layer_tokens(encoder, view: View, layers: Sequence[str], setting: str) -> tuple[dict[str, Tensor], Features]:
    """Tokens (B, T, D) by the layer's name, and what the encoder returned.

    Names: "local" (tokens before the trunk), "1".. (the end of each block) and "last" (trunk output, with the final
    norm if there is one); "all": each of them. ValueError: the encoder has no such layer; `setting` is where the user
    asked for it.
    """
    local = encoder.embed(view)  # (B, T, D)
    ends = set(layers) <= {"local", "last"}  # then the blocks' ends need not be kept in memory
    features = encoder(view, tokens=local, layers="none" if ends else "block")
    tokens = {"local": local, **{str(i): x for i, x in enumerate(features.layers, 1)}, "last": features.x}
    unknown = [name for name in layers if name not in ("all", *tokens)]
    if unknown:
        raise ValueError(f"{setting} is {unknown[0]!r}; this encoder has {', '.join(tokens)}")
    return tokens if "all" in layers else {name: tokens[name] for name in layers}, features


def class_token(features: Features, message: str) -> Tensor:
    """Of the trunk's output, (B, D). ValueError with `message`: the encoder has none."""
    if features.extra is None:
        raise ValueError(message)
    return features.extra[:, 0].float()


def pooled_features(
    encoder,
    samples: Samples,
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    indices: np.ndarray | None = None,
    layer: str = "all",
) -> dict[str, np.ndarray]:
    """Mean over content tokens in eval mode: layer's name (as in layer_tokens) -> (N, D) in the order of `indices`.

    `indices` None: all samples. `layer` keeps one layer only; "class" is the class token of the trunk's output in place
    of a mean. ValueError: the encoder has no such layer, or a sample cannot be read.
    """
    indices = np.arange(len(samples)) if indices is None else np.asarray(indices)
    return readable_features(Reader(), encoder, samples, batch_size, device, indices=indices, layer=layer)[1]


def readable_features(
    reader: Reader,
    encoder,
    samples: Samples,
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    indices: np.ndarray,
    layer: str = "all",
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The places in `indices` that can be read, sorted, and features of these: see pooled_features.

    ValueError: the encoder has no such layer, or too many samples cannot be read.
    """

    def read(view: View) -> dict[str, Tensor]:
        if layer == "class":
            return {layer: class_token(encoder(view), "evaluate.layer is 'class'; this encoder has no class token")}
        tokens = layer_tokens(encoder, view, [layer], "evaluate.layer")[0]
        return {name: mean_of_tokens(x.float(), view.padding) for name, x in tokens.items()}

    return _collected(reader, encoder, read, samples, batch_size, device, indices=indices)


def readable_vectors(
    reader: Reader,
    model,
    samples: Samples,
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    indices: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The places in `indices` that can be read, sorted, and `model.project` of these, (n, P) float32.

    ValueError: too many samples cannot be read, or vectors are not finite.
    """

    def read(view: View) -> dict[str, Tensor]:
        return {"": model.project(view).float()}

    places, found = _collected(reader, model, read, samples, batch_size, device, indices=indices)
    if not np.isfinite(found[""]).all():
        raise ValueError("vectors are not finite: the model is damaged, or its run diverged")
    return places, found[""]


def _collected(
    reader: Reader,
    model: torch.nn.Module,
    read: Callable[[View], dict[str, Tensor]],
    samples: Samples,
    batch_size: int,
    device: str | torch.device,
    *,
    indices: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The places that can be read, sorted, and what `read` gives of their views, by name."""
    lengths = None if samples.lengths is None else samples.lengths[indices]
    batches = by_length(lengths, batch_size, np.arange(len(indices)))
    there: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {}
    with frozen(model):
        for places, view in reader.views(samples, indices, batches):
            there.append(places)
            for name, x in read(view.to(device)).items():
                parts.setdefault(name, []).append(x.cpu().numpy())
    places = np.concatenate(there)
    order = np.argsort(places)
    return places[order], {name: np.concatenate(arrays)[order] for name, arrays in parts.items()}
