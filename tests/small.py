"""Encoders of a few thousand parameters and views of noise, for tests of methods that compare views."""

import torch

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.types import View

FRONTENDS = {
    "image": {"image_size": 16, "patch_size": 8, "init_std": 0.3},
    "speech": {
        "kind": "mel",
        "sample_rate": 8000,
        "mel_bins": 8,
        "conv_dim": 8,
        "mel_high": 3900.0,
        "pos_kernel": 3,
        "pos_depth": 1,
        "pos_groups": 2,
    },
    "text": {"vocab_size": 20, "max_positions": 16, "mask_token_id": 3, "init_std": 0.3},
}
DIM = 16


def encoder(modality: str = "image", **frontend) -> D2vModel:
    """One block, of weights large enough that samples differ; the same whenever it is made."""
    trunk = {"depth": 1, "dim": DIM, "num_heads": 2, "mlp_dim": 32, "init_std": 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return D2vModel(D2vConfig(frontends={modality: FRONTENDS[modality] | frontend}, trunk=trunk))


def view(modality: str = "image", samples: int = 8, seed: int = 0) -> View:
    """A view of noise; of clips and texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.arange(samples)
    if modality == "image":
        return View("image", {"pixel_values": torch.randn(samples, 3, 16, 16, generator=generator)}, indices=indices)
    size = 12 if modality == "text" else 2000
    real = torch.arange(size) < torch.randint(size // 2, size, (samples, 1), generator=generator)
    if modality == "text":
        ids = torch.randint(4, 20, (samples, size), generator=generator)
        return View("text", {"input_ids": ids.masked_fill(~real, 1)}, ~real, indices=indices)
    waves = torch.randn(samples, size, generator=generator)
    made = encoder("speech").frontends["speech"]
    inputs = {"input_values": waves, "attention_mask": real.long()}
    return View("speech", inputs, made.padding(**inputs), indices=indices)


def rows(view: View, of: slice) -> View:
    """Some samples of a view."""
    inputs = {name: value[of] for name, value in view.inputs.items()}
    return View(view.modality, inputs, None if view.padding is None else view.padding[of], indices=view.indices[of])
