"""A model of images reads those of another size: its positions and biases are resized as timm and BEiT do it."""

import pytest
import tiny
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel, with_frontend
from d2v.models.positions import sincos

TRUNK = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "init_std": 0.3}


def encoder_of(size: int, **frontend) -> D2vModel:
    torch.manual_seed(0)
    settings = {"image_size": size, "patch_size": 4, "channels": 1, **frontend}
    model = D2vModel(D2vConfig({"image": settings}, TRUNK)).eval()
    for parameter in model.frontends["image"].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_fixed_positions_of_another_size_are_those_of_a_new_model():
    other = with_frontend(encoder_of(16, positions="sincos", relative_bias=False), "image", {"image_size": 24})
    found = other.frontend("image").positions(torch.zeros(1, 36, 32), None)
    assert torch.equal(found, sincos((6, 6), 32, torch.device("cpu")))


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("size", [8, 24])
@torch.no_grad()
def test_learned_positions_of_another_size_are_timm_s(class_token, size):
    settings = {"positions": "learned", "relative_bias": False, "class_token": class_token}
    encoder = encoder_of(16, **settings)
    table = encoder.frontend("image").position_table
    grid = [size // 4, size // 4]
    wanted = resample_abs_pos_embed(table[None], grid, [4, 4], num_prefix_tokens=int(class_token))[0]
    other = with_frontend(encoder, "image", {"image_size": size})
    assert torch.equal(other.frontend("image").position_table, wanted) and len(wanted) == grid[0] ** 2 + class_token
    assert other(pixel_values=torch.randn(2, 1, size, size)).x.shape == (2, grid[0] ** 2, 32)
    same = with_frontend(encoder, "image", {"image_size": 16})
    tiny.assert_same(same.state_dict(), encoder.state_dict())


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_relative_biases_of_another_size_are_beit_s(class_token, layers):
    encoder = encoder_of(16, class_token=class_token, bias_layers=layers)
    other = with_frontend(encoder, "image", {"image_size": 24}).frontend("image").bias_table
    old = encoder.frontend("image").bias_table.view(layers, -1, 2)
    for table, found in zip(old, other.view(layers, -1, 2), strict=True):
        assert len(found) == 11 * 11 + 3 * class_token
        assert torch.equal(found, resize_rel_pos_bias_table(table, (6, 6), (len(found), 2)))
        assert torch.equal(found[121:], table[49:])


@torch.no_grad()
def test_a_backbone_reads_another_size():
    trunk = {"depth": 0, "dim": 192, "input_norm": False}
    encoder = D2vModel(D2vConfig({"image": {"backbone": "vit_tiny_patch16_224", "image_size": 32}}, trunk)).eval()
    other = with_frontend(encoder, "image", {"image_size": 48})
    old, new = (one.frontend("image").backbone.pos_embed for one in (encoder, other))
    assert torch.equal(new, resample_abs_pos_embed(old, [3, 3], [2, 2], num_prefix_tokens=1))
    assert other(pixel_values=torch.randn(1, 3, 48, 48)).x.shape == (1, 9, 192)
