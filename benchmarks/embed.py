"""Samples per second that become features, ours against the same weights in stock transformers.

    python benchmarks/embed.py [image speech text] [threads=2] [rounds=5] [depth=4]

Models of the published Base width, random weights (d2v.interop.huggingface.to_transformers makes the stock one of
ours). Inputs are in memory. Ours is d2v.evaluation.embedding.embed, which scripts/embed.py calls: batches of similar
lengths, of which none takes more room than 8 of the longest samples. The stock side is batches of 8 in the order they
come, padded to the longest, and the masked mean of last_hidden_state. They take turns, round by round; medians are
compared, of the time on the clock and of the processor's, which tells more on a machine that does other work too.

"equal": samples of one length. "mixed": log-normal lengths about a median of 3 s of audio (half of them within 2.1 and
4.2 s, at most 15 s) or 16 tokens (within 11 and 24, at most 128). Features are compared to 1e-5: with those of the
stock model in the same batches, and where speech is padded, which the stock class lets into its features, with the
stock model's for each clip alone.
"""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from step_time import our_encoder
from torch import Tensor
from turns import in_turn, parse_options
from work import MAIN_INPUT, MODALITIES, Size

from d2v.evaluation.config import EmbedConfig
from d2v.evaluation.embedding import embed
from d2v.interop.huggingface import to_transformers
from d2v.models.heads import mean_of_tokens

NUM, BATCH = {"image": 32, "speech": 64, "text": 256}, 8
MEDIAN, LEAST, MOST = {"speech": 48000, "text": 16}, {"speech": 8000, "text": 4}, {"speech": 240000, "text": 128}


class InMemory:
    """Rows of random numbers of given lengths, as a modality's samples."""

    def __init__(self, modality: str, lengths: np.ndarray, size: Size, encoder: Any):
        generator = torch.Generator().manual_seed(0)
        self.modality, self.lengths, self.encoder = modality, lengths, encoder
        self.ids, self.cut = [str(n) for n in range(len(lengths))], None
        self.report = SimpleNamespace(unreadable=[], too_short=[])
        shapes = [(3, size.image, size.image) if modality == "image" else (int(length),) for length in lengths]
        if modality == "text":
            self.rows = [torch.randint(4, size.vocab - 1, shape, generator=generator) for shape in shapes]
        else:
            self.rows = [torch.randn(shape, generator=generator) for shape in shapes]

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, indices: Any) -> dict[str, Tensor]:
        """A padded batch by Hugging Face's names; no attention mask where nothing is padded."""
        rows = [self.rows[index] for index in indices]
        padded = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=1 if self.modality == "text" else 0
        )
        inputs = {MAIN_INPUT[self.modality]: padded}
        if len({len(row) for row in rows}) > 1:
            inputs["attention_mask"] = (
                torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
            ).long()
        return inputs

    def view(self, indices: Any) -> Any:
        """A padded batch as a View."""
        return self.encoder.view(**self.inputs(indices))


@torch.no_grad()
def stock(model: Any, samples: InMemory, batch_size: int) -> np.ndarray:
    """Features (N, D) by transformers."""
    parts = []
    for start in range(0, len(samples), batch_size):
        inputs = samples.inputs(range(start, min(start + batch_size, len(samples))))
        x = model(**inputs).last_hidden_state
        x = x[:, 1:] if samples.modality == "image" else x  # without the class token
        padding = samples.encoder.view(**inputs).padding
        parts.append(mean_of_tokens(x, padding).numpy())
    return np.concatenate(parts)


def lengths_of(modality: str, mixed: bool, size: Size, num: int) -> np.ndarray:
    """Audio samples or tokens of each sample."""
    if not mixed:
        return np.full(num, {"image": 1, "speech": size.samples, "text": size.tokens}[modality])
    drawn = MEDIAN[modality] * np.exp(np.random.default_rng(0).normal(0, 0.5, num))
    return np.clip(drawn, LEAST[modality], MOST[modality]).astype(int)


def compare(
    modality: str, mixed: bool, size: Size, *, num: int = 0, batch_size: int = BATCH, rounds: int = 5
) -> dict[str, float]:
    """Samples per second of both, their ratio on the clock and on the processor, and how far features differ."""
    num = num or NUM[modality]
    torch.manual_seed(0)
    ours = our_encoder(modality, size).eval()
    theirs = to_transformers(ours).eval()
    samples = InMemory(modality, lengths_of(modality, mixed, size, num), size, ours)
    config = EmbedConfig(batch_size=batch_size)
    features = embed(ours, samples, config).features  # the first of each is warm-up
    expected = stock(theirs, samples, 1 if modality == "speech" and mixed else batch_size)
    runs = {"d2v": lambda: embed(ours, samples, config), "transformers": lambda: stock(theirs, samples, batch_size)}
    seconds = in_turn(runs, rounds)
    wall = {name: num / one.wall for name, one in seconds.items()}
    cpu = {name: num / one.cpu for name, one in seconds.items()}
    ratios = {"ratio": wall["d2v"] / wall["transformers"], "cpu_ratio": cpu["d2v"] / cpu["transformers"]}
    return {**wall, **ratios, "difference": float(np.abs(features - expected).max())}


def main(arguments: list[str]) -> None:
    """One line for each modality and kind of lengths."""
    words, options = parse_options(arguments, {"threads": 2, "rounds": 5, "depth": 4})
    torch.set_num_threads(options["threads"])
    print(
        "| samples per second | lengths | d2v | transformers | ratio | ratio of processor time | largest difference |"
    )
    print("|---" * 7 + "|")
    for modality in words or MODALITIES:
        for mixed in (False, True) if modality in MEDIAN else (False,):
            result = compare(modality, mixed, Size(depth=options["depth"]), rounds=options["rounds"])
            numbers = f"{result['d2v']:.2f} | {result['transformers']:.2f} | {result['ratio']:.2f}"
            numbers += f" | {result['cpu_ratio']:.2f} | {result['difference']:.1e}"
            print(f"| {modality} | {'mixed' if mixed else 'equal'} | {numbers} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
