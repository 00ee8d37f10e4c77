"""d2v: multimodal self-distillation; this package knows tokens and never knows what an image, a waveform or a word is.

Importing it makes transformers' Auto classes know its models, so that `import d2v` is all that a program needs
before `from_pretrained`.
"""

# isort: off
from d2v import starting as starting  # the first: for the time that all others take

# isort: on
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSequenceClassification,
)

from d2v.functions import convert, embed, evaluate, finetune, predict, pretrain
from d2v.models.alignment import D2vForAlignment
from d2v.models.configuration import D2vConfig
from d2v.models.detection import D2vForObjectDetection
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForCTC, D2vForImageClassification, D2vForSequenceClassification

__version__ = "0.1.0"
__all__ = [
    "D2vConfig",
    "D2vForAlignment",
    "D2vForCTC",
    "D2vForImageClassification",
    "D2vForObjectDetection",
    "D2vForSequenceClassification",
    "D2vModel",
    "convert",
    "embed",
    "evaluate",
    "finetune",
    "predict",
    "pretrain",
]

AutoConfig.register("d2v", D2vConfig)
AutoModel.register(D2vConfig, D2vModel)
AutoModelForImageClassification.register(D2vConfig, D2vForImageClassification)
AutoModelForObjectDetection.register(D2vConfig, D2vForObjectDetection)
AutoModelForCTC.register(D2vConfig, D2vForCTC)
AutoModelForSequenceClassification.register(D2vConfig, D2vForSequenceClassification)
AutoModelForAudioClassification.register(D2vConfig, D2vForSequenceClassification)
