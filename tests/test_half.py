"""Weights in half precision: commands compute in float32, and models take the float32 that processors return."""

import shutil

import numpy as np
import pytest
import torch
from test_embedding import models, samples_of, write_clips, write_lines  # noqa: F401 - a fixture
from tiny import MODALITIES
from transformers import AutoModel

from d2v.evaluation.config import EmbedConfig
from d2v.evaluation.embedding import embed
from d2v.evaluation.load_encoder import open_encoder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_folder_saved_in_half_precision_is_read_in_float32(models, modality, dtype, tmp_path):  # noqa: F811
    folder = tmp_path / "half"
    shutil.copytree(models[modality], folder)
    half = AutoModel.from_pretrained(models[modality], dtype=dtype)
    half.save_pretrained(folder)
    encoder = open_encoder(str(folder), modality)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    for name, value in half.float().state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_a_processor_go_into_a_model_in_half_precision(models, dtype):  # noqa: F811
    whole = AutoModel.from_pretrained(models["image"])
    half = AutoModel.from_pretrained(models["image"], dtype=dtype)
    config = whole.config.frontends["image"]
    shape = (2, config.get("channels", 3), config["image_size"], config["image_size"])
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found, expected = half(pixel_values=pixels).last_hidden_state, whole(pixel_values=pixels).last_hidden_state
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    with pytest.raises(RuntimeError):  # bytes are not normalised
        whole(pixel_values=(255 * pixels).to(torch.uint8))


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_model_is_traced(models, modality):  # noqa: F811
    model = AutoModel.from_pretrained(models[modality]).eval().requires_grad_(False)
    name = model.frontend(modality).main_input
    config = model.config.frontends[modality]
    inputs = {
        "pixel_values": lambda: torch.rand(1, config.get("channels", 3), config["image_size"], config["image_size"]),
        "input_values": lambda: torch.randn(1, 4000),
        "input_ids": lambda: torch.tensor([[0, 5, 6, 2]]),
    }[name]()
    traced = torch.jit.trace(lambda x: model(**{name: x}).last_hidden_state, inputs, check_trace=False)
    np.testing.assert_allclose(traced(inputs).numpy(), model(**{name: inputs}).last_hidden_state.numpy(), atol=1e-5)
    assert hasattr(model.frontend(modality), "vocabulary")  # nothing is raised by a look


def test_features_of_half_precision_are_those_of_its_weights(models, tmp_path):  # noqa: F811
    clips = write_clips(tmp_path / "clips", [0.4, 0.9])
    folder = tmp_path / "half"
    shutil.copytree(models["speech"], folder)
    AutoModel.from_pretrained(models["speech"], dtype=torch.bfloat16).save_pretrained(folder)
    rounded = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = open_encoder(str(folder), "speech")
    samples = samples_of("speech", encoder, folder, clips)
    found, expected = (embed(one, samples, EmbedConfig(batch_size=1)).features for one in (encoder, rounded))
    np.testing.assert_allclose(found, expected, atol=1e-6)
