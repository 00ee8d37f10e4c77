"""Pixels of every depth, turn and transparency become what a person sees, or are refused by name."""

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from d2v.modalities import image
from d2v.modalities.common import labels
from d2v.modalities.image import augment, shrinking, views
from d2v.modalities.image.config import LabelledConfig
from d2v.modalities.image.labelled import LabelledBatches, _rand_augment

RAMP = np.linspace(0, 65535, 24 * 24).round().astype(np.uint16).reshape(24, 24)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(source: bytes | Path, channels: int = 3) -> np.ndarray:
    """(C, H, W) in 0 to 1."""
    return augment.normalise([augment.decode(source, channels)], [0.0], [1.0])[0].numpy()


def opened(folder: Path, channels: int = 3, **settings) -> image.Samples:
    frontend = image.FrontendConfig(image_size=16, patch_size=4, channels=channels)
    data = image.DataConfig(path=str(folder), min_block=4, max_bad_share=1.0, **settings)
    return image.Samples(data, frontend, split="train", folder=Path())


def sixteen_bits(mode: str) -> bytes:
    if mode == "I;16B":
        header = b"MM\x00*\x00\x00\x00\x08" + b"\x00\x08"
        offset = 10 + 8 * 12 + 4
        tags = ((256, 24), (257, 24), (258, 16), (259, 1), (262, 1), (273, offset), (278, 24), (279, 24 * 24 * 2))
        entries = b"".join(tag.to_bytes(2) + b"\x00\x04\x00\x00\x00\x01" + value.to_bytes(4) for tag, value in tags)
        return header + entries + bytes(4) + RAMP.astype(">u2").tobytes()
    if mode == "I;16":
        return encoded(Image.fromarray(RAMP), "png")
    if mode == "I, of a TIFF":
        return encoded(Image.fromarray(RAMP.astype(np.int32)), "tiff")
    return b"P5 24 24 65535\n" + RAMP.astype(">u2").tobytes()  # a PGM, which Pillow reads as I


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I, of a TIFF", "I, of a PGM"])
def test_grey_of_16_bits_is_read_by_its_depth(mode, channels):
    source = sixteen_bits(mode)
    assert Image.open(io.BytesIO(source)).mode == mode.partition(",")[0]
    found = pixels(source, channels)
    assert found.shape == (channels, 24, 24)
    np.testing.assert_allclose(found, np.stack([RAMP / 65535] * channels), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_float_images_lie_between_0_and_1(channels):
    grey = (RAMP / 65535).astype(np.float32)
    found = pixels(encoded(Image.fromarray(grey), "tiff"), channels)
    np.testing.assert_allclose(found, np.stack([grey] * channels), atol=1e-6)
    with pytest.raises(ValueError, match="float pixels from 0 to 255: they must lie between 0 and 1"):
        augment.decode(encoded(Image.fromarray(255 * grey), "tiff"), channels)
    grey[3, 4] = np.nan
    with pytest.raises(ValueError, match="float pixels from nan to nan"):
        augment.decode(encoded(Image.fromarray(grey), "tiff"), channels)


def test_grey_of_32_bits_has_no_depth():
    with pytest.raises(ValueError, match="grey pixels from 0 to 6553500: 16 bits hold 0 to 65535"):
        augment.decode(encoded(Image.fromarray(RAMP.astype(np.int32) * 100), "tiff"), 1)


def array_file(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"


@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2", "uint32", "int16", "int32", "bool", "float64"])
def test_arrays_are_read_by_the_range_of_their_type(tmp_path, kind):
    share = np.random.default_rng(0).random((24, 24, 3))
    share[0, 0] = 1
    most = np.iinfo(kind).max if np.dtype(kind).kind in "iu" else 1
    found = pixels(array_file(tmp_path, (share * most).astype(kind)))
    expected = np.ceil(share) if kind == "bool" else share
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1 / 200 if kind == "uint8" else 1e-4)


def test_arrays_without_a_known_depth_are_refused(tmp_path):
    values = np.arange(24 * 24 * 3).reshape(24, 24, 3) % 256
    for array in (values.astype(np.int64), values.astype(np.int32), -values.astype(np.int16)):
        with pytest.raises(ValueError, match="have no known depth: save them as uint8, uint16, or floats"):
            augment.decode(array_file(tmp_path, array), 3)
    with pytest.raises(ValueError, match="pixels of type complex128: they must be numbers"):
        augment.decode(array_file(tmp_path, values.astype(complex)), 3)
    for bad in (np.nan, np.inf):
        array = values.astype(np.float32)
        array[5, 5, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinite pixels"):
            augment.decode(array_file(tmp_path, array), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # light at the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition that the camera's turn is
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("jpeg", "png", "tiff"):
        source = encoded(stored, kind, exif=exif)
        assert augment.size(source) == (16, 32)
        assert np.abs(pixels(source) - upright.transpose(2, 0, 1) / 255).mean() < 0.02


def test_damaged_exif_turns_nothing():
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    source = encoded(picture, "png", exif=b"Exif\x00\x00nonsense that is no TIFF")
    assert np.array_equal(np.asarray(augment.decode(source, 3)), np.asarray(picture))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode, channels):
    """Two black shapes on transparency that is black too, as drawing programs write it."""
    seen = []
    for shape in (np.s_[4:12, 4:12], np.s_[0:3, 0:16]):
        alpha = np.zeros((16, 16), dtype=np.uint8)
        alpha[shape] = 255
        picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        picture.putalpha(Image.fromarray(alpha))
        if mode == "P":
            source = encoded(Image.fromarray(alpha // 255, "P"), "png", transparency=0)
        else:
            source = encoded(picture.convert(mode), "png")
        expected = 1 - alpha / 255
        if mode == "P":  # its palette: 0 is transparent, 1 nearly black
            expected = np.where(alpha, pixels(source, channels).min(), 1)
        np.testing.assert_allclose(pixels(source, channels), np.stack([expected] * channels), atol=1e-6)
        seen.append(pixels(source, channels))
    assert not np.array_equal(*seen)


def test_ordinary_images_are_as_pillow_reads_them():
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (16, 20, 3), dtype=np.uint8))
    for mode in ("RGB", "L", "CMYK", "P", "1"):
        for kind in ("png", "jpeg", "tiff"):
            if (mode, kind) in (("CMYK", "png"), ("P", "jpeg")):
                continue
            source = encoded(colour.convert(mode), kind)
            for channels, wanted in ((1, "L"), (3, "RGB")):
                expected = Image.open(io.BytesIO(source)).convert(wanted)
                found = augment.decode(source, channels)
                assert found.mode == wanted and found.tobytes() == expected.tobytes()


def test_constant_images_and_later_pages_are_said(tmp_path):
    draw = np.random.default_rng(0)
    noise = [Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(6)]
    noise[0].save(tmp_path / "plain.png")
    noise[1].save(tmp_path / "pages.tif", save_all=True, append_images=noise[2:4])
    noise[1].convert("P").save(tmp_path / "moves.gif", save_all=True, append_images=[noise[2].convert("P")])
    noise[1].save(tmp_path / "moves.webp", save_all=True, append_images=noise[2:4], lossless=True)
    noise[1].save(tmp_path / "moves.png", save_all=True, append_images=noise[2:4])
    Image.new("RGB", (24, 24), (9, 9, 9)).save(tmp_path / "black.png")
    Image.new("L", (24, 24), 255).save(tmp_path / "white.png")
    np.save(tmp_path / "zero.npy", np.zeros((24, 24, 3), np.float32))
    samples = opened(tmp_path)
    lines = samples.report.lines()
    assert lines[0] == "image: 8 of 8 samples usable"
    assert "of one colour: 3: black.png, white.png, zero.npy" in lines
    several = "of several pages or frames (the first is read): 4: moves.gif, moves.png, moves.webp, pages.tif"
    assert several in lines
    first = np.asarray(noise[1]).transpose(2, 0, 1) / 255
    for name in ("pages.tif", "moves.webp", "moves.png"):
        np.testing.assert_allclose(pixels(tmp_path / name), first, atol=1e-6)


def test_bad_pixels_are_unreadable_and_named(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    np.save(tmp_path / "nan.npy", np.full((24, 24, 3), np.nan, np.float32))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape")
    huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999, 3), }"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + huge.ljust(117).encode() + b"\n")
    os.mkfifo(tmp_path / "pipe.png")
    for check_files in (True, False):
        samples = opened(tmp_path, check_files=check_files)
        bad = dict(samples.report.unreadable)
        assert {"broken.npy", "huge.npy"} <= set(bad) and ("nan.npy" in bad) == check_files
        assert set(samples.ids) == {"0.png", "1.png", "2.png", "3.png"} | (set() if check_files else {"nan.npy"})
    assert bad.get("pipe.png", "OSError: no ordinary file") == "OSError: no ordinary file"


def test_rand_augment_reads_pixels_of_16_bits(tmp_path):
    for number in range(8):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(RAMP.T if number % 4 else RAMP).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    frontend = image.FrontendConfig(image_size=16, patch_size=4)
    data = LabelledConfig(
        path=str(tmp_path), auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.0, mean=[0.0], std=[1.0]
    )
    splits = labels.open_splits(data, 0, lambda split: image.Samples(data, frontend, split=split, folder=Path()))
    made = LabelledBatches(splits, data, frontend, batch_size=8, seed=0, bad_log=lambda *_: None)
    found = made(0, 0, 1)[0][0].inputs["pixel_values"]
    assert found.min() >= 0 and found.max() <= 1 and found.std() > 0.1
    with pytest.raises(ValueError, match=r"data\.auto_augment reads pixels between 0 and 1, not 0 to 255"):
        augment.eight_bits(torch.arange(256.0).reshape(1, 16, 16))


def tiff(array: np.ndarray, *, planes: bool = False, **tags: int) -> bytes:
    """An uncompressed TIFF of an array (H, W) or (H, W, C) and further tags by Pillow's names of them."""
    numbers = {name: getattr(TiffImagePlugin, name) for name in tags}
    height, width, bands = (*array.shape, 1)[:3]
    stored = array.transpose(2, 0, 1) if planes else array
    strips = bands if planes else 1
    size = stored.nbytes // strips
    entries = {256: [width], 257: [height], 258: [8 * array.itemsize] * bands, 259: [1], 262: [2 if bands > 1 else 1]}
    entries |= {277: [bands], 278: [height], 279: [size] * strips, 284: [2 if planes else 1]}
    entries |= {numbers[name]: [value] * (bands if name == "SAMPLEFORMAT" else 1) for name, value in tags.items()}
    count = len(entries) + 1
    extra = 8 + 2 + 12 * count + 4
    lists = {tag: values for tag, values in entries.items() if len(values) > 1}
    pixels_at = extra + 4 * sum(map(len, lists.values())) + 4 * strips
    entries[273] = [pixels_at + number * size for number in range(strips)]
    directory, behind = b"", b""
    for tag in sorted(entries):
        values = entries[tag]
        value = values[0] if len(values) == 1 else extra + len(behind)
        behind += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
        directory += struct.pack("<HHII", tag, 4, len(values), value)
    head = b"II*\x00" + struct.pack("<IH", 8, count) + directory + bytes(4) + behind
    return head.ljust(pixels_at, b"\x00") + stored.tobytes()


COLOURS = np.random.default_rng(0).integers(0, 65535, (24, 24, 3), dtype=np.uint16)


def test_tiffs_that_pillow_reads_wrong_are_refused_or_put_right(tmp_path):
    np.testing.assert_allclose(pixels(tiff(RAMP), 1)[0], RAMP / 65535, atol=1e-6)
    inverted = tiff(RAMP, PHOTOMETRIC_INTERPRETATION=0)
    np.testing.assert_allclose(pixels(inverted, 1)[0], 1 - RAMP / 65535, atol=1e-6)
    signed = tiff((RAMP // 2).astype(np.int16), SAMPLEFORMAT=2)
    np.testing.assert_allclose(pixels(signed, 1)[0], (RAMP // 2) / 32767, atol=1e-6)
    np.testing.assert_allclose(
        pixels(tiff((RAMP / 65535).astype(np.float32), planes=False, SAMPLEFORMAT=3), 1)[0], RAMP / 65535, atol=1e-6
    )
    np.save(tmp_path / "same.npy", (RAMP // 2).astype(np.int16))
    np.testing.assert_allclose(pixels(tmp_path / "same.npy", 1), pixels(signed, 1))
    for source, why in (
        (tiff(COLOURS, planes=True), "planes of 16 bits without compression"),
        (tiff((RAMP // 512).astype(np.int8), SAMPLEFORMAT=2), "signed pixels of 8 bits"),
    ):
        for read in (augment.outline, lambda given: augment.decode(given, 3)):
            with pytest.raises(ValueError, match=why):
                read(source)


def test_what_loses_bits_or_bands_is_said(tmp_path):
    four = np.dstack([COLOURS // 256, RAMP // 256]).astype(np.uint8)
    (tmp_path / "deep.tif").write_bytes(tiff(COLOURS))
    (tmp_path / "four.tif").write_bytes(tiff(four, EXTRASAMPLES=2))
    (tmp_path / "plain.tif").write_bytes(tiff((COLOURS // 256).astype(np.uint8)))
    (tmp_path / "grey.tif").write_bytes(tiff(RAMP))
    Image.fromarray(four).save(tmp_path / "transparent.png")
    remarks = opened(tmp_path).report.remarks
    assert remarks == {
        "of more than 8 bits in several bands (the upper 8 are read)": ["deep.tif"],
        "TIFFs of four bands (the fourth is read as transparency, on white)": ["four.tif"],
    }
    np.testing.assert_allclose(pixels(tmp_path / "deep.tif"), (COLOURS // 256).transpose(2, 0, 1) / 255, atol=1e-6)
    for name in ("deep.tif", "four.tif", "grey.tif"):
        assert shrinking.shrunk((tmp_path / name).read_bytes(), 8) is None
    assert shrinking.shrunk((tmp_path / "plain.tif").read_bytes(), 8) is not None


def test_a_model_of_many_bands_reads_no_others(tmp_path):
    grey, inks = sixteen_bits("I;16"), encoded(Image.new("CMYK", (8, 8), (1, 2, 3, 4)), "jpeg")
    for source in (grey, inks, encoded(Image.new("RGB", (8, 8)), "png")):
        with pytest.raises(ValueError, match="4 channels"):
            augment.decode(source, 4)
    assert pixels(tiff(np.dstack([COLOURS // 256, RAMP // 256]).astype(np.uint8), EXTRASAMPLES=2), 4).shape == (
        4,
        24,
        24,
    )


def test_colours_of_arrays_that_do_not_lie_between_0_and_1_are_not_changed():
    """torchvision would cut them off there, and most of an image of other units would be one colour."""
    decibels = torch.linspace(-30, 5, 3 * 16 * 16).view(3, 16, 16)
    for jitter, fails in ((0.4, True), (0.0, False)):
        change = augment.training(16, crop_scale=(0.5, 1), crop_ratio=(1, 1), flip=0.5, color_jitter=jitter)
        if fails:
            with pytest.raises(
                ValueError, match=r"data\.color_jitter.* between 0 and 1, not -30 to 5: scale the arrays"
            ):
                change(decibels)
        else:
            assert change(decibels).min() < -20
        assert change(decibels.sigmoid()).shape == (3, 16, 16)


@pytest.mark.parametrize("on_device", [False, True])
def test_nor_are_those_of_views(on_device):
    data = image.DataConfig(path="photos", views=["moco_v2"] * 2, augment_on_device=on_device)
    change = views.transforms(data, 16)[0]
    decibels = torch.linspace(-30, 5, 3 * 16 * 16).view(3, 16, 16)
    with pytest.raises(ValueError, match=r"data\.color_strength of data\.views.* between 0 and 1, not -"):
        for _ in range(50):  # colours are changed by chance
            change(decibels)
    still = image.DataConfig(path="photos", views=["moco_v2"] * 2, augment_on_device=on_device, color_strength=0.0)
    for change in views.transforms(still, 16):
        for _ in range(20):
            change(decibels)


def test_the_strongest_posterising_leaves_a_bit():
    made = _rand_augment(LabelledConfig(path="photos", auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.0), 16)
    posterise = [change for change in made.ops if change.name.startswith("Posterize")]
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    assert posterise
    for change in posterise:
        change.prob, change.magnitude, change.magnitude_std = 1.0, 10, 0
        assert len(np.unique(np.asarray(change(picture)))) == 2


def test_pixels_far_from_mean_and_std_are_told_with_the_settings_that_fit(tmp_path):
    """Counts of a camera fill a few percent of 16 bits: normalised by the default statistics they are one colour."""
    generator = np.random.default_rng(0)
    for number in range(10):
        counts = generator.integers(1000, 4000, (24, 24), dtype=np.uint16)
        Image.fromarray(counts).save(tmp_path / f"{number}.png")
    (said,) = [
        note for note in opened(tmp_path, 1, mean=[0.45], std=[0.22]).report.notes if note.startswith("pixels of")
    ]
    found = re.search(r"what is trained anew learns more with data\.mean=\[(.+)\] data\.std=\[(.+)\]$", said)
    assert found and "of 8 images" in said
    mean, std = float(found[1]), float(found[2])
    assert abs(mean - 2500 / 65535) < 0.001 and abs(std - 866 / 65535) < 0.001
    assert not [note for note in opened(tmp_path, 1, mean=[mean], std=[std]).report.notes if note.startswith("pixels")]
    for number in range(10):  # ordinary photographs are not spoken of
        Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    assert not [note for note in opened(tmp_path).report.notes if note.startswith("pixels")]
    for number in range(10):  # nor is what no deviation would help, as a channel is of one value
        Image.new("RGB", (24, 24), (number, 0, 3)).save(tmp_path / f"{number}.png")
    assert not [note for note in opened(tmp_path).report.notes if note.startswith("pixels")]
