"""Networks of timm as whole encoders: tokens, initialisation, round trips, what is refused, training, evaluation."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from d2v.config.loading import from_dict, load_config
from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.features import pooled_features
from d2v.evaluation.report import Subject, make_reports
from d2v.evaluation.scoring import evaluate_encoder
from d2v.evaluation.splits import label_splits
from d2v.interop.huggingface import to_transformers
from d2v.interop.onnx import export_onnx
from d2v.modalities import image
from d2v.models.batch_norm import GroupedBatchNorm
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForImageClassification
from d2v.models.transformer import Trunk, TrunkConfig
from d2v.objectives import byol
from d2v.training.optim import make_optimizer, parameter_groups
from d2v.training.setup import build_objective
from d2v.types import Mask, numbers_of

SMALL = {
    "test_resnet": (96, (1, 1)),
    "test_vit": (64, (2, 2)),
    "test_convnext": (64, (1, 1)),
}  # timm's own for tests: width, grid of 32 pixels


def config(name: str = "test_resnet", size: int = 32, **trunk) -> D2vConfig:
    return D2vConfig(
        {"image": {"backbone": name, "image_size": size}},
        {"depth": 0, "dim": SMALL.get(name, (512,))[0], "input_norm": False} | trunk,
    )


def photos(folder: Path, count: int = 16) -> Path:
    """Noise, brighter in one of two classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("light" if number % 2 else "dark") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            generator.integers(100 * (number % 2), 156 + 100 * (number % 2), (40, 40, 3), dtype=np.uint8)
        ).save(path)
    return folder


def opened(folder: Path, **settings) -> tuple[image.Samples, image.DataConfig, image.FrontendConfig]:
    data = image.DataConfig(path=str(photos(folder)), views=["byol_a", "byol_b"], **settings)
    frontend = image.FrontendConfig(image_size=32, backbone="test_resnet")
    image.prepare(data, frontend, folder, 0)
    return image.Samples(data, frontend, split="train", folder=folder), data, frontend


# The trunk without blocks.


def test_a_trunk_without_blocks_is_the_identity():
    trunk = Trunk(
        TrunkConfig(depth=0, dim=10, num_heads=3, input_norm=False)
    )  # heads that do not divide: there are none
    trunk.init_weights()
    x, only = torch.randn(2, 5, 10), torch.rand(2, 5) < 0.5
    out, layers = trunk.train()(x, layers="block")
    assert out is x and layers == [] and not list(trunk.parameters())
    assert torch.equal(trunk(x, only=numbers_of(only))[0], x[only])
    assert not torch.equal(
        Trunk(TrunkConfig(depth=0, dim=10, num_heads=2))(x)[0], x
    )  # a norm that was asked for is there


# Tokens and initialisation.


@pytest.mark.parametrize("name", SMALL)
def test_tokens_are_the_final_feature_map(name):
    encoder, (dim, grid) = D2vModel(config(name)).eval(), SMALL[name]
    frontend, pixels = encoder.frontend("image"), torch.randn(2, 3, 32, 32)
    features = encoder(pixel_values=pixels)
    assert vars(frontend)["grid"] == grid and features.x.shape == (2, grid[0] * grid[1], dim) and features.extra is None
    expected = frontend.backbone.forward_features(pixels)
    expected = expected[:, 1:] if name == "test_vit" else expected.flatten(2).transpose(1, 2)
    assert torch.equal(features.x, expected)
    if name == "test_resnet":  # the mean over tokens is global average pooling
        pooled = torch.nn.functional.adaptive_avg_pool2d(frontend.backbone.forward_features(pixels), 1).flatten(1)
        torch.testing.assert_close(features.x.mean(dim=1), pooled)
    features.x.sum().backward()
    assert not [
        key for key, p in encoder.named_parameters() if p.requires_grad != (p.grad is not None)
    ]  # a classifier's norm is not trained


def test_initialisation_is_timms_own():
    frontend = D2vModel(config()).frontend("image")
    for tensor in [*frontend.parameters(), *frontend.buffers()]:
        tensor.data.fill_(7)
    torch.manual_seed(3)
    frontend.init_weights()
    torch.manual_seed(3)
    own = timm.create_model("test_resnet", num_classes=0).state_dict()
    assert own.keys() == frontend.backbone.state_dict().keys()
    assert not [key for key, value in frontend.backbone.state_dict().items() if not torch.equal(value, own[key])]


def test_a_small_stem_keeps_the_resolution_twice_as_long():
    settings = {"image": {"backbone": "resnet18", "image_size": 32, "small_stem": True, "channels": 1}}
    encoder = D2vModel(D2vConfig(settings, {"depth": 0, "dim": 512, "input_norm": False}))
    network = encoder.frontend("image").backbone
    assert (
        network.conv1.weight.shape == (64, 1, 3, 3)
        and network.conv1.stride == (1, 1)
        and isinstance(network.maxpool, torch.nn.Identity)
    )
    assert encoder(pixel_values=torch.randn(2, 1, 32, 32)).x.shape == (2, 16, 512) and encoder.frontend(
        "image"
    ).grid == (4, 4)
    assert float(network.conv1.weight.detach().std()) == pytest.approx(
        (2 / (64 * 9)) ** 0.5, rel=0.1
    )  # timm's: by the outputs
    assert (
        not network.layer1[0].bn2.weight.any() and (network.bn1.weight == 1).all()
    )  # each residual branch begins at zero


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_crops_of_other_sizes_in_training(name):
    encoder = D2vModel(config(name)).train()
    assert encoder(pixel_values=torch.randn(2, 3, 16, 16)).x.shape == (2, 1, SMALL[name][0])
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\): this model reads \(batch, 3, 32, 32\)"):
        encoder.eval()(pixel_values=torch.randn(2, 3, 16, 16))
    if name == "test_vit":
        with pytest.raises(ValueError, match=r"the backbone cannot read them: .*divisible by patch size"):
            encoder.train()(pixel_values=torch.randn(2, 3, 24, 24))


# Round trips.


@pytest.mark.parametrize("name", SMALL)
def test_export_and_back_to_the_bit(name, tmp_path):
    encoder, pixels = D2vModel(config(name)), torch.randn(4, 3, 32, 32)
    encoder.train()(pixel_values=pixels)  # batch norms now hold statistics
    encoder.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    own = encoder.state_dict()
    assert own.keys() == loaded.state_dict().keys() and not loaded.training
    assert not [key for key, value in loaded.state_dict().items() if not torch.equal(value, own[key])]
    torch.testing.assert_close(loaded(pixel_values=pixels).x, encoder(pixel_values=pixels).x)
    if name == "test_resnet":
        norms = [value for key, value in own.items() if key.endswith("running_mean")]
        assert norms and all(value.any() for value in norms)
        assert loaded.frontend("image").backbone.bn1.num_batches_tracked == 1


def test_what_a_file_lacks_is_initialised_and_the_rest_stays(tmp_path):
    encoder = D2vModel(config())
    encoder.train()(pixel_values=torch.randn(4, 3, 32, 32))
    encoder.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = ("frontends.image.backbone.bn1.running_mean", "frontends.image.backbone.layer1.0.conv1.weight")
    save_file(
        {key: value for key, value in tensors.items() if key not in missing},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    assert not loaded[missing[0]].any() and 0 < loaded[missing[1]].std() < 1
    assert not [key for key, value in tensors.items() if key not in missing and not torch.equal(value, loaded[key])]


def test_a_task_model_takes_an_export(tmp_path):
    encoder = D2vModel(config()).eval()
    encoder.save_pretrained(tmp_path)
    model = D2vForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(
        model.encoder.frontend("image").backbone.bn1.running_var, encoder.frontend("image").backbone.bn1.running_var
    )
    assert model(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)


@pytest.mark.slow
def test_onnx_is_written(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert export_onnx(D2vModel(config()).eval(), tmp_path / "model.onnx") < 1e-4


def test_stock_classes_are_refused():
    encoder = D2vModel(config()).eval()
    with pytest.raises(ValueError, match=r"cannot hold model.frontends.image.backbone=test_resnet"):
        to_transformers(encoder)


# What is refused.


@pytest.mark.parametrize(
    ("frontend", "trunk", "match"),
    [
        ({"backbone": "resnot18"}, {}, "backbone is 'resnot18', which timm does not have"),
        ({"backbone": "hf-hub:timm/resnet18"}, {}, "which timm does not have"),
        (
            {},
            {"dim": 64},
            r"gives 96 features: set model.trunk.dim=96 \(it is 64\), model.trunk.depth=0 "
            r"and model.trunk.input_norm=false",
        ),
        (
            {},
            {"depth": 2, "num_heads": 2},
            "whole encoder: model.trunk.depth is 2 and model.trunk.input_norm false; they must be 0 and false",
        ),
        ({}, {"input_norm": True}, "model.trunk.depth is 0 and model.trunk.input_norm true; they must be 0 and false"),
        (
            {"small_stem": True},
            {},
            "small_stem is of ResNets whose stem is one convolution, .* the backbone is test_resnet",
        ),
        ({"backbone": "", "small_stem": True}, {}, "small_stem=True is of a ResNet"),
        ({"positions": "sincos"}, {}, "positions='sincos' is of patches"),
        ({"backbone": "test_vit", "image_size": 40}, {"dim": 64}, "the backbone cannot read them"),
    ],
)
def test_settings_that_do_not_fit_are_errors(frontend, trunk, match):
    with pytest.raises(ValueError, match=match):
        D2vModel(
            D2vConfig(
                {"image": {"backbone": "test_resnet", "image_size": 32} | frontend},
                {"depth": 0, "dim": 96, "input_norm": False} | trunk,
            )
        )


def run_config(tmp_path: Path, **objective):
    model = {
        "frontends": {"image": {"backbone": "test_resnet", "image_size": 32}},
        "trunk": {"depth": 0, "dim": 96, "input_norm": False},
    }
    return from_dict({"model": model, "objective": objective, "run": {"dir": str(tmp_path)}})


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
def test_data2vec_needs_blocks_and_masks_need_patches(name, tmp_path):
    with pytest.raises(ValueError, match="the trunk has 0 layers"):
        build_objective(run_config(tmp_path, name=name), 8)
    encoder = D2vModel(config())
    with pytest.raises(ValueError, match="backbone=test_resnet mixes all tokens: nothing can be hidden behind it"):
        encoder(encoder.view(pixel_values=torch.randn(2, 3, 32, 32)), Mask(torch.ones(2, 1, dtype=torch.bool)))


@pytest.mark.parametrize("frontends", [True, False])
@pytest.mark.parametrize(
    ("name", "dim", "depth"), [("resnet18", 512, 8), ("vit_tiny_patch16_224", 192, 12), ("test_resnet", 96, 4)]
)
def test_rates_fall_by_the_blocks_of_the_network(name, dim, depth, frontends):
    model = nn.ModuleDict({"encoder": D2vModel(config(name, dim=dim)), "head": nn.Linear(dim, 2)})
    scales: dict[str, float] = {}
    for group in parameter_groups(model, 0.1, layer_decay=0.5, frontends=frontends):
        inside = {id(p) for p in group["params"]}
        scales |= {name: group["scale"] for name, p in model.named_parameters() if id(p) in inside}
    assert scales.keys() == {name for name, _ in model.named_parameters()}
    blocks: list[str] = []
    for weight, found in scales.items():
        _, inside, own = weight.partition("frontends.image.backbone.")
        match = re.match(r"layer\d+\.\d+\.|blocks\.\d+\.", own)
        if match and match[0] not in blocks:
            blocks.append(match[0])  # they come in order
        layer = blocks.index(match[0]) + 1 if match else depth if own.startswith("norm.") else 0
        assert found == (0.5 ** (depth + 1 - layer) if inside and (layer or frontends) else 1.0), weight
    assert len(blocks) == depth


def test_what_blocks_alone_read_is_refused_without_them(tmp_path):
    network = ["model.frontends.image.backbone=test_resnet", "model.trunk.depth=0", "model.trunk.dim=96"]
    network += ["model.trunk.input_norm=false", "data.path=demo", f"run.dir={tmp_path}"]
    for setting in ("drop_path=0.1", "attention_dropout=0.1", "pre_norm=true", "num_heads=3", "init=xavier"):
        with pytest.raises(ValueError, match=r"and nothing reads it: model.trunk.depth is 0"):
            load_config("image/simclr_tiny", [*network, f"model.trunk.{setting}"])
    trunk = load_config("image/ibot_tiny", [*network, "objective.name=simclr"]).model.trunk
    assert (trunk.drop_path, trunk.pre_norm, trunk.num_heads) == (0, False, 12)  # the recipe's step aside


def test_blocks_that_are_not_there_cannot_be_recomputed(tmp_path):
    settings = run_config(tmp_path, name="byol")
    settings.train = dataclasses.replace(settings.train, checkpoint_activations=True)
    with pytest.raises(
        ValueError, match=r"train.checkpoint_activations=true recomputes the trunk's blocks, and this one has none"
    ):
        build_objective(settings, 8)


# Training and evaluation.


def test_byol_trains_a_backbone_with_batch_norms_of_the_global_batch(tmp_path):
    samples, data, frontend = opened(tmp_path)
    batches = image.batches(samples, data, frontend, 8, 0)
    settings = run_config(tmp_path, name="byol", hidden_dim=16, out_dim=8)
    objective = build_objective(settings, 8).train()
    assert isinstance(objective, byol.BYOL)
    norms = [
        module
        for module in objective.student["encoder"].modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert norms and all(isinstance(module, GroupedBatchNorm) for module in norms)
    optimizer = make_optimizer(objective, settings.train)
    objective.check(batches(0, 0, 1)[0])
    for step in range(2):
        loss = objective(batches(step, 0, 1)[0])
        (loss.total / loss.count).backward()
        assert not [key for key, p in objective.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
        optimizer.zero_grad()
        objective.update_teacher(0.9)
    assert loss.total.isfinite() and norms[0].num_batches_tracked == 4  # two views, two steps


def test_evaluation_and_reports_of_a_backbone(tmp_path):
    samples, _, _ = opened(tmp_path)
    encoder = D2vModel(config(final_norm=True)).eval()
    features = pooled_features(encoder, samples, 4)
    assert (
        list(features) == ["local", "last"]
        and features["last"].shape == (16, 96)
        and not np.array_equal(*features.values())
    )
    settings = EvaluateConfig(
        path=str(tmp_path), train_split="train", test_split="", layer="all", k=[3], probe=False, pictures=2
    )
    train, _ = label_splits(samples, None, settings)
    assert [row.layer for row in evaluate_encoder("it", encoder, train, None, settings)] == ["local", "last"]
    plain = D2vModel(config()).eval()
    assert [row.layer for row in evaluate_encoder("it", plain, train, None, settings)] == [
        "local"
    ]  # the trunk adds nothing
    subject = Subject("it", {"it": plain}, train, None, settings, tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()
    assert set(make_reports(subject, ["layer_curve", "patches"])) == {"layer_curve", "patches"}
    with pytest.raises(ValueError, match="attention needs a trunk with blocks; this model has none"):
        make_reports(subject, ["attention"])


def test_settings_are_typed():
    merged = OmegaConf.merge(OmegaConf.structured(image.FrontendConfig), {"backbone": "resnet18", "small_stem": True})
    made = OmegaConf.to_object(merged)
    assert (
        isinstance(made, image.FrontendConfig)
        and made.backbone == "resnet18"
        and not (made.relative_bias or made.mask_token)
    )
