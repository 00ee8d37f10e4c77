"""Image files -> checked samples: the samples of a split, their evaluation view, what prepares and describes them.

B samples of a batch, C channels, S image size.
"""

import functools
import io
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor

from d2v import cache
from d2v.modalities.common import feeding, sources, tables
from d2v.modalities.common.data_report import Report, UnreadableError
from d2v.modalities.common.sampling import Chosen, Usable
from d2v.modalities.common.scans import NONE, scan
from d2v.modalities.image import augment, masks, patterns, views
from d2v.modalities.image.config import DataConfig, FilesConfig, ReadConfig, check_reading
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.protocols import NoSplitError, Rows
from d2v.types import View

log = logging.getLogger(__name__)
REMARKS = {  # by the bit that a row's look has set
    1: "of one colour",
    2: "of several pages or frames (the first is read)",
    4: "of more than 8 bits in several bands (the upper 8 are read)",
    8: "TIFFs of four bands (the fourth is read as transparency, on white)",
}
SOME, THINNED = 8, 2**16  # images, and about how many of their pixels, that are looked at
FAR, FLAT = 3, 0.25  # deviations from the mean that is said, and the share of the deviation, from which on it is told
MUCH_LARGER = 4  # times the side that is read
PHOTOGRAPH = 2_000_000  # pixels, from which decoding takes as long as a small model's step


def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int) -> None:
    """ValueError: settings that contradict one another."""
    views.check(data, frontend)
    check_reading(data, frontend)
    masks.check(data, frontend)


@functools.cache  # a run, its health checks and what scores it open it each
def demo(split: str) -> datasets.Dataset:
    """Scikit-learn's digits as PNG bytes, 1,397 for train and 400 for test. ValueError: another split."""
    from sklearn.datasets import load_digits  # only the demo needs it

    order = np.random.default_rng(0).permutation(1797)
    splits = {"train": order[:1397], "test": order[1397:]}
    if split not in splits:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits train, test", ["train", "test"])
    pixels, digits = load_digits(return_X_y=True)  # (1797, 64) in 0 to 16, (1797,)
    cells = [{"bytes": _png(pixels[row].reshape(8, 8)), "path": None} for row in splits[split]]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=[str(n) for n in range(10)])}
    )
    return datasets.Dataset.from_dict({"image": cells, "label": digits[splits[split]].tolist()}, features=features)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(file, "png")
    return file.getvalue()


DEMOS = {"demo": (demo, ("train", "test")), "demo-patterns": (patterns.dataset, patterns.PICTURES)}  # by data.path


class Samples:
    """The usable images of one split, checked once."""

    raw_name = "pixels 8x8"
    lengths = None
    cut = None

    @staticmethod
    def open(config: ReadConfig, split: str) -> datasets.Dataset:
        """The rows of a split, not read yet. ValueError: there are none."""
        if isinstance(config.path, str) and config.path in DEMOS:
            dataset, splits = DEMOS[config.path]
            return sources.with_splits(dataset(split), splits)
        return sources.open_source(config.path, split, sources.IMAGES, "image")

    def __init__(
        self,
        config: ReadConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: Rows | None = None,
    ):
        """`rows`: these only, of which the headers are checked.

        ValueError: the source cannot be opened, or too many of its images are bad.
        """
        self.config, self.frontend = config, frontend
        dataset, first = (self.open(config, split), 0) if rows is None else rows[:2]
        in_passing = rows is not None and not rows.whole
        self._decodes = config.check_files and not in_passing
        self._dataset = dataset
        self._media = dataset.select_columns([tables.media_column(dataset, "image")])
        self.classes = tables.classes(dataset, config.label) if config.label in dataset.column_names else None
        ids = tables.identifiers(dataset, config.path, split, first)
        self.report = Report(
            "image", found=len(dataset), usable=0, notes=sources.notes(dataset), splits=sources.splits(dataset)
        )
        self._rows, self.origin = self._scan(ids, None if in_passing else [config.path, split])
        self.ids = Chosen(ids, self._rows)
        self.report.usable = len(self._rows)
        if config.label in dataset.column_names and not getattr(config, "regression", False):
            self.report.count_classes(self.column(config.label), self.classes, config.label)
        if not in_passing:
            self.report.check(config.max_bad_share, config.path)
            self.report.notes += self._far_from_its_statistics() if config.check_files else []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """(n,) which rows of the source they are."""
        return np.asarray(self._rows)

    def files(self) -> np.ndarray | None:
        """(n,) numbers that are equal where samples are of the same file; None: they are of none."""
        return tables.same_files(self._media, self.rows)

    def image(self, index: int) -> Any:
        """The decoded image of a usable sample: PIL, or a tensor (C, H, W). UnreadableError: it is damaged."""
        try:
            return augment.decode(self._source(int(self._rows[index])), self.frontend.channels)
        except augment.UNREADABLE as error:
            raise UnreadableError(_reason(error)) from error

    def column(self, name: str) -> np.ndarray:
        """Values of a data column per usable sample, None for missing ones. ValueError: there is none of that name."""
        return tables.cells(self._dataset, name, self.rows)

    def view(self, indices: Iterable[int]) -> View:
        """Resized, centre-cropped, normalised, unmasked; pixel_values (B, C, S, S).

        UnreadableError: an image can no longer be read.
        """
        size, crop = self.frontend.image_size, self.config.eval_crop
        images = [augment.evaluation(self.image(index), size, crop) for index in indices]
        return View(MODALITY, {"pixel_values": augment.normalise(images, self.config.mean, self.config.std)})

    def masks(self, indices: Iterable[int], folder: str) -> np.ndarray:
        """Class numbers of the pixels of the evaluation view, (B, S, S) uint8, from PNGs named as images in `folder`.

        ValueError: there is none, it has no class numbers, or it is of another size than the image; an image that lies
        outside of data.path, which no name in `folder` is of.
        """
        size, crop = self.frontend.image_size, self.config.eval_crop
        masks = []
        for index in indices:
            name = Path(self.ids[index])
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(
                    f"evaluate.masks {folder}: the image {name} has no place in it, as it lies outside of data.path "
                    f"{self.config.path}; give the folder that holds all images, or a table there"
                )
            place = (Path(folder) / name).with_suffix(".png")
            source = self._source(int(self._rows[index]))
            if isinstance(source, Path) and place.exists() and place.samefile(source):
                raise ValueError(f"evaluate.masks {folder}: {place} is the image itself, and no mask of it")
            mask = augment.decode_mask(place, augment.size(self.image(index)))
            masks.append(np.asarray(augment.evaluation(mask, size, crop, augment.NEAREST)))
        return np.stack(masks)

    def raw(self, indices: Iterable[int]) -> np.ndarray:
        """Pixels of the evaluation view averaged to 8 x 8, (B, C * 64)."""
        return augment.pool(self.view(indices).inputs["pixel_values"]).numpy()

    def picture(self, index: int) -> Image.Image:
        """The image as it is read, of many channels the first in grey. ValueError: it can no longer be read."""
        try:
            return augment.shown(self.image(index))
        except augment.UNREADABLE as error:
            raise ValueError(_reason(error)) from error

    def _source(self, row: int) -> bytes | Path:
        (cell,) = self._media[row].values()
        return augment.encoded(cell)

    def _look(self, row: int) -> tuple[int, int, int] | str:
        """Height, width and what is said of a usable row, or why it cannot be read."""
        try:
            source = self._source(row)
            outline = augment.outline(source)
            constant = self._decodes and augment.one_colour(augment.decode(source, self.frontend.channels))
        except augment.UNREADABLE as error:
            return _reason(error)
        flags = (constant, outline.more, outline.cut, outline.fourth and self.frontend.channels in (1, 3))
        said = sum(bit for bit, flag in zip(REMARKS, flags, strict=True) if flag)
        return outline.height, outline.width, said

    def _far_from_its_statistics(self) -> list[str]:
        """What is said where a few images are nearly one colour once they are normalised, or far from 0."""
        pixels = []
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), SOME)).astype(int)).tolist():
            try:
                image = augment.stacked([self.image(index)])[0].flatten(1)  # (C, any)
            except UnreadableError:
                continue
            image = image[:, :: max(1, image.shape[1] // THINNED)]
            pixels.append(image / 255 if image.dtype == torch.uint8 else image)
        if not pixels:
            return []
        found = torch.cat(pixels, dim=1)
        mean, std = found.mean(1), found.std(1, correction=0)  # (C,)
        said_mean, said_std = torch.tensor(self.config.mean), torch.tensor(self.config.std)
        if len(said_mean) not in (1, len(mean)) or len(said_std) not in (1, len(std)) or std.min() == 0:
            return []
        if ((mean - said_mean) / said_std).abs().max() <= FAR and (std / said_std).max() >= FLAT:
            return []
        means, deviations = (_listed(values) for values in (mean, std))
        return [
            f"pixels of {len(pixels)} images have mean {means} and deviation {deviations}; data.mean is "
            f"{_listed(said_mean)}, data.std {_listed(said_std)}: what is trained anew learns more with "
            f"data.mean={means} data.std={deviations}"
        ]

    def _scan(self, ids: Sequence[str], data: list[Any] | None) -> tuple[Usable, str | None]:
        """Which rows are usable, and what changes if their files do; fills the report."""
        report, least = self.report, self.config.min_size
        channels = self.frontend.channels if self._decodes else 0
        settings = data and ["image", len(REMARKS), *data, self._decodes, channels]
        found = scan(self._media, settings, 3, self._look, decodes=self._decodes)
        report.unreadable += [(ids[row], why) for row, why in found.faults.items()]
        height, width, said = found.numbers.T
        small = np.flatnonzero((np.minimum(height, width) < least) & (height != NONE))
        for row in small.tolist():
            why = f"{width[row]} x {height[row]} pixels, data.min_size is {least}"
            report.too_short.append((ids[row], why))
        rows = Usable(len(ids), np.union1d(small, np.flatnonzero(height == NONE)))
        for row in np.setdiff1d(np.flatnonzero(said > 0), rows.others).tolist():
            for bit, remark in REMARKS.items():
                if said[row] & bit:
                    report.remarks.setdefault(remark, []).append(ids[row])
        if len(rows):
            sizes = found.numbers[:, 1::-1]  # width, height
            report.sizes, report.advice = _sizes(np.delete(sizes, rows.others, axis=0), self.frontend)
        return rows, found.digest and cache.digest_of(found.digest, data, rows.others)


def queries(given: Sequence[str], data: ReadConfig, frontend: FrontendConfig, folder: Path) -> Samples:
    """Image files that are no data, as samples in their order; what cannot be read is in the report."""
    rows = datasets.Dataset.from_dict({"file": list(given)})
    return Samples(replace(data, min_size=0), frontend, split=data.split, folder=folder, rows=Rows(rows, 0))


def _listed(values: torch.Tensor) -> str:
    """A value of each channel, or one where they are equal, as settings are written."""
    texts = [f"{value:.3g}" for value in values.tolist()]
    return f"[{','.join(texts if len(set(texts)) > 1 else texts[:1])}]"


def _sizes(found: np.ndarray, frontend: FrontendConfig) -> tuple[str, str]:
    """What is said of widths and heights (n, 2) beside the size that the model reads, and which settings would help."""
    width, height = np.median(found, axis=0).astype(int).tolist()
    size, patch = frontend.image_size, frontend.patch_size
    grid = "" if frontend.backbone else f", in {(size // patch) ** 2} patches of {patch} x {patch}"
    said = f"typical size: {width} x {height} pixels, read at {size} x {size}{grid}"
    times = min(width, height) // size
    if times < MUCH_LARGER:
        return said, ""
    larger = f"images are {times} times as large as that: model.frontends.{MODALITY}.image_size={MUCH_LARGER * size}"
    if frontend.backbone:
        advice = f"{larger} reads more of them, at {MUCH_LARGER**2} times the cost"
    else:
        finer = f"{larger} model.frontends.{MODALITY}.patch_size={MUCH_LARGER * patch}"
        advice = f"{finer} reads more of them, in as many patches"
    if width * height >= PHOTOGRAPH:
        advice += f"; to decode them faster, `d2v data pack SOURCE OUT shorter_side={2 * size}` first"
    return said, advice


def _reason(error: BaseException) -> str:
    said = re.sub(r"<_io\.BytesIO[^>]*>", "of these bytes", str(error))  # whose address is another at each start
    return f"{type(error).__name__}: {said}".splitlines()[0][:200]


def save_preprocessor(folder: Path, samples_folder: Path, data: ReadConfig, frontend: FrontendConfig) -> None:
    """Writes preprocessor_config.json: the evaluation transform, for `AutoImageProcessor.from_pretrained(folder)`.

    Of other than 1 or 3 channels it takes arrays with channels first, unless input_data_format says otherwise.
    """
    array = {} if frontend.channels in (1, 3) else {"input_data_format": "channels_first"}
    ViTImageProcessor(
        size={"shortest_edge": round(frontend.image_size / data.eval_crop)},
        do_center_crop=True,
        crop_size={"height": frontend.image_size, "width": frontend.image_size},
        resample=Image.Resampling.BICUBIC,
        image_mean=list(data.mean),
        image_std=list(data.std),
        do_convert_rgb=frontend.channels == 3,
        crop_pct=data.eval_crop,  # which sizes, that are whole numbers, do not say exactly
        **array,
    ).save_pretrained(folder)


def inherit(data: FilesConfig, source: Path, former: dict | None) -> None:
    """Weights are of pixels as they were scaled and cropped: fills mean, std and eval_crop, where `source` says them.

    ValueError: its preprocessor cannot be read.
    """
    trained = former or feeding.of_run(source, MODALITY) or _of_preprocessor(source, data)
    for name in ("mean", "std"):
        if name in trained and not _same(vars(data)[name], trained[name]):
            setattr(data, name, trained[name])
    if isinstance(data, ReadConfig):  # boxes are of whole images
        data.eval_crop = trained.get("eval_crop", data.eval_crop)


def _same(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two lists, each of one value or one per channel, say the same."""
    count = max(len(first), len(second))
    if not first or not second:
        return False
    return list(first) * (count // len(first)) == list(second) * (count // len(second))


def _of_preprocessor(source: Path, data: FilesConfig) -> dict[str, Any]:
    """What the image processor of an export or of a stock model does, as our settings.

    Says what our evaluation transform does otherwise.
    """
    found = feeding.preprocessor(AutoImageProcessor, source)
    if found is None:
        return {}
    scale = 255 * found.rescale_factor if found.do_rescale else 255  # of our pixels, which lie between 0 and 1
    mean, std = (found.image_mean, found.image_std) if found.do_normalize else ([0.0], [1.0])
    trained: dict[str, Any] = {"mean": [value / scale for value in mean], "std": [value / scale for value in std]}
    if not found.do_resize or not isinstance(data, ReadConfig):
        return trained
    side = found.size.shortest_edge or found.size.height or found.size.max_height  # the last: of detectors
    cut = found.crop_size.height if found.do_center_crop else side
    exact = vars(found).get("crop_pct") or cut / side
    trained["eval_crop"] = data.eval_crop if round(cut / data.eval_crop) == side else min(1.0, exact)
    if found.size.height:
        log.warning("%s squeezes images that are no squares; d2v keeps their middle", source)
    if found.resample != Image.Resampling.BICUBIC:
        log.warning("%s resizes by %s; d2v is bicubic", source, Image.Resampling(found.resample).name.lower())
    return trained
