"""The image package: bias index, initialisation, augmentation, masks, bad files, evaluation view."""

import inspect
import io
import math
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoImageProcessor

from d2v.config.loading import load_config
from d2v.modalities import image
from d2v.modalities.image import augment
from d2v.modalities.image.frontend import Frontend, FrontendConfig, relative_index

CPU = torch.device("cpu")


def small(**settings) -> image.FrontendConfig:
    return image.FrontendConfig(**{"image_size": 16, "patch_size": 4} | settings)


def photos(folder: Path, count: int = 6, size: tuple[int, int] = (24, 20)) -> Path:
    """`count` PNGs of noise in two classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


def opened(folder, frontend=None, **settings):
    frontend = frontend or small()
    data = image.DataConfig(path=str(folder), **{"min_block": 4} | settings)
    image.prepare(data, frontend, Path(), 0)
    return image.Samples(data, frontend, split="train", folder=Path()), data, frontend


# Frontend.


def slow_index(rows: int, columns: int, class_token: bool) -> torch.Tensor:
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    offsets = (2 * rows - 1) * (2 * columns - 1)
    extra = int(class_token)
    index = torch.full((len(cells) + extra, len(cells) + extra), -1)
    for i, (row_i, column_i) in enumerate(cells):
        for j, (row_j, column_j) in enumerate(cells):
            index[i + extra, j + extra] = (
                (row_i - row_j + rows - 1) * (2 * columns - 1) + column_i - column_j + columns - 1
            )
    if class_token:
        index[0, 1:], index[1:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(14, 14), (2, 3), (1, 1)])
def test_relative_index_is_the_slow_one(grid, class_token):
    assert torch.equal(relative_index(*grid, class_token, CPU), slow_index(*grid, class_token))


def test_relative_index_at_14_x_14_is_as_published():
    index = relative_index(14, 14, True, CPU)
    assert index.shape == (197, 197) and index.min() == 0 and index.max() == 731
    assert (index[0, 1:] == 729).all() and (index[1:, 0] == 730).all() and index[0, 0] == 731


def test_bias_made_in_inference_can_be_trained_later():
    relative_index.cache_clear()
    frontend = image.Frontend(small(), 8, 2)
    with torch.inference_mode():
        frontend.bias()
    frontend.bias().sum().backward()
    assert frontend.bias_table.grad.sum() == 2 * 17 * 17


def test_bias_holds_the_table_by_offset():
    frontend = image.Frontend(small(), 8, 2)
    torch.nn.init.normal_(frontend.bias_table)
    bias, index = frontend.bias(), slow_index(4, 4, True)
    assert bias.shape == (2, 17, 17)
    assert torch.equal(bias[1, 3, 7], frontend.bias_table[index[3, 7], 1])


def test_initialisation_is_cut_at_one_standard_deviation():
    frontend = image.Frontend(image.FrontendConfig(), 64, 4)
    with torch.no_grad():
        for parameter in frontend.parameters():
            parameter.fill_(float("nan"))
    frontend.init_weights()
    assert all(parameter.isfinite().all() for parameter in frontend.parameters())
    for weight in (frontend.patch_embed.weight, frontend.mask_token, frontend.class_token):
        assert 0.018 < weight.abs().max() <= 0.02
    assert (
        abs(frontend.patch_embed.weight.std() - 0.02 * 0.5396) < 2e-4
    )  # a normal cut at +-1 has standard deviation 0.5396
    assert (
        not frontend.patch_embed.bias.any() and not frontend.bias_table.any() and frontend.bias_table.shape == (732, 4)
    )


@pytest.mark.parametrize(("recipe", "std"), [("mae_base", 0.02), ("mocov3_base", 1e-6)])
def test_recipes_of_a_vit_start_as_published(recipe, std):
    """Patches by Xavier's uniform of a linear layer, a class token of their own size, a trunk by Xavier."""
    model = load_config(f"image/{recipe}").model
    frontend = image.Frontend(model.frontends["image"], 768, 12)
    frontend.init_weights()
    bound = (6 / (768 + 3 * 16 * 16)) ** 0.5
    assert 0.999 * bound < float(frontend.patch_embed.weight.detach().abs().max()) <= bound
    assert float(frontend.class_token.detach().std()) == pytest.approx(std, rel=0.1) and model.trunk.init == "xavier"


@pytest.mark.parametrize("kind", ["sincos", "learned"])
def test_positions_are_not_rounded_under_autocast(kind):
    frontend = image.Frontend(small(positions=kind, relative_bias=False), 8, 2)
    frontend.init_weights()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = frontend.embed(pixels)
        assert tokens.dtype == torch.bfloat16
        assert torch.equal(frontend.positions(tokens, None), frontend.positions(tokens.float(), None))
    rounded = frontend.to(torch.bfloat16)
    assert rounded.positions(rounded.embed(pixels.bfloat16()), None).dtype == torch.bfloat16


def test_embed_takes_patches_row_by_row_and_hide_replaces_them():
    frontend = image.Frontend(small(channels=2), 8, 2)
    frontend.init_weights()
    pixels = torch.randn(3, 2, 16, 16)
    tokens = frontend.embed(pixel_values=pixels)
    assert tokens.shape == (3, 16, 8)
    slow = (frontend.patch_embed.weight * pixels[1, :, 4:8, 8:12]).sum((1, 2, 3)) + frontend.patch_embed.bias
    assert torch.allclose(tokens[1, 1 * 4 + 2], slow, atol=1e-6)
    hidden = torch.rand(3, 16) < 0.5
    out = frontend.hide(tokens, hidden)
    assert torch.equal(out[~hidden], tokens[~hidden]) and (out[hidden] == frontend.mask_token).all()
    assert (
        frontend.positions(tokens, None) is None
        and frontend.padding(pixels) is None
        and frontend.extra().shape == (1, 1, 8)
    )
    assert frontend.hide(tokens.bfloat16(), hidden).dtype == torch.bfloat16


def test_frontend_without_bias_and_class_token():
    frontend = image.Frontend(small(relative_bias=False, class_token=False), 8, 2)
    frontend.init_weights()
    assert frontend.bias() is None and frontend.extra() is None
    assert image.Frontend(small(class_token=False), 8, 2).bias().shape == (2, 16, 16)


def test_wrong_sizes_are_errors():
    with pytest.raises(ValueError, match="image_size 30 must be a multiple of patch_size 4"):
        image.Frontend(small(image_size=30), 8, 2)
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\): this model reads \(batch, 3, 16, 16\)"):
        image.Frontend(small(), 8, 2).eval().embed(torch.zeros(2, 3, 8, 8))  # in training a smaller crop may be meant


# Settings.


def test_configs_are_typed_and_exports_are_complete():
    for config in (image.FrontendConfig, image.DataConfig):
        assert OmegaConf.to_object(OmegaConf.structured(config)) == config()
    assert OmegaConf.merge(OmegaConf.structured(image.DataConfig), {"path": ["a", "b"], "max_block": 5}).max_block == 5
    assert image.__name__.rpartition(".")[2] == image.frontend.MODALITY
    assert list(inspect.signature(image.batches).parameters) == [
        "samples",
        "data",
        "frontend",
        "batch_size",
        "seed",
        "bad_log",
    ]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mean": [0.5, 0.5]}, "data.mean has 2 values for 3 channels"),
        ({"std": [0.0]}, "data.std .* must be a positive number"),
        ({"crop_scale": [0.5, 2.0]}, "data.crop_scale"),
        ({"crop_ratio": [2.0, 1.0]}, "data.crop_ratio"),
        ({"flip": 1.5}, "data.flip is 1.5"),
        ({"eval_crop": 0.0}, "data.eval_crop is 0.0"),
        ({"mask_ratio": 0.01}, "hides 0 of 16 patches"),
        ({"mask_ratio": 1.0}, "hides 16 of 16 patches"),
        ({"min_block": 16}, "lower data.min_block"),
    ],
)
def test_settings_that_contradict_are_errors(settings, match):
    with pytest.raises(ValueError, match=match):
        image.prepare(image.DataConfig(**{"min_block": 4} | settings), small(), Path(), 0)


def test_jitter_of_five_channels_is_an_error():
    data = image.DataConfig(mean=[0.5], std=[0.5], min_block=4)
    with pytest.raises(ValueError, match=r"color_jitter 0.4 needs 1 or 3 channels, not 5"):
        image.prepare(data, small(channels=5), Path(), 0)


# Samples.


def test_samples_of_a_folder(tmp_path):
    samples, _, _ = opened(photos(tmp_path))
    assert len(samples) == 6 and samples.lengths is None
    assert samples.ids == ["cat/01.png", "cat/03.png", "cat/05.png", "dog/00.png", "dog/02.png", "dog/04.png"]
    assert samples.classes == ["cat", "dog"] and samples.report.classes == {"cat": 3, "dog": 3}
    assert samples.column("label").tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"no column 'age'; its columns are file, label"):
        samples.column("age")
    view = samples.view([4, 0])
    assert (
        view.modality == "image"
        and view.inputs["pixel_values"].shape == (2, 3, 16, 16)
        and view.mask is None
        and view.padding is None
    )
    assert torch.equal(view.inputs["pixel_values"][1], samples.view([0]).inputs["pixel_values"][0])
    assert samples.raw([0, 1, 2]).shape == (3, 3 * 64)
    cells = view.inputs["pixel_values"].reshape(2, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1)
    assert np.allclose(samples.raw([4, 0]), cells, atol=1e-6)


@pytest.mark.parametrize("check_files", [True, False])
def test_damaged_files_are_reported(tmp_path, check_files):
    photos(tmp_path, 20)
    whole = (tmp_path / "cat" / "01.png").read_bytes()
    (tmp_path / "cat" / "01.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "03.png").write_bytes(b"")
    (tmp_path / "cat" / "05.png").write_text("no image")
    Image.new("RGB", (3, 30)).save(tmp_path / "dog" / "00.png")
    samples, _, _ = opened(tmp_path, check_files=check_files, min_size=4, max_bad_share=0.5)
    bad = [name for name, _ in samples.report.unreadable]
    assert bad == ["cat/01.png", "cat/03.png", "cat/05.png"][0 if check_files else 1 :]
    assert samples.report.too_short == [("dog/00.png", "3 x 30 pixels, data.min_size is 4")]
    assert len(samples) == samples.report.usable == (16 if check_files else 17) and samples.report.found == 20
    with pytest.raises(ValueError, match=r"data.max_bad_share is 5.0%.*cat/0"):
        opened(tmp_path, check_files=check_files, max_bad_share=0.05)


def test_a_file_damaged_later_is_replaced_by_the_next(tmp_path):
    samples, data, frontend = opened(photos(tmp_path))
    bad: list[str] = []
    before = image.batches(samples, data, frontend, 6, 0)(0, 0, 1)
    (tmp_path / "cat" / "05.png").write_bytes(b"gone")
    (tmp_path / "dog" / "00.png").unlink()
    views, ids = image.batches(samples, data, frontend, 6, 0, lambda name, reason: bad.append(name))(0, 0, 1)
    assert Counter(bad) == {"cat/05.png": 1, "dog/00.png": 2}  # the next of 05 is 00, which is gone as well
    assert ids == [{"cat/05.png": "dog/02.png", "dog/00.png": "dog/02.png"}.get(name, name) for name in before[1]]
    assert torch.equal(views[0].mask.hidden, before[0][0].mask.hidden)
    kept = [name not in bad for name in before[1]]
    assert torch.equal(views[0].inputs["pixel_values"][kept], before[0][0].inputs["pixel_values"][kept])


def encoded(picture: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_the_channels_asked_for(mode, channels):
    picture = (
        Image.fromarray(np.full((5, 7), 40000, np.uint16))
        if mode == "I;16"
        else Image.new("RGB", (7, 5), (200, 200, 200)).convert(mode)
    )
    decoded = augment.decode(encoded(picture, "tiff" if mode == "CMYK" else "png"), channels)
    assert augment.size(decoded) == augment.size(encoded(picture, "tiff" if mode == "CMYK" else "png")) == (5, 7)
    pixels = augment.normalise([decoded], [0.0], [1.0])
    assert pixels.shape == (1, channels, 5, 7) and 0 < pixels.mean() <= 1
    if mode == "I;16" and channels == 1:
        assert torch.allclose(pixels, torch.tensor(40000 / 65535))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_of_many_channels(tmp_path, dtype):
    generator = np.random.default_rng(0)
    for number in range(4):
        array = generator.integers(0, 255, (20, 18, 5)).astype(dtype)
        np.save(tmp_path / f"{number}.npy", array if number % 2 else array.transpose(2, 0, 1))
    samples, data, frontend = opened(tmp_path, small(channels=5), color_jitter=0.0, mean=[0.1] * 5, std=[0.2] * 5)
    assert samples.view([0, 1]).inputs["pixel_values"].shape == (2, 5, 16, 16) and samples.raw([0]).shape == (1, 5 * 64)
    (view,), _ = image.batches(samples, data, frontend, 4, 0)(0, 0, 1)
    assert view.inputs["pixel_values"].shape == (4, 5, 16, 16) and view.inputs["pixel_values"].dtype == torch.float32
    with pytest.raises(ValueError, match="does not have 4 channels"):
        opened(tmp_path, small(channels=4), color_jitter=0.0, mean=[0.1], std=[0.2], check_files=True)


# Batches.


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left, right)


def test_batches_are_functions_of_seed_and_step_and_parts_are_shares(tmp_path):
    samples, data, frontend = opened(photos(tmp_path, 12))
    batches = image.batches(samples, data, frontend, 6, 0)
    assert batches.steps_per_epoch == 2
    whole, ids = batches(3, 0, 1)
    assert [view.modality for view in whole] == ["image"] and whole[0].padding is None
    again = image.batches(samples, data, frontend, 6, 0)(3, 0, 1)
    assert same(again[0][0].inputs["pixel_values"], whole[0].inputs["pixel_values"]) and again[1] == ids
    for parts in (2, 3):
        for part in range(parts):
            (view,), some = batches(3, part, parts)
            assert same(view.inputs["pixel_values"], whole[0].inputs["pixel_values"][part::parts])
            assert same(view.mask.hidden, whole[0].mask.hidden[part::parts]) and some == ids[part::parts]
    other = image.batches(samples, data, frontend, 6, 1)(3, 0, 1)
    assert not same(other[0][0].mask.hidden, whole[0].mask.hidden)
    assert not same(batches(5, 0, 1)[0][0].inputs["pixel_values"], whole[0].inputs["pixel_values"])


def test_batches_leave_global_randomness_alone(tmp_path):
    samples, data, frontend = opened(photos(tmp_path))
    batches = image.batches(samples, data, frontend, 6, 0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    first = batches(0, 0, 1)
    assert (
        same(before[0], torch.get_rng_state())
        and np.array_equal(before[1], np.random.get_state()[1])
        and before[2] == random.getstate()
    )
    torch.manual_seed(123)
    assert same(batches(0, 0, 1)[0][0].inputs["pixel_values"], first[0][0].inputs["pixel_values"])


def test_batches_travel_to_worker_processes(tmp_path):
    batches = image.batches(*opened(photos(tmp_path)), 2, 0)
    views, ids = pickle.loads(pickle.dumps(batches))(4, 0, 1)
    expected = batches(4, 0, 1)
    assert same(views[0].inputs["pixel_values"], expected[0][0].inputs["pixel_values"]) and ids == expected[1]


def test_masks_hide_the_ratio_in_blocks():
    data, frontend = (
        image.DataConfig(path="demo", mean=[0.3], std=[0.35]),
        image.FrontendConfig(image_size=14, patch_size=1, channels=1),
    )
    samples = image.Samples(data, frontend, split="test", folder=Path())
    (view,), _ = image.batches(samples, data, frontend, 64, 0)(0, 0, 1)
    counts = view.mask.hidden.sum(1)
    assert view.mask.hidden.shape == (64, 196) and view.mask.hidden.dtype == torch.bool and view.mask.keep is None
    assert counts.max() == 120 and counts.min() >= 105
    hidden = view.mask.hidden.view(64, 14, 14)
    assert (hidden[:, 1:] == hidden[:, :-1]).float().mean() > 0.75  # at random it would be 0.53


def test_augmentation_is_jitter_flip_crop_in_this_order():
    settings = {"crop_scale": [0.08, 1.0], "crop_ratio": [0.75, 4 / 3], "flip": 0.5, "color_jitter": 0.4}
    jitter, flip, crop = augment.training(224, **settings).transforms
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4) and jitter.hue is None
    assert flip.p == 0.5 and crop.scale == (0.08, 1.0) and crop.ratio == (0.75, 4 / 3)
    assert crop.size == (224, 224) and crop.interpolation == v2.InterpolationMode.BICUBIC
    assert len(augment.training(224, **settings | {"color_jitter": 0.0}).transforms) == 2


def test_views_without_randomness_are_the_normalised_image(tmp_path):
    photos(tmp_path, 2, (16, 16))
    samples, data, frontend = opened(
        tmp_path, crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], flip=0.0, color_jitter=0.0, eval_crop=1.0
    )
    (view,), ids = image.batches(samples, data, frontend, 2, 0)(0, 0, 1)
    for pixels, name in zip(view.inputs["pixel_values"], ids, strict=True):
        array = np.asarray(Image.open(tmp_path / name)).transpose(2, 0, 1) / 255
        expected = (array - np.array(data.mean).reshape(3, 1, 1)) / np.array(data.std).reshape(3, 1, 1)
        assert np.allclose(pixels, expected, atol=1e-5)
        assert same(pixels, samples.view([samples.ids.index(name)]).inputs["pixel_values"][0])


# Demo, export, real data.


def test_demo_goes_the_whole_way():
    frontend = image.FrontendConfig(image_size=8, patch_size=2, channels=1)
    data = image.DataConfig(path="demo", mean=[0.3], std=[0.38], min_block=2, eval_crop=1.0)
    image.prepare(data, frontend, Path(), 0)
    train, test = (image.Samples(data, frontend, split=split, folder=Path()) for split in ("train", "test"))
    assert len(train) == 1397 and len(test) == 400 and train.classes == [str(n) for n in range(10)]
    assert set(test.column("label").tolist()) == set(range(10)) and test.ids[7] == "test:7"
    pixels = train.view(range(200)).inputs["pixel_values"]
    assert abs(pixels.mean()) < 0.1 and abs(pixels.std() - 1) < 0.1
    (view,), _ = image.batches(train, data, frontend, 4, 0)(0, 0, 1)
    assert view.mask.hidden.shape == (4, 16)
    with pytest.raises(ValueError, match="splits train, test"):
        image.Samples(data, frontend, split="validation", folder=Path())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("eval_crop", [1.0, 0.8])
def test_exported_preprocessor_makes_the_evaluation_view(tmp_path, channels, eval_crop):
    frontend = small(channels=channels)
    samples, data, _ = opened(
        photos(tmp_path / "data", 2), frontend, mean=[0.4] * channels, std=[0.2] * channels, eval_crop=eval_crop
    )
    image.save_preprocessor(tmp_path, tmp_path, data, frontend)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor([samples.image(0), samples.image(1)], return_tensors="pt")["pixel_values"]
    difference = (pixels - samples.view([0, 1]).inputs["pixel_values"]).abs()
    assert difference.max() < 1.6 / 255 / 0.2  # one step of 255: Pillow and torch round differently when resizing


@pytest.mark.parametrize(
    ("name", "split", "size", "count"), [("cifar10", "test[:200]", 32, 200), ("clothing10", "validation", 64, 341)]
)
def test_real_data(shared, name, split, size, count):
    frontend = image.FrontendConfig(image_size=size, patch_size=size // 8)
    data = image.DataConfig(path=str(shared / "data" / name), check_files=False)
    samples = image.Samples(data, frontend, split=split, folder=Path())
    assert len(samples) == count and len(samples.classes) == 10 and sum(samples.report.classes.values()) == count
    (view,), _ = image.batches(samples, data, frontend, 8, 0)(0, 0, 1)
    assert view.inputs["pixel_values"].shape == (8, 3, size, size) and view.inputs["pixel_values"].isfinite().all()
    assert samples.view(range(3)).inputs["pixel_values"].shape == (3, 3, size, size)


def test_sincos_positions():
    """Column first, as in data2vec 2.0: [sin(c w) | cos(c w) | sin(r w) | cos(r w)] with w_i = 10000^(-i / (D / 4))."""
    frontend = Frontend(FrontendConfig(image_size=12, patch_size=4, positions="sincos"), 8, 2)
    table = frontend.positions(torch.zeros(1, 9, 8), None)
    for token in range(9):
        row, column = divmod(token, 3)
        rates = [1.0, 10000**-0.5]
        expected = [f(axis * rate) for axis in (column, row) for f in (math.sin, math.cos) for rate in rates]
        assert torch.allclose(table[token], torch.tensor(expected), atol=1e-6)
    with pytest.raises(ValueError, match="sincos, learned"):
        FrontendConfig(positions="rotary")


def test_learned_positions_have_a_place_for_the_class_token():
    config = FrontendConfig(image_size=12, patch_size=4, positions="learned", relative_bias=False)
    frontend = Frontend(config, 8, 2)
    frontend.init_weights()
    assert frontend.position_table.shape == (10, 8) and 0.005 < frontend.position_table.std() < 0.02
    places = frontend.positions(torch.zeros(1, 9, 8), None)
    assert torch.equal(places, frontend.position_table[1:])
    assert torch.equal(frontend.extra(), frontend.class_token + frontend.position_table[0])
    alone = Frontend(FrontendConfig(image_size=12, patch_size=4, positions="learned", class_token=False), 8, 2)
    assert (
        torch.equal(alone.positions(torch.zeros(1, 9, 8), None), alone.position_table)
        and len(alone.position_table) == 9
    )


def test_a_bias_for_each_block_is_that_blocks_own_table():
    config = FrontendConfig(image_size=12, patch_size=4, bias_layers=3)
    frontend, shared = Frontend(config, 8, 2), Frontend(FrontendConfig(image_size=12, patch_size=4), 8, 2)
    torch.nn.init.normal_(frontend.bias_table)
    keep = torch.tensor([[0, 4, 8], [7, 1, 2]])
    for kept, shape in ((None, (3, 1, 2, 10, 10)), (keep, (3, 2, 2, 4, 4))):
        biases = frontend.bias(9, kept)
        assert biases.shape == shape
        for bias, table in zip(biases, frontend.bias_table, strict=True):
            shared.bias_table.data = table.data
            assert torch.equal(bias, shared.bias(9, kept).expand_as(bias))
    with pytest.raises(ValueError, match="bias_layers=2 must be at least 1, and 1 without relative_bias"):
        FrontendConfig(bias_layers=2, relative_bias=False)
