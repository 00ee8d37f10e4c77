"""Seconds of one fine-tuning step, ours against the same weights in the stock class of transformers.

    python benchmarks/finetune_step.py [image speech text] [threads=2] [steps=12] [depth=4]

Models of the published Base width: images and texts of one length with a class each, CTC on clips of one length. One
step: forward with the published dropouts, loss, backward, gradient norm, AdamW; float32; data are made beforehand. The
two take steps in turn; medians are compared, of the time on the clock and of the processor's. The logits of both
without dropout are compared first.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecTextConfig,
    Data2VecTextForSequenceClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
)
from turns import in_turn, parse_options
from work import MODALITIES, Size

from d2v.interop.huggingface import from_transformers
from d2v.training.optim import scale_and_clip

WARM_UP, NUM_LABELS = 3, 30


def stock_model(modality: str, size: Size) -> Any:
    """A stock task model with random weights."""
    common = {
        "hidden_size": size.dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.dim,
    }
    common |= {"num_labels": NUM_LABELS}
    if modality == "image":
        patches = {"image_size": size.image, "patch_size": size.patch, "use_shared_relative_position_bias": True}
        return Data2VecVisionForImageClassification(Data2VecVisionConfig(**common, **patches, drop_path_rate=0.1))
    if modality == "text":
        return Data2VecTextForSequenceClassification(
            Data2VecTextConfig(**common, vocab_size=size.vocab, max_position_embeddings=514)
        )
    conv = {"conv_dim": [size.conv_dim] * 7, "vocab_size": NUM_LABELS, "mask_time_prob": 0.0, "layerdrop": 0.0}
    return Data2VecAudioForCTC(Data2VecAudioConfig(**common, **conv))


def make_batch(modality: str, size: Size) -> dict[str, Tensor]:
    """Random inputs by Hugging Face's names, with labels."""
    generator = torch.Generator().manual_seed(0)
    if modality == "image":
        rows = {"pixel_values": torch.randn(size.images, 3, size.image, size.image, generator=generator)}
    elif modality == "text":
        rows = {"input_ids": torch.randint(4, size.vocab - 1, (size.rows, size.tokens), generator=generator)}
    else:
        rows = {"input_values": torch.randn(size.clips, size.samples, generator=generator)}
    (inputs,) = rows.values()
    shape = (len(inputs), 20) if modality == "speech" else (len(inputs),)
    return {**rows, "labels": torch.randint(1, NUM_LABELS, shape, generator=generator)}


def stepper(model: Any, batch: dict[str, Tensor]) -> Callable[[], float]:
    """One optimizer step of a model that returns its loss."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        scale_and_clip([p for p in parameters if p.grad is not None], torch.ones(()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def compare(modality: str, size: Size, steps: int) -> dict[str, float]:
    """Seconds of a step of both, the ratios of clock and of processor, and how far the logits are apart."""
    torch.manual_seed(0)
    theirs = stock_model(modality, size)
    models, batch = {"d2v": from_transformers(theirs), "transformers": theirs}, make_batch(modality, size)
    with torch.no_grad():
        ours, expected = (model.eval()(**batch).logits for model in models.values())
    takes = {name: stepper(model, batch) for name, model in models.items()}
    seconds = in_turn(takes, steps, WARM_UP)
    wall = {name: one.wall for name, one in seconds.items()}
    cpu = {name: one.cpu for name, one in seconds.items()}
    ratios = {"ratio": wall["d2v"] / wall["transformers"], "cpu_ratio": cpu["d2v"] / cpu["transformers"]}
    return {**wall, **ratios, "difference": float((ours - expected).abs().max())}


def main(arguments: list[str]) -> None:
    """One line for each modality."""
    words, options = parse_options(arguments, {"threads": 2, "steps": 12, "depth": 4})
    torch.set_num_threads(options["threads"])
    print("| seconds of a step | d2v | transformers | ratio | ratio of processor time | logits apart by |")
    print("|---" * 6 + "|")
    for modality in words or MODALITIES:
        result = compare(modality, Size(depth=options["depth"]), options["steps"])
        numbers = f"{result['d2v']:.3f} | {result['transformers']:.3f} | {result['ratio']:.2f}"
        numbers += f" | {result['cpu_ratio']:.2f} | {result['difference']:.1e}"
        print(f"| {modality} | {numbers} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
