"""Views of images.

What each augmentation does and how often, multi-crop, masks of views, and batches as functions of seed and step.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageFilter, ImageOps

from d2v.modalities import image
from d2v.modalities.image import masks, views
from d2v.modalities.image.frontend import Frontend, FrontendConfig, resized
from d2v.modalities.image.views import FAMILIES
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.positions import sincos

DRAWS = 400
NAMES = {"RandomHorizontalFlip": "flip", "RandomGrayscale": "grey", "RandomResizedCrop": "crop"}


def noise(height: int = 12, width: int = 12, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small(**settings) -> image.FrontendConfig:
    return image.FrontendConfig(**{"image_size": 16, "patch_size": 4} | settings)


def config(*names: str, **settings) -> image.DataConfig:
    return image.DataConfig(
        **{"views": list(names)} | ({"min_block": 2} if settings.get("mask_views") else {}) | settings
    )


def parts(transform) -> dict:
    """The transforms of a view by what they do, in their order."""
    found = {}
    for part in transform.transforms:
        name = NAMES.get(type(part).__name__)
        if name is None:
            inner = part.transforms[0]
            name = (
                {"blurred": "blur", "solarised": "solarise"}.get(getattr(inner, "lambd", part).__name__)
                if hasattr(inner, "lambd")
                else "jitter"
            )
        found[name] = part
    return found


def share(part) -> tuple[float, list[Image.Image]]:
    """How often a transform changes an image, and the changed ones."""
    original = noise()
    made = [part(original) for _ in range(DRAWS)]
    changed = [picture for picture in made if picture.tobytes() != original.tobytes()]
    return len(changed) / DRAWS, changed


# Facts: order; area; jitter with its chance; chances of grey, blur, solarise; interpolation.
PUBLISHED = {
    "moco_v2": ("crop jitter grey blur flip", (0.2, 1), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0, "bilinear"),
    "instdisc": ("crop grey jitter flip", (0.2, 1), (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0, 0, "bilinear"),
    "simclr": ("crop flip jitter grey blur", (0.08, 1), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0, "bicubic"),
    "byol_a": ("crop flip jitter grey blur", (0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0, "bicubic"),
    "byol_b": ("crop flip jitter grey blur solarise", (0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2, "bicubic"),
    "dino_a": ("crop flip jitter grey blur", (0.4, 1), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0, "bicubic"),
    "dino_b": ("crop flip jitter grey blur solarise", (0.4, 1), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2, "bicubic"),
    "dino_local": ("crop flip jitter grey blur", (0.05, 0.4), (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0, "bicubic"),
    "swav": ("crop flip jitter grey blur", (0.14, 1), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0, "bilinear"),
    "rotnet": ("crop flip", (0.08, 1), None, 0, 0, 0, 0, "bilinear"),
    "jigsaw": ("crop flip grey", (0.6, 1), None, 0, 0.66, 0, 0, "bilinear"),
    "pirl": ("crop jitter grey flip", (0.08, 1), (0.4, 0.4, 0.4, 0.2), 1.0, 0.2, 0, 0, "bilinear"),
    "pirl_tiles": ("crop jitter grey flip", (0.6, 1), (0.4, 0.4, 0.4, 0.2), 1.0, 0.2, 0, 0, "bilinear"),
}


def test_every_family_is_stated_here_and_the_first_is_the_ordinary_one():
    assert list(PUBLISHED) == list(FAMILIES) == list(image.VIEWS) and image.VIEWS[0] == "moco_v2"


@pytest.mark.parametrize("name", PUBLISHED)
def test_family_does_what_was_published_as_often_as_published(name):
    order, area, jitter, jitter_chance, grey, blur, solarise, interpolation = PUBLISHED[name]
    (transform,) = views.transforms(config(name), 16)
    found = parts(transform)
    assert list(found) == order.split()
    crop = found.pop("crop")
    assert (
        crop.size == (16, 16)
        and crop.scale == area
        and crop.ratio == (3 / 4, 4 / 3)
        and crop.interpolation.value == interpolation
    )
    if jitter is not None:
        colour = found["jitter"].transforms[0]
        ranges = (colour.brightness, colour.contrast, colour.saturation)
        assert ranges == tuple(pytest.approx((1 - amount, 1 + amount)) for amount in jitter[:3])
        assert colour.hue == (-jitter[3], jitter[3])
    chances = {"flip": 0.5, "jitter": jitter_chance, "grey": grey, "blur": blur, "solarise": solarise}
    for what, part in found.items():
        chance = chances[what]
        often, changed = share(part)
        assert abs(often - chance) <= 4 * (chance * (1 - chance) / DRAWS) ** 0.5, what
        if what == "flip":
            assert all(picture.tobytes() == ImageOps.mirror(noise()).tobytes() for picture in changed)
        if what == "grey":
            assert all((np.asarray(picture) == np.asarray(picture)[..., :1]).all() for picture in changed)
        if what == "solarise":
            assert all(picture.tobytes() == ImageOps.solarize(noise(), 128).tobytes() for picture in changed)


def test_crops_have_areas_of_the_whole_range():
    (transform,) = views.transforms(config("dino_local"), 16)
    picture = noise(200, 200)
    drawn = [parts(transform)["crop"].make_params([picture]) for _ in range(300)]
    areas = np.array([draw["height"] * draw["width"] for draw in drawn]) / 200**2
    assert 0.045 < areas.min() < 0.08 and 0.37 < areas.max() < 0.41 and abs(areas.mean() - 0.225) < 0.025


def test_blur_is_a_gaussian_whose_width_is_drawn():
    for seed in range(5):
        torch.manual_seed(seed)
        found = views.blurred(noise())
        torch.manual_seed(seed)
        sigma = 0.1 + 1.9 * float(torch.rand(()))
        assert found.tobytes() == noise().filter(ImageFilter.GaussianBlur(sigma)).tobytes()
    wide = torch.zeros(1, 9, 9)
    wide[0, 4, 4] = 1
    assert views.blurred(wide).sum() == pytest.approx(1, abs=0.02)


def test_solarise_is_of_the_upper_half_whatever_the_type():
    values = torch.tensor([[[0, 100, 127, 128, 255]]], dtype=torch.uint8)
    assert views.solarised(values).flatten().tolist() == [0, 100, 127, 127, 0]
    torch.testing.assert_close(views.solarised(values / 255) * 255, torch.tensor([[[0.0, 100, 127, 127, 0]]]))


def test_settings_change_what_they_say():
    weak, local = views.transforms(
        config("simclr", color_strength=0.5, blur=False, flip=0.0, view_scale=[0.3, 0.9], local_views=1, local_size=8),
        16,
    )
    assert list(parts(weak)) == list(parts(local)) == ["crop", "flip", "jitter", "grey"]
    assert parts(weak)["jitter"].transforms[0].brightness == (0.6, 1.4) and parts(weak)["jitter"].transforms[0].hue == (
        -0.1,
        0.1,
    )
    assert (
        parts(weak)["crop"].scale == (0.3, 0.9)
        and parts(local)["crop"].scale == (0.05, 0.4)
        and parts(local)["crop"].size == (8, 8)
    )
    assert parts(weak)["flip"].p == 0
    of_swav = views.transforms(config("swav", "swav", local_views=2, local_size=8), 16)
    assert (
        len(of_swav) == 4
        and parts(of_swav[3])["crop"].scale == (0.05, 0.14)
        and parts(of_swav[3])["crop"].interpolation.value == "bilinear"
    )
    chosen = views.transforms(config("swav", local_views=1, local_size=8, local_scale=[0.1, 0.2]), 16)[1]
    assert parts(chosen)["crop"].scale == (0.1, 0.2)


# Batches.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        noise(24, 20, number).save(place / f"{number:02}.png")
    return place


def make(
    folder: Path, data: image.DataConfig, frontend: image.FrontendConfig | None = None, size: int = 6, seed: int = 0
):
    data.path, frontend = str(folder), frontend or small()
    image.prepare(data, frontend, Path(), 0)
    samples = image.Samples(data, frontend, split="train", folder=Path())
    return image.batches(samples, data, frontend, size, seed), samples


def multi_crop(**settings) -> image.DataConfig:
    return config("dino_a", "dino_b", **{"local_views": 3, "local_size": 8, "mask_views": True} | settings)


def same(left, right) -> bool:
    mask = torch.equal(left.mask.hidden, right.mask.hidden) if left.mask and right.mask else left.mask is right.mask
    return (
        torch.equal(left.inputs["pixel_values"], right.inputs["pixel_values"])
        and torch.equal(left.indices, right.indices)
        and mask
    )


def test_views_are_of_the_same_samples_globals_first(folder):
    batches, samples = make(folder, multi_crop())
    made, ids = batches(1, 0, 1)
    assert [tuple(view.inputs["pixel_values"].shape) for view in made] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)] * 3
    assert all(view.indices.dtype == torch.long and [samples.ids[i] for i in view.indices] == ids for view in made)
    assert [view.mask is None for view in made] == [False, False, True, True, True]
    assert [view.to("cpu").local for view in made] == [False, False, True, True, True]
    assert made[0].mask.hidden.shape == (6, 16) and made[0].mask.keep is None
    assert not same(made[0], made[1]) and not torch.equal(
        made[2].inputs["pixel_values"], made[3].inputs["pixel_values"]
    )


def test_a_view_without_randomness_shows_its_sample(folder):
    """Whole images, never flipped: the mean brightness of a view is that of its sample."""
    batches, samples = make(
        folder, config("simclr", view_scale=[1.0, 1.0], crop_ratio=[0.83, 0.84], color_strength=0.0, blur=False)
    )
    (view,), _ = batches(0, 0, 1)
    whole = samples.view(view.indices.tolist()).inputs["pixel_values"].mean((1, 2, 3))
    assert (view.inputs["pixel_values"].mean((1, 2, 3)) - whole).abs().max() < 0.15


def test_batches_are_functions_of_seed_and_step_and_parts_are_shares(folder):
    batches, _ = make(folder, multi_crop())
    whole, ids = batches(3, 0, 1)
    state = torch.get_rng_state()
    again, _ = make(folder, multi_crop())[0](3, 0, 1)
    assert torch.equal(state, torch.get_rng_state()) and all(map(same, again, whole))
    for part in range(2):
        some, names = batches(3, part, 2)
        assert names == ids[part::2]
        for view, expected in zip(some, whole, strict=True):
            assert torch.equal(view.inputs["pixel_values"], expected.inputs["pixel_values"][part::2])
            assert torch.equal(view.indices, expected.indices[part::2])
            assert view.mask is None or torch.equal(view.mask.hidden, expected.mask.hidden[part::2])
    other, _ = make(folder, multi_crop(), seed=1)[0](3, 0, 1)
    assert not any(map(same, other, whole)) and not any(map(same, batches(4, 0, 1)[0], whole))


def test_a_damaged_files_place_is_taken_with_its_number(tmp_path, folder):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    batches, _ = make(tmp_path, config("moco_v2", "moco_v2"))
    (first, _), before = batches(0, 0, 1)
    (tmp_path / before[2]).write_bytes(b"gone")
    (again, second), ids = batches(0, 0, 1)
    assert int(again.indices[2]) == (int(first.indices[2]) + 1) % 12 and ids[2] != before[2]
    assert torch.equal(again.indices, second.indices)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_family_makes_views_of_one_or_three_channels(folder, channels):
    batches, _ = make(folder, config(*image.VIEWS, mean=[0.5], std=[0.5]), small(channels=channels), size=2)
    made, _ = batches(0, 0, 1)
    assert len(made) == len(image.VIEWS) and all(
        view.inputs["pixel_values"].shape == (2, channels, 16, 16) for view in made
    )
    assert all(view.inputs["pixel_values"].abs().max() <= 1 for view in made)


def test_sixteen_bits_of_grey_are_augmented_as_numbers(tmp_path):
    for number in range(4):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 65536, (20, 20), dtype=np.uint16)).save(file, "png")
        (tmp_path / f"{number}.png").write_bytes(file.getvalue())
    batches, _ = make(tmp_path, config("byol_a", "byol_b", mean=[0.0], std=[1.0]), small(channels=1), size=4)
    for view in batches(0, 0, 1)[0]:
        assert (
            view.inputs["pixel_values"].isfinite().all()
            and -0.2 < view.inputs["pixel_values"].min() <= view.inputs["pixel_values"].max() < 1.2
        )


def test_masks_of_views_hide_what_is_drawn():
    data, frontend = config("dino_a", "dino_b", mask_views=True), small(image_size=56)  # 14 x 14 patches
    generator = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return np.array([masks.draw_varied(generator, data, frontend.grid) for _ in data.views])  # (2, 196)

    drawn = np.array([draw() for _ in range(200)])  # (200, 2, 196)
    counts = drawn.sum(2).flatten()
    masked = counts[counts > 0] / 196
    assert abs(len(masked) / len(counts) - 0.5) < 0.1 and masked.max() <= 0.5 and 0.08 < masked.min() < 0.13
    assert abs(masked.mean() - 0.3) < 0.03 and (drawn[:, 0] != drawn[:, 1]).any()
    data.mask_chance, data.mask_range = 1.0, [0.25, 0.25]
    counts = draw().sum(1)
    assert (counts <= 49).all() and (counts >= 40).all()
    data.mask_chance = 0.0
    assert not draw().any()


# Errors.


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"views": ["moco"]}, r"data.views holds 'moco'; it may hold moco_v2, instdisc, simclr"),
        ({"local_views": 2, "local_size": 20, "views": ["swav"]}, "data.local_size 20 must be between 1 and .* 16"),
        (
            {"local_views": 2, "local_size": 6, "views": ["swav"]},
            "data.local_size 6 must be a multiple of .*patch_size 4",
        ),
        ({"local_views": -1, "views": ["swav"]}, "data.local_views is -1"),
        ({"local_views": 2}, "data.local_views is 2, and nothing reads it: data.views is empty"),
        ({"view_scale": [0.2, 1.0]}, "data.view_scale is .* and nothing reads it: data.views is empty"),
        ({"blur": False}, "data.blur is False, and nothing reads it: data.views is empty"),
        ({"color_strength": 0.5}, "data.color_strength is 0.5, and nothing reads it: data.views is empty"),
        ({"views": ["swav"], "local_size": 8}, "data.local_size is 8, and nothing reads it: data.local_views is 0"),
        ({"views": ["swav"], "local_scale": [0.1, 0.2]}, "data.local_scale .*: data.local_views is 0"),
        ({"views": ["swav"], "view_scale": [0.5, 0.2]}, "data.view_scale .* must be"),
        ({"views": ["rotnet"], "color_strength": 0.5}, "color_strength is 0.5, and nothing reads it: .*'rotnet'"),
        ({"views": ["swav"], "color_strength": 3.0}, "data.color_strength 3.0 must lie between 0 and 2.5"),
        ({"mask_views": True}, "data.mask_views is True, and nothing reads it: data.views is empty"),
        ({"mask_chance": 0.2}, "data.mask_chance is 0.2, .*data.mask_views=true"),
        ({"views": ["swav"], "mask_range": [0.1, 0.2]}, "data.mask_range .*data.mask_views=true"),
        ({"views": ["swav"], "mask_views": True, "mask_kind": "random"}, "data.mask_kind is random"),
        ({"views": ["swav"], "mask_views": True, "mask_range": [0.5, 0.1]}, "data.mask_range"),
        ({"views": ["swav"], "mask_views": True, "mask_chance": 2.0}, "data.mask_chance is 2.0"),
        (
            {"views": ["swav"], "mask_views": True, "mask_ratio": 0.5},
            "data.mask_ratio is 0.5, and nothing reads it: .*data.mask_range",
        ),
        ({"views": ["swav"], "min_block": 8}, "data.min_block is 8, and nothing reads it: data.views hides nothing"),
        ({"views": ["swav"], "crop_scale": [0.2, 1.0]}, "data.crop_scale .*data.view_scale"),
        ({"views": ["swav"], "color_jitter": 0.0}, "data.color_jitter is 0.0, .*data.color_strength"),
    ],
)
def test_settings_that_cannot_be_or_that_nothing_reads_are_errors(settings, match):
    with pytest.raises(ValueError, match=match):
        image.prepare(
            image.DataConfig(**({} if "views" in settings else {"min_block": 4}) | settings), small(), Path(), 0
        )


def test_views_need_colours_and_patches_to_be_masked():
    with pytest.raises(ValueError, match=r"needs 1 or 3 channels; .* is 5"):
        image.prepare(config("moco_v2", mean=[0.5], std=[0.5]), small(channels=5), Path(), 0)
    with pytest.raises(ValueError, match=r"backbone=resnet18 mixes all patches.*without data.mask_views"):
        image.prepare(config("moco_v2", mask_views=True), small(backbone="resnet18"), Path(), 0)
    with pytest.raises(ValueError, match=r"backbone=resnet18 mixes all patches.*name data.views"):
        image.prepare(config(), small(backbone="resnet18"), Path(), 0)
    image.prepare(config("moco_v2"), small(backbone="resnet18", image_size=30), Path(), 0)  # neither masks nor patches


def test_settings_are_typed():
    merged = OmegaConf.merge(
        OmegaConf.structured(image.DataConfig), {"views": ["swav"], "view_scale": [0.2, 1], "local_scale": [0.1, 0.2]}
    )
    assert OmegaConf.to_object(merged).view_scale == [0.2, 1.0]


# Crops of other sizes, in training.


def frontend_of(**settings) -> Frontend:
    frontend = Frontend(FrontendConfig(**{"image_size": 24, "patch_size": 4} | settings), 8, 2)
    frontend.init_weights()
    for table in (frontend.bias_table, frontend.position_table):
        if table is not None:
            torch.nn.init.normal_(table)
    return frontend


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("positions", ["none", "sincos", "learned"])
def test_smaller_crops_are_encoded_in_training(positions, class_token):
    frontend = {
        "image_size": 24,
        "patch_size": 4,
        "positions": positions,
        "class_token": class_token,
        "relative_bias": positions == "none",
    }
    encoder = D2vModel(
        D2vConfig({"image": frontend}, {"depth": 1, "dim": 8, "num_heads": 2, "mlp_dim": 8, "final_norm": True})
    )
    for size in (24, 12):
        features = encoder.train()(pixel_values=torch.randn(2, 3, size, size))
        assert features.x.shape == (2, (size // 4) ** 2, 8) and features.x.isfinite().all()
    features.x.square().sum().backward()
    tables = [encoder.frontends["image"].bias_table, encoder.frontends["image"].position_table]
    assert all(table.grad.abs().sum() > 0 for table in tables if table is not None)
    with pytest.raises(ValueError, match=r"\(2, 3, 12, 12\): this model reads \(batch, 3, 24, 24\)$"):
        encoder.eval()(pixel_values=torch.randn(2, 3, 12, 12))


def test_a_smaller_grid_has_the_biases_of_its_offsets():
    frontend = frontend_of()
    whole, small_bias, index = frontend.bias(36), frontend.bias(4), frontend.bias_index(4)
    assert (
        torch.equal(whole, frontend.bias())
        and small_bias.shape == (2, 5, 5)
        and index[0].tolist() == [123, 121, 121, 121, 121]
    )
    cells = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for i, (row, column) in enumerate(cells):
        for j, (other_row, other_column) in enumerate(cells):
            for corner in (0, 20):  # the same offset lies anywhere in the model's own grid
                query, key = (1 + corner + r * 6 + c for r, c in ((row, column), (other_row, other_column)))
                assert torch.equal(small_bias[:, 1 + i, 1 + j], whole[:, query, key])


def test_positions_of_other_grids():
    fixed = frontend_of(positions="sincos")
    assert torch.equal(fixed.positions(torch.zeros(1, 9, 8), None), sincos((3, 3), 8, torch.device("cpu")))
    learned = frontend_of(positions="learned", relative_bias=False)
    assert torch.equal(learned.positions(torch.zeros(1, 36, 8), None), learned.position_table[1:])
    for side in (3, 8):  # DINO's way: the scale is that of side + 0.1
        table = learned.position_table[1:].reshape(1, 6, 6, 8).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(
            table, scale_factor=((side + 0.1) / 6, (side + 0.1) / 6), mode="bicubic"
        )
        assert torch.equal(
            learned.positions(torch.zeros(1, side * side, 8), None), expected.permute(0, 2, 3, 1).reshape(-1, 8)
        )
    half = learned.positions(torch.zeros(1, 9, 8, dtype=torch.bfloat16), None)
    assert half.dtype == torch.float32 and set(learned.state_dict()) == {
        "patch_embed.weight", "patch_embed.bias", "mask_token", "class_token", "position_table"
    }  # fmt: skip
    flat = torch.full((36, 8), 0.5)
    assert torch.allclose(resized(flat, 6, 2), flat[:4])


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((12, 8), {}),
        ((10, 10), {}),
        ((28, 28), {}),
        ((0, 0), {}),
        ((12, 8), {"relative_bias": False, "positions": "sincos"}),
    ],
)
def test_sizes_that_do_not_fit_are_errors_in_training_too(shape, settings):
    with pytest.raises(
        ValueError, match=r"this model reads \(batch, 3, 24, 24\), and in training other squares of 4 x 4 pixels"
    ):
        frontend_of(**settings).embed(torch.zeros(1, 3, *shape))


def test_larger_images_in_training_need_absolute_positions():
    assert frontend_of(relative_bias=False, positions="sincos").embed(torch.zeros(1, 3, 28, 28)).shape == (1, 49, 8)
