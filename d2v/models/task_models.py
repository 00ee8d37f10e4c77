"""Task models: an encoder and a head, by transformers' names; an export of pretraining loads into them with a new head.

B samples, T content tokens, D width, C labels, V letters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import initialization
from transformers.initialization import guard_torch_init_functions
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel, D2vPreTrainedModel, build_config
from d2v.models.heads import ACTIVATIONS, ClassificationHead, mean_of_tokens
from d2v.models.losses import ctc, supervised
from d2v.settings import check_values, setting
from d2v.types import Features, View

POOLINGS = ("mean", "first", "class")


@dataclass
class ClassifierConfig:
    """What the head of a classifier reads and how it is built."""

    pooling: str = setting(
        "mean",
        "mean: of the content tokens; first: the first of them (<s> of a sentence); class: the class token.",
        among=POOLINGS,
    )
    pooled_norm: bool = setting(True, "A norm of what was pooled, in place of the trunk's final norm (fc_norm).")
    dense_dim: int = setting(0, "Width of a linear layer before the last; 0: there is none.", least=0, limit=1_000_000)
    activation: str = setting("tanh", "What follows that layer.", among=tuple(ACTIVATIONS), only={"dense_dim": True})
    dropout: float = setting(0.0, "Before each linear layer.", least=0, below=1)
    init_scale: float = setting(
        1.0, "Of the last layer's weights, N(0, 0.02) before; BEiT: 0.001.", least=0, limit=1000
    )
    mask_noise: float = setting(
        0.0,
        "Above 0: what is hidden is N(0, mask_noise) instead of a mask token or zero (data2vec 2.0: 0.01).",
        least=0,
        limit=1000,
        only={"data.mask_prob": True},
    )

    def __post_init__(self):
        """ValueError: an unknown choice or a number outside its bounds."""
        check_values(self, "task")


@dataclass
class CTCConfig:
    """The head on every token, and which of its letters is the blank."""

    blank: int = setting(0, "The letter that is the blank.", least=0, limit=1_000_000)
    # at 0, as published, a frequent letter may take the blank's part for long
    blank_bias: float = setting(0.0, "Where a new head's bias of the blank starts.", least=-1000, limit=1000)
    dropout: float = setting(0.0, "Before the linear layer.", least=0, below=1)
    mask_noise: float = setting(
        0.0,
        "Above 0: what is hidden is N(0, mask_noise) instead of a mask token or zero (data2vec 2.0: 0.01).",
        least=0,
        limit=1000,
        only={"data.mask_prob": True},
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_values(self, "task")


class TaskModel(D2vPreTrainedModel):
    """What the task models share: the encoder, the task's settings, inputs and outputs by Hugging Face's names, and how
    a view that hides something is read."""

    # A Trainer then asks for the mean of a batch: it would count labels, which are letters where the loss counts clips.
    accepts_loss_kwargs = False
    answers_tokens: ClassVar[bool] = False  # one by one, so that what is long can be read in windows
    task_class: ClassVar[type]
    output_class: ClassVar[type]

    def __init__(self, config: D2vConfig):
        """ValueError: as D2vModel; a task setting that this model does not have."""
        super().__init__(config)
        self.task: Any = build_config(self.task_class, config.task, "task")
        config.task = vars(self.task).copy()
        self.encoder = D2vModel(config)
        self.main_input_name = self.encoder.main_input_name

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As D2vModel does; what `from_pretrained` has loaded stays."""
        self.encoder.initialize_weights()
        with guard_torch_init_functions():
            self.init_head()

    def init_head(self) -> None:
        """Fills the weights of a new head."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        view: View | Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits of a view, or of raw inputs by Hugging Face's names, and the loss where there are labels.

        The names of the inputs that modalities here have are spelt out for programs that read the signature (Trainer
        drops columns that are not in it); `inputs` are those of others. Labels: see `loss`. ValueError: inputs that no
        frontend takes.
        """
        inputs |= {"pixel_values": pixel_values, "input_values": input_values, "input_ids": input_ids}
        view = self.encoder.view(view, **inputs, attention_mask=attention_mask)
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        logits, features = self.predict(view, **asked)
        labels = view.labels if labels is None else labels
        loss = None if labels is None else torch.div(*self.loss(logits, labels, view.padding))
        return self.output_class(
            loss=loss, logits=logits, hidden_states=features.hidden_states, attentions=features.attentions
        )

    def predict(self, view: View, **asked: Any) -> tuple[Tensor, Features]:
        """Logits of a view, and the features that they were read from; `asked`: as for D2vModel."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss of logits and labels."""
        raise NotImplementedError

    def learn(self, view: View) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss of a labelled view."""
        assert view.labels is not None
        return self.loss(self(view._replace(labels=None)).logits, view.labels, view.padding)

    def answers(self, view: View) -> list[np.ndarray]:
        """What is predicted for each sample of a view: logits (C,), or (T, V) of its own tokens."""
        logits = self(view).logits.float().cpu()
        if logits.ndim > 2 and view.padding is not None:
            return [one[~padding].numpy() for one, padding in zip(logits, view.padding.cpu(), strict=True)]
        return list(logits.numpy())

    def encode(self, view: View, *, first: bool = False, **asked: Any) -> Features:
        """Features of a view; what its mask hides stays in the sequence, as the mask token, zeros or noise, and hidden
        channels are zero.

        `first`: of the first content token alone, (B, D), for which the last block need not compute its second half for
        the others. `asked`: as for D2vModel.
        """
        x = self.encoder.embed(view)  # (B, T, D)
        if view.mask is not None:
            hidden, channels = view.mask.hidden, view.mask.channels  # (B, T), (B, D)
            if self.task.mask_noise:
                x = torch.where(hidden[..., None], torch.randn_like(x) * self.task.mask_noise, x)
            else:
                x = self.encoder.frontend(view.modality).hide(x, hidden, **view.inputs)
            x = x if channels is None else x.masked_fill(channels[:, None], 0)
        only = torch.arange(len(x), device=x.device) * x.shape[1] if first else None  # (B,)
        return self.encoder(view, tokens=x, only=only, return_dict=True, **asked)


class Classifier(TaskModel):
    """One prediction a sample: encode, pool, classify."""

    task_class = ClassifierConfig
    # fc_norm takes its place
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"trunk\.final_norm\."]

    def __init__(self, config: D2vConfig):
        """ValueError: as TaskModel; a class token to be read where there is none."""
        task = build_config(self.task_class, config.task, "task")
        if task.pooled_norm:
            config.trunk = {**config.trunk, "final_norm": False}
        super().__init__(config)
        without = [name for name in config.frontends if self.encoder.frontend(name).extra() is None]
        if task.pooling == "class" and without:
            raise ValueError(
                f"task.pooling is 'class', but the frontend of {without[0]} has no class token; it may be mean, first"
            )
        trunk = self.encoder.trunk.config
        self.head = ClassificationHead(
            trunk.dim,
            config.num_labels,  # type: ignore[arg-type]
            norm_eps=trunk.norm_eps if task.pooled_norm else None,
            dense_dim=task.dense_dim,
            activation=task.activation,
            dropout=task.dropout,
        )
        self.has_units = config.has_units
        self.post_init()

    def init_head(self) -> None:
        """N(0, 0.02), the last layer's scaled by task.init_scale."""
        self.head.init_weights(self.task.init_scale)

    def predict(self, view: View, **asked: Any) -> tuple[Tensor, Features]:
        """Logits (B, C), or numbers in the units of their labels."""
        every = any(asked.values()) or self.config.output_hidden_states  # states of all tokens
        features = self.encode(view, first=self.task.pooling == "first" and not every, **asked)
        predicted = self.head(self.pooled(features, view.padding))
        if self.has_units:
            predicted = predicted.float() * self.config.label_std + self.config.label_mean
        return predicted, features

    def pooled(self, features: Features, padding: Tensor | None) -> Tensor:
        """What the head reads, (B, D)."""
        if self.task.pooling == "mean":
            return mean_of_tokens(features.x, padding)
        if self.task.pooling == "class":
            return cast(Tensor, features.extra)[:, 0]
        return features.x if features.x.ndim == 2 else features.x[:, 0]

    def loss(self, logits: Tensor, labels: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss (losses.supervised) of config.problem_type, which is inferred from num_labels and
        the labels where it is None; of numbers with units in standard deviations of these."""
        if self.has_units:
            logits, labels = ((x.float() - self.config.label_mean) / self.config.label_std for x in (logits, labels))
        return supervised(logits, labels, self.config.problem_type or self._inferred(labels))

    def _inferred(self, labels: Tensor) -> str:
        if self.config.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


class D2vForImageClassification(Classifier):
    """A class for each image, or numbers."""

    output_class = ImageClassifierOutput


class D2vForSequenceClassification(Classifier):
    """A class for each text, pair of texts or utterance, or numbers."""

    output_class = SequenceClassifierOutput


class D2vForCTC(TaskModel):
    """A letter, or the blank, for each token: encode, classify."""

    task_class = CTCConfig
    answers_tokens = True
    output_class = CausalLMOutput

    def __init__(self, config: D2vConfig):
        """ValueError: as TaskModel; a blank that is no letter; tokens that lie in a grid."""
        super().__init__(config)
        if all(self.encoder.frontend(name).grid is not None for name in config.frontends):
            raise ValueError(f"letters are of a sequence; the tokens of {', '.join(config.frontends)} lie in a grid")
        if self.task.blank >= config.num_labels:
            raise ValueError(f"task.blank is {self.task.blank}; there are {config.num_labels} letters, counted from 0")
        letters: Any = config.num_labels
        self.head = ClassificationHead(self.encoder.trunk.config.dim, letters, dropout=self.task.dropout)
        self.post_init()

    def init_head(self) -> None:
        """Xavier's uniform, as in wav2vec 2.0's reference, and zero but for the blank's bias."""
        self.head.init_weights(scale=None)
        start = torch.zeros_like(self.head.out.bias)
        start[self.task.blank] = self.task.blank_bias
        initialization.copy_(self.head.out.bias, start)

    def predict(self, view: View, **asked: Any) -> tuple[Tensor, Features]:
        """Logits (B, T, V); in padding all is blank."""
        features = self.encode(view, **asked)
        logits = self.head(features.x)  # (B, T, V)
        if view.padding is not None:
            others = torch.arange(logits.shape[-1], device=logits.device) != self.task.blank  # (V,)
            logits = logits.masked_fill(view.padding[..., None] & others, torch.finfo(logits.dtype).min)
        return logits, features

    def loss(self, logits: Tensor, labels: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss (losses.ctc) of labels (B, L), token ids and then -100: per sequence."""
        num_tokens = torch.full((len(logits),), logits.shape[1], device=logits.device)  # (B,)
        if padding is not None:
            num_tokens = (~padding).sum(dim=1)
        return ctc(logits, num_tokens, labels, self.task.blank)
