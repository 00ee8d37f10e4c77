"""Training batches of text, masked blocks or views of single rows: pure functions of (seed, step, part, parts).

B rows of a batch, M masks of a row, N = B * M, T tokens of the longest row, K tokens that masks leave.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from d2v.modalities.common import masking, sampling
from d2v.modalities.common.sampling import Sampler, share
from d2v.modalities.text.config import DataConfig
from d2v.modalities.text.frontend import MODALITY, FrontendConfig
from d2v.modalities.text.kept import blocks_of
from d2v.modalities.text.samples import Samples, block, collate
from d2v.modalities.text.views import made
from d2v.types import Mask, View


def _say_nothing(sample: str, reason: str) -> None:
    """For callers that keep no log."""


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = _say_nothing,
) -> "MaskedBatches | ViewBatches":
    """Masked blocks of the samples, or views of them; nothing can turn out bad here: `bad_log` is never called."""
    make = ViewBatches if data.views else MaskedBatches
    return make(samples, data, batch_size, seed)


class MaskedBatches:
    """Blocks with their masks: a pure function of (seed, step)."""

    def __init__(self, samples: Samples, data: DataConfig, batch_size: int, seed: int):
        """ValueError: fewer blocks than one batch."""
        self.samples, self.data, self.seed = samples, data, seed
        # (S,), (num_blocks, 2)
        self.tokens, self.blocks = blocks_of(samples.corpus, data.block_size - 1, data.break_mode, seed)
        if len(self.blocks) < batch_size:
            raise ValueError(
                f"data.path {data.path} makes {len(self.blocks)} blocks of data.block_size {data.block_size} tokens, "
                f"fewer than one batch: train.batch_size is {batch_size}"
                + (f", and may be {len(self.blocks)} or less" if len(self.blocks) else "")
            )
        self.sampler = Sampler(len(self.blocks), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """The masked view of this part's blocks, padded to the longest of the whole batch, and the blocks' names."""
        batch = self.sampler(step)
        mine = share(len(batch), part, parts)
        longest = int(np.diff(self.blocks[batch]).max()) + 1
        frontend = self.samples.frontend
        rows = [block(self.tokens[start:stop], frontend) for start, stop in self.blocks[batch[mine]]]
        names = [f"{self.samples.split}:block {index}" for index in batch[mine]]
        view = collate(rows, frontend, longest)
        generators = sampling.generators(self.seed, step, range(len(batch))[mine])
        if self.data.mask_kind == "random":
            return [leave_out(view, generators, self.data)], names
        view = hide(view, generators, self.data, self.samples)
        if self.data.reference_teacher_input:
            return [view, hidden_only(view, frontend)], names
        return [view], names


class ViewBatches:
    """Rows of similar length, each in one view for each name in data.views."""

    def __init__(self, samples: Samples, data: DataConfig, batch_size: int, seed: int):
        """ValueError: fewer rows than one batch."""
        self.samples, self.data, self.seed = samples, data, seed
        self.sampler = Sampler(len(samples), batch_size, seed, lengths=samples.lengths)
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """The views of this part's rows, as wide as the longest row of the batch, with the rows' numbers; their ids."""
        batch = self.sampler(step)
        places = range(len(batch))[share(len(batch), part, parts)]
        mine = batch[places]
        longest = int(self.samples.lengths[batch].max())
        generators = sampling.generators(self.seed, step, places)
        drawn = [self._row(index, generator) for index, generator in zip(mine, generators, strict=True)]
        indices = torch.from_numpy(mine)
        views = []
        for rows in zip(*drawn, strict=True):  # those of one view
            mask = self._mask(rows, generators, longest)
            views.append(collate(rows, self.samples.frontend, longest)._replace(mask=mask, indices=indices))
        return views, [self.samples.ids[index] for index in mine]

    def _row(self, index: int, generator: np.random.Generator) -> list[np.ndarray]:
        """The views of a row; each draws from a generator that no other has."""
        row, names = self.samples.row(index), self.data.views
        views = []
        for name, drawing in zip(names, generator.spawn(len(names)), strict=True):
            views.append(made(name, row, drawing, self.data.augment))
        return views

    def _mask(self, rows: Sequence[np.ndarray], generators: Sequence[np.random.Generator], longest: int) -> Mask | None:
        """Spans of a view's rows, over every token, in a share of them, if data.mask_views asks for them."""
        data = self.data
        if not data.mask_views:
            return None
        hidden = []
        for row, generator in zip(rows, generators, strict=True):
            spans = masking.span(generator, len(row), data.mask_prob, data.mask_length, last_frame=True)
            hidden.append(masking.sometimes(generator, data.mask_chance, spans))
        return Mask(torch.from_numpy(masking.stacked(hidden, longest)))


def hide(view: View, generators: list[np.random.Generator], data: DataConfig, samples: Samples) -> View:
    """Spans over every token, <s> and </s> too.

    In BERT's variant some of them are kept or replaced at random: not hidden then, but chosen.
    """
    ids = view.inputs["input_ids"].numpy()  # (B, T)
    hidden, chosen = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
    corrupted = ids.copy()
    lengths = view.inputs["attention_mask"].sum(dim=1).tolist()
    for number, (generator, length) in enumerate(zip(generators, lengths, strict=True)):
        spans = masking.span(generator, length, data.mask_prob, data.mask_length, last_frame=True)
        keep, replace = corrupt(generator, spans, data)
        hidden[number, :length], chosen[number, :length] = spans & ~keep & ~replace, spans
        corrupted[number, :length][replace] = generator.choice(samples.ordinary, int(replace.sum()))
    if data.random_token_prob + data.keep_token_prob > 0:
        inputs = dict(view.inputs)
        corrupted[hidden] = samples.frontend.mask_token_id
        inputs["corrupted_ids"] = torch.from_numpy(corrupted)
        return view._replace(inputs=inputs, mask=Mask(torch.from_numpy(hidden), chosen=torch.from_numpy(chosen)))
    return view._replace(mask=Mask(torch.from_numpy(hidden)))


def leave_out(view: View, generators: list[np.random.Generator], data: DataConfig) -> View:
    """M random masks of each row over every token, <s> and </s> too, and what they leave.

    K is that of a row as long as the batch is wide.
    """
    lengths = view.inputs["attention_mask"].sum(dim=1).tolist()
    rows = []
    for generator, length in zip(generators, lengths, strict=True):
        rows += [masking.scattered(generator, length, data.mask_prob) for _ in range(data.masks)]
    tokens = view.inputs["input_ids"].shape[1]
    hidden = masking.stacked(rows, tokens)  # (N, T)
    keep = masking.visible(hidden, masking.num_visible(tokens, data.mask_prob))  # (N, K)
    return view._replace(mask=Mask(torch.from_numpy(hidden), torch.from_numpy(keep)))


def hidden_only(view: View, frontend: FrontendConfig) -> View:
    """What the reference's teacher was given: the hidden tokens where they are, and padding everywhere else."""
    assert view.mask is not None
    hidden = view.mask.hidden
    inputs = {
        "input_ids": view.inputs["input_ids"].masked_fill(~hidden, frontend.pad_token_id),
        "attention_mask": hidden.long(),
    }
    return View(MODALITY, inputs, ~hidden, None)


def corrupt(generator: np.random.Generator, chosen: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which of the chosen tokens are kept and which are replaced instead of hidden, two of (T,) bool."""
    either = data.random_token_prob + data.keep_token_prob
    if either == 0:
        return np.zeros_like(chosen), np.zeros_like(chosen)
    special = chosen & (generator.random(len(chosen)) < either)
    keep = special & (generator.random(len(chosen)) < data.keep_token_prob / either)
    return keep, special & ~keep
