"""Settings of images whose objects have boxes."""

from dataclasses import dataclass

from d2v.modalities.common import labels
from d2v.modalities.common.checks import check_ranges
from d2v.modalities.image.config import FilesConfig
from d2v.settings import setting

AUTO, TABLE, VOC, COCO = "auto", "table", "voc", "coco"


@dataclass
class DetectionConfig(FilesConfig, labels.SplitConfig):
    """Where images are and the boxes of their objects; `split` is the one to train on."""

    boxes: str = setting(
        AUTO,
        "table: columns file, xmin, ymin, xmax, ymax and that of data.label, a row a box; voc: XML beside images or "
        "in Annotations/; coco: JSON; auto: the first of these that data.path has.",
        among=(AUTO, TABLE, VOC, COCO),
    )
    scale_jitter: list[float] = setting(
        [0.8, 1.25],
        "Least and greatest size of a training image, where 1 is that which just fits; what lies outside is cut off.",
        above=0,
        limit=100,
        count=2,
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense, or two settings that contradict one another."""
        super().__post_init__()
        check_ranges(self, "scale_jitter")
        self.check_splits()
