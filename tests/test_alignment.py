"""D2vForAlignment: what it computes, what it saves, and what is read of it."""

import copy

import paired
import pytest
import small
import tiny
import torch
from transformers import AutoModel

from d2v import D2vConfig, D2vForAlignment, D2vModel
from d2v.interop.onnx import export_onnx
from d2v.interop.pretrained import load_ours, read_config
from d2v.training.weights import read_encoder

BOTH = ("image", "text")


def model(*modalities: str) -> D2vForAlignment:
    """Of weights that differ from their start."""
    objective = paired.objective("siglip", *(modalities or BOTH))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return objective.aligned()


def test_a_vector_is_the_projected_mean_of_the_real_tokens():
    made = model()
    for view in paired.noise():
        found = made.project(view)
        assert found.shape == (6, 8) and found.dtype == torch.float32
        x = made.encoder(view).x
        for row in range(6):
            real = x[row] if view.padding is None else x[row][~view.padding[row]]
            expected = made.projections[view.modality].weight @ real.mean(dim=0)
            torch.testing.assert_close(found[row], expected / expected.norm(), rtol=1e-4, atol=1e-6)


def test_inputs_have_hugging_faces_names():
    made = model()
    image, text = paired.noise()
    pixels = image.inputs["pixel_values"]
    ids, mask = text.inputs["input_ids"], (~text.padding).long()
    output = made(pixel_values=pixels)
    assert torch.equal(output.embeds, made.project(image))
    assert torch.equal(output.last_hidden_state, made.encoder(image).x) and output.hidden_states is None
    output = made(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(output.embeds, made.project(text)) and len(output.hidden_states) == 2
    assert torch.equal(made(input_ids=ids, attention_mask=mask, return_dict=False)[0], output.embeds)
    with pytest.raises(ValueError, match="this model takes pixel_values, input_ids; it was given input_values"):
        made(input_values=pixels)


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    made = model()
    made.save_pretrained(tmp_path)
    assert made.config.task == {"projection_dim": 8, "modalities": list(BOTH)}
    for back in (D2vForAlignment.from_pretrained(tmp_path), load_ours(tmp_path)):
        assert type(back) is D2vForAlignment and back.config.task == made.config.task
        tiny.assert_same(back.state_dict(), made.state_dict())
        for view in paired.noise():
            assert torch.equal(back.project(view), made.project(view))
    encoder = made.encoder.state_dict()
    for back in (
        AutoModel.from_pretrained(tmp_path),
        D2vModel.from_pretrained(tmp_path),
        read_encoder(tmp_path, read_config(tmp_path)),
    ):
        assert type(back) is D2vModel
        tiny.assert_same(back.state_dict(), encoder)


def test_an_encoder_gets_new_projections(tmp_path):
    encoder = paired.encoder(*BOTH)
    encoder.save_pretrained(tmp_path)
    made, report = D2vForAlignment.from_pretrained(tmp_path, task={"projection_dim": 4}, output_loading_info=True)
    assert set(report["missing_keys"]) == {f"projections.{name}.weight" for name in BOTH}
    tiny.assert_same(made.encoder.state_dict(), encoder.state_dict())
    weight = made.projections["text"].weight
    assert weight.shape == (4, small.DIM) and 0.5 < weight.std() * small.DIM**0.5 < 1.5


def test_it_is_a_copy_and_draws_nothing():
    objective = paired.objective("clip")
    before, state = copy.deepcopy(objective.state_dict()), torch.random.get_rng_state()
    made = objective.aligned()
    assert torch.equal(torch.random.get_rng_state(), state) and not made.training
    first, second = objective.eval().vectors(paired.noise())
    for view, vectors in zip(paired.noise(), (first, second), strict=True):
        assert torch.equal(made.project(view), vectors)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    tiny.assert_same(objective.state_dict(), before)


def test_a_modality_may_have_no_projection():
    encoder = paired.encoder("image", "text", "speech")
    made = D2vForAlignment.of(encoder, model().projections)
    assert made.config.task["modalities"] == ["image", "text"]
    assert made.encoder(small.view("speech")).x.isfinite().all()
    with pytest.raises(ValueError, match="there are projections of image, text, not of 'speech'"):
        made.project(small.view("speech"))
    with pytest.raises(ValueError, match=r"task.modalities has 'sound'; this model reads image"):
        D2vForAlignment(D2vConfig(encoder.config.frontends, encoder.config.trunk, {"modalities": ["sound"]}))
    with pytest.raises(ValueError, match=r"task.projection_dim is 0"):
        D2vForAlignment(D2vConfig(encoder.config.frontends, encoder.config.trunk, {"projection_dim": 0}))


@pytest.mark.slow
def test_an_onnx_file_of_one_side(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="takes the inputs of one modality; this model reads image, text"):
        export_onnx(model(), tmp_path / "both.onnx")
    encoder = paired.encoder("text")
    assert export_onnx(D2vForAlignment.of(encoder, model().projections), tmp_path / "text.onnx") < 1e-4
