"""The rival: the same step as a competent user builds it on transformers' Data2VecVision, -Audio and -TextModel.

Attention is sdpa (their default). What differs from d2v comes with the stock classes: query, key and value are three
products; the speech teacher runs its own convolutions, because the class takes waveforms only; the bias table is
interpolated in every layer.
B samples, T tokens, D width, n hidden tokens.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
)
from work import SETTINGS, Batch, Size


def encoder(modality: str, size: Size) -> nn.Module:
    """A fresh stock model."""
    s = SETTINGS[modality]
    common = {
        "hidden_size": size.dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.dim,
        "layer_norm_eps": s.norm_eps,
    }
    if modality == "speech":
        config = Data2VecAudioConfig(
            **common,
            hidden_dropout=s.dropout,
            attention_dropout=s.attention_dropout,
            activation_dropout=0.0,
            layerdrop=0.0,
            conv_dim=[size.conv_dim] * 7,
        )
        return Data2VecAudioModel(config)
    common |= {"hidden_dropout_prob": s.dropout, "attention_probs_dropout_prob": s.attention_dropout}
    if modality == "text":
        config = Data2VecTextConfig(**common, vocab_size=size.vocab, max_position_embeddings=514, type_vocab_size=1)
        return Data2VecTextModel(config, add_pooling_layer=False)
    config = Data2VecVisionConfig(
        **common,
        image_size=size.image,
        patch_size=size.patch,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=1e-4,
        drop_path_rate=s.drop_path,
        use_mean_pooling=False,
    )
    return Data2VecVisionModel(config)


class Peer(nn.Module):
    """Student, teacher, predictor and the loss."""

    def __init__(self, modality: str, size: Size):
        super().__init__()
        self.modality, self.settings, self.mask_id = modality, SETTINGS[modality], size.vocab - 1
        self.student = encoder(modality, size)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        dim = size.dim
        one = self.settings.head_layers == 1
        self.predictor = (
            nn.Linear(dim, dim) if one else nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        )
        self.layers: list[Tensor] = []
        for block in [] if modality == "image" else self._blocks():
            ffn = block.feed_forward if modality == "speech" else block.output.dense
            ffn.register_forward_hook(lambda module, args, output: self.layers.append(output))

    def _blocks(self) -> nn.ModuleList:
        encoder = self.teacher.encoder
        return encoder.layers if self.modality == "speech" else encoder.layer

    def train(self, mode: bool = True) -> "Peer":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """The summed loss over hidden tokens and their count."""
        target = self.target(batch)[batch.hidden]  # (n, D)
        prediction = self.predictor(self.student_output(batch)[batch.hidden])  # (n, D)
        if self.settings.loss_beta == 0:
            loss = F.mse_loss(prediction, target, reduction="sum") / target.shape[-1] ** 0.5
        else:
            loss = F.smooth_l1_loss(prediction, target, reduction="sum", beta=self.settings.loss_beta)
            loss = loss / target.shape[-1] if self.modality == "image" else loss
        return loss, len(target)

    def student_output(self, batch: Batch) -> Tensor:
        """(B, T, D) of the masked input."""
        if self.modality == "image":
            return self.student(batch.inputs, bool_masked_pos=batch.hidden).last_hidden_state[:, 1:]
        if self.modality == "speech":
            return self.student(batch.inputs, mask_time_indices=batch.hidden).last_hidden_state
        return self.student(batch.inputs.masked_fill(batch.hidden, self.mask_id)).last_hidden_state

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """(B, T, D): block outputs of images, FFN outputs of speech and text; normalised, averaged."""
        self.layers.clear()
        if self.modality == "image":
            hidden_states = self.teacher(batch.inputs, output_hidden_states=True).hidden_states
            normed = [F.layer_norm(x[:, 1:], x.shape[-1:]) for x in hidden_states[1:]]
            return F.layer_norm(sum(normed) / len(normed), normed[0].shape[-1:])
        self.teacher(batch.inputs)
        if self.modality == "speech":
            normed = [F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in self.layers]
        else:
            normed = [F.layer_norm(x, x.shape[-1:]) for x in self.layers]
        self.layers.clear()
        return sum(normed) / len(normed)

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """Exponential moving average of every parameter."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - decay)


class PeerStep:
    """One optimizer step; `fused` asks for AdamW's fused kernel, which is not its default on the CPU."""

    def __init__(self, modality: str, size: Size, fused: bool):
        self.model, self.settings = Peer(modality, size).train(), SETTINGS[modality]
        s = self.settings
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, s.lr, s.betas, s.eps, s.weight_decay, fused=True if fused else None
        )

    def __call__(self, batch: Batch) -> float:
        """Everything but the teacher's update; the loss per hidden token."""
        loss, count = self.model(batch)
        loss = loss / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def update_teacher(self) -> None:
        self.model.update_teacher(self.settings.ema_decay)
