"""d2v data pack SOURCE OUT shorter_side=N: photographs that decode faster, and look the same."""

import io
import tarfile

import numpy as np
import pytest
from PIL import ExifTags, Image

from d2v.modalities.common import packing
from d2v.modalities.image import augment, shrinking
from d2v.modalities.image.config import DataConfig
from d2v.modalities.image.frontend import FrontendConfig
from d2v.modalities.image.samples import Samples, _sizes
from scripts import data as data_script


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours and a little noise."""
    generator = np.random.default_rng(width)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = pixels + generator.normal(0, 5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def file_of(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def pixels(media: bytes, size: tuple[int, int]) -> np.ndarray:
    """As training reads them, at a size."""
    image = augment.decode(media, 3).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


@pytest.mark.parametrize(("kind", "mode"), [("jpeg", "RGB"), ("jpeg", "L"), ("png", "RGB"), ("webp", "RGB")])
def test_a_smaller_file_shows_the_same(kind, mode):
    media = file_of(photograph(1203, 900, mode), kind, quality=95)
    smaller = shrinking.shrunk(media, 128)
    with Image.open(io.BytesIO(smaller)) as image:
        assert image.size == (171, 128) and image.format == ("PNG" if kind == "png" else "JPEG") and image.mode == mode
    assert np.abs(pixels(smaller, (43, 32)) - pixels(media, (43, 32))).mean() < 1.0  # of 255


def test_an_image_on_its_side_stands_and_does_not_turn_twice():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    media = file_of(photograph(800, 600), "jpeg", exif=exif)
    smaller = shrinking.shrunk(media, 100)
    assert augment.size(smaller) == (133, 100) == tuple(round(n / 6) for n in augment.size(media))
    assert np.abs(pixels(smaller, (24, 32)) - pixels(media, (24, 32))).mean() < 1.5


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA"])
def test_transparency_palettes_and_black_and_white_stay_without_loss(mode):
    image = photograph(300, 200, mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.tile(np.arange(300, dtype=np.float32) * 0.85, (200, 1)).astype(np.uint8)))
    media = file_of(image, "png")
    smaller = shrinking.shrunk(media, 50)
    assert smaller.startswith(b"\x89PNG") and augment.size(smaller) == (50, 75)
    assert np.abs(pixels(smaller, (15, 10)) - pixels(media, (15, 10))).mean() < 3


def test_what_is_no_larger_or_has_more_bits_stays():
    assert shrinking.shrunk(file_of(photograph(100, 80), "jpeg"), 80) is None
    deep = Image.fromarray(np.arange(90_000, dtype=np.uint16).reshape(300, 300) % 60_000)
    assert shrinking.shrunk(file_of(deep, "png"), 80) is None
    array = io.BytesIO()
    np.save(array, np.zeros((300, 300, 3), dtype=np.uint8))
    assert shrinking.shrunk(array.getvalue(), 80) is None


def test_a_folder_becomes_shards_of_smaller_images(tmp_path, capsys):
    source = tmp_path / "photos"
    for label, width in (("cat", 640), ("dog", 720), ("dog", 90)):
        (source / label).mkdir(parents=True, exist_ok=True)
        photograph(width, 480 if width > 100 else 64).save(source / label / f"{width}.jpg")
    (source / "dog" / "cut.jpg").write_bytes(file_of(photograph(640, 480), "jpeg")[:2000])
    data_script.main(["pack", str(source), str(tmp_path / "packed"), "shorter_side=96"])
    said = capsys.readouterr().out
    assert "train: 3 image samples in 1 shard" in said and "left out, cannot be read: 1: dog/cut.jpg" in said
    with tarfile.open(tmp_path / "packed/train-000000.tar") as shard:
        names = [name for name in shard.getnames() if name.endswith(".jpg")]
        sizes = [augment.size(shard.extractfile(name).read()) for name in names]
    assert dict(zip(names, sizes, strict=True)) == {
        "cat/640.jpg": (96, 128), "dog/720.jpg": (96, 144), "dog/90.jpg": (64, 90)
    }  # fmt: skip
    config = DataConfig(path=str(tmp_path / "packed"))
    samples = Samples(config, FrontendConfig(image_size=32), split="train", folder=tmp_path)
    assert len(samples) == 3 and samples.column("label").tolist() == ["cat", "dog", "dog"]


def test_what_cannot_shrink_is_one_line(tmp_path):
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound/a.wav").write_bytes(b"RIFF0000WAVE")
    with pytest.raises(ValueError, match=r"shorter_side is of images, and .*sound holds audio"):
        packing.pack(str(tmp_path / "sound"), tmp_path, 10**9, 96)
    photograph(300, 200).save(tmp_path / "a.jpg")
    (tmp_path / "boxes.csv").write_text("file,label,xmin,ymin,xmax,ymax\na.jpg,cell,1,2,30,40\n")
    with pytest.raises(
        ValueError, match=r"columns xmin, ymin, xmax, ymax of .*boxes.csv in pixels of the larger image"
    ):
        packing.pack(str(tmp_path / "boxes.csv"), tmp_path, 10**9, 96)
    for setting in ("shorter_side=-1", "size=0", "size=x"):
        with pytest.raises(ValueError, match=setting.split("=")[0]):
            data_script.main(["pack", str(tmp_path / "a.jpg"), str(tmp_path / "out"), setting])
        assert not (tmp_path / "out").exists()


def test_photographs_are_said_to_decode_slowly():
    frontend = FrontendConfig(image_size=32, patch_size=4)
    assert "pack" not in _sizes(np.array([[1024, 768]]), frontend)[1]
    assert "`d2v data pack SOURCE OUT shorter_side=64`" in _sizes(np.array([[4000, 3000]]), frontend)[1]
