"""Features of any number of samples: read ahead, in batches of similar length, one part in memory at a time.

B rows of a batch, T content tokens, D width, n samples of a part.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from d2v.evaluation.config import PROJECTED, TOKENS, EmbedConfig
from d2v.evaluation.feature_table import Shards, Tokens
from d2v.evaluation.features import by_length, class_token, frozen, layer_tokens
from d2v.protocols import Stream
from d2v.reading import ahead, readable_views
from d2v.types import Features, View

FEW = 64  # samples of a part of tokens, each of which may have a thousand


class Part(NamedTuple):
    """Features of some samples in their order, and those that have none."""

    ids: list[str]
    features: np.ndarray | Tokens  # (n, D) float32, or the tokens of n samples
    bad: list[tuple[str, str]]  # id and reason


def embed(
    encoder,
    samples: Stream,
    config: EmbedConfig,
    device: str | torch.device = "cpu",
    *,
    projection: torch.nn.Module | None = None,
) -> Part:
    """Features of all samples. ValueError: the encoder has no such layer or no class token.

    `projection`: from the mean of a sample's tokens to what a model aligns modalities in, for embed.layers=[projected].
    """
    config = config.of_model(projects=projection is not None)
    bad: list[tuple[str, str]] = [*samples.report.unreadable, *samples.report.too_short]
    sums = np.zeros((len(samples), encoder.trunk.config.dim), dtype=np.float32)
    counts = np.zeros((len(samples), 1), dtype=np.float32)
    with frozen(encoder):
        for indices, view, counted in ahead(_views(samples, config, bad)):
            counted = counted if counted is None else counted.to(device)
            pooled, count = _sums(encoder, view.to(device), counted, config)
            np.add.at(sums, indices, pooled.cpu().numpy())
            np.add.at(counts, indices, count.cpu().numpy()[:, None])
    for index in np.flatnonzero((counts[:, 0] > 0) & ~np.isfinite(sums).all(axis=1)):
        bad.append((samples.ids[index], "its features are not finite: is the model damaged?"))
    unread = {name for name, _ in bad}  # also of a long one, of which some windows were read
    good = [index for index in np.flatnonzero(counts) if samples.ids[index] not in unread]
    features = sums[good] / counts[good]
    if config.layers == [PROJECTED] and projection is not None:
        features = projected(projection, features, config.batch_size, device)
    return Part([samples.ids[index] for index in good], features, bad)


def embed_tokens(encoder, samples: Stream, config: EmbedConfig, device: str | torch.device = "cpu") -> Part:
    """The content tokens of all samples, for embed.pool=none. ValueError: the encoder has no such layer."""
    bad: list[tuple[str, str]] = [*samples.report.unreadable, *samples.report.too_short]
    found: dict[int, list[np.ndarray]] = {}  # of a long one those of each window
    with frozen(encoder):
        for indices, view, counted in ahead(_views(samples, config, bad)):
            x, counted, _ = _tokens(encoder, view.to(device), counted, config)
            for row, index in enumerate(indices.tolist()):
                found.setdefault(index, []).append(x[row, counted[row]].cpu().numpy())
    whole = {index: np.concatenate(found[index]) for index in sorted(found)}
    for index, tokens in whole.items():
        if not np.isfinite(tokens).all():
            bad.append((samples.ids[index], "its features are not finite: is the model damaged?"))
    unread = {name for name, _ in bad}
    good = {samples.ids[index]: tokens for index, tokens in whole.items() if samples.ids[index] not in unread}
    none = np.zeros((0, encoder.trunk.config.dim), dtype=np.float32)
    return Part([*good], Tokens(np.concatenate([none, *good.values()]), [*map(len, good.values())]), bad)


@torch.no_grad()
def projected(projection: torch.nn.Module, features: np.ndarray, rows: int, device: str | torch.device) -> np.ndarray:
    """Means of tokens (n, D) as unit vectors (n, P); a projection is linear, so that it may follow the mean."""
    parts = [projection(some.to(device)).float() for some in torch.from_numpy(features).split(rows)]
    return F.normalize(torch.cat(parts), dim=1).cpu().numpy()


def _sums(encoder, view: View, counted: Tensor | None, config: EmbedConfig) -> tuple[Tensor, Tensor]:
    """The sum over what counts, (B, D), and how many tokens that are, (B,).

    `counted` (B, T) says what counts; None: all that is no padding.
    """
    x, counted, features = _tokens(encoder, view, counted, config)
    if config.pool == "class":
        message = "embed.pool is class, but this model has no class token; it may be mean or first"
        return class_token(features, message), x.new_ones(len(x))
    if config.pool == "first":
        counted = counted & (torch.arange(x.shape[1], device=x.device) == 0)
    return x.masked_fill(~counted[..., None], 0).sum(dim=1), counted.sum(dim=1)


def _tokens(encoder, view: View, counted: Tensor | None, config: EmbedConfig) -> tuple[Tensor, Tensor, Features]:
    """The mean of the layers' tokens, (B, T, D), which of them count, (B, T), and what the encoder returned."""
    layers = ["last"] if config.layers == [PROJECTED] else config.layers
    tokens, features = layer_tokens(encoder, view, layers, "embed.layers")
    x = torch.stack([tokens[name].float() for name in layers]).mean(dim=0)
    if counted is None:
        counted = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if view.padding is None else ~view.padding
    return x, counted.to(x.device), features


Batch = tuple[np.ndarray, View, Tensor | None]  # (B,) indices of the samples, their view, which tokens count


def _views(samples: Stream, config: EmbedConfig, bad: list[tuple[str, str]]) -> Iterator[Batch]:
    """Every sample once: whole ones by length, then those cut into windows; what cannot be read goes to `bad`."""
    cut = np.zeros(len(samples), dtype=bool) if samples.cut is None else samples.cut
    batches = by_room(samples.lengths, config.batch_size, np.flatnonzero(~cut))
    for indices, view in readable_views(samples, np.arange(len(samples)), batches, lambda *why: bad.append(why)):
        yield indices, view, None
    for index in np.flatnonzero(cut):
        try:
            for view, counted in samples.windows(int(index), config.overlap, config.batch_size):
                yield np.full(len(counted), index), view, counted
        except ValueError as error:
            bad.append((samples.ids[index], str(error)))


def by_room(lengths: np.ndarray | None, batch_size: int, indices: np.ndarray) -> list[np.ndarray]:
    """`indices` by length, shortest first, in batches that take, padded, no more room than `batch_size` of the longest.

    A batch has more rows than that only of lengths within a tenth: where samples are few, padding costs more than a
    small batch.
    """
    if lengths is None or not len(indices):
        return by_length(lengths, batch_size, indices)
    order = indices[np.argsort(lengths[indices], kind="stable")]
    room, borders, start = batch_size * lengths[order[-1]], [], 0
    for place, length in enumerate(lengths[order]):
        full = (place + 1 - start) * length > room
        uneven = place - start >= batch_size and length > 1.1 * lengths[order[start]]
        if full or uneven:
            borders.append(place)
            start = place
    return np.split(order, borders)


def embed_all(
    encoder,
    open_part: Callable[[int, int], Stream],
    inputs_of: Callable[[int, int], str],
    total: int,
    shards: Shards,
    config: EmbedConfig,
    device: str | torch.device = "cpu",
    *,
    projection: torch.nn.Module | None = None,
) -> None:
    """Features of `total` samples into `shards`, part by part; parts of the same inputs that are there already stay.

    `open_part(start, stop)`: those samples; `inputs_of(start, stop)`: a digest of what they are made of; `projection`:
    as of embed.
    """
    size = min(config.chunk, FEW) if config.pool == TOKENS else config.chunk
    shards.cut(-(-total // size))
    for number, start in enumerate(tqdm(range(0, total, size), unit="part", disable=None)):
        stop = min(start + size, total)
        inputs = inputs_of(start, stop)
        if not shards.has(number, inputs):
            samples = open_part(start, stop)
            if config.pool == TOKENS:
                part = embed_tokens(encoder, samples, config, device)
            else:
                part = embed(encoder, samples, config, device, projection=projection)
            shards.add(number, *part, inputs)


def fingerprint(*modules: torch.nn.Module | None) -> str:
    """A hash of all weights: features of two models must not be joined. What is None has none."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items() if module is not None else ()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
