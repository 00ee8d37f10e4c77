"""DinoSR (arXiv 2305.10005): at hidden tokens, predict the code that each layer of the teacher is nearest to.

Codes are running means of what is assigned to them.

B samples, T tokens, D width, L layers, C codes, n hidden tokens in all.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.transformer import taken
from d2v.objectives.common.codebooks import Codebooks, CodebookSettings
from d2v.objectives.common.codes import code_use
from d2v.objectives.common.masked import masked_view, share_of
from d2v.objectives.common.objective import Objective, check_prefixes, within
from d2v.objectives.common.regression import channel_std, normed
from d2v.settings import of_teacher, setting
from d2v.training.schedules import linear_decay
from d2v.types import Loss, View


@dataclass
class Config(CodebookSettings):
    """Targets, codebooks and the teacher's decay; the published values of speech."""

    name: str = setting("dinosr", "Which method.")
    ema_decay: float = of_teacher(
        0.999,
        "The teacher's at the start, from which it goes to ema_end_decay.",
        least=0,
        most=1,
        only={"ema_anneal_steps": True},
    )
    ema_end_decay: float = of_teacher(0.9999, "The teacher's after ema_anneal_steps, until it stops.", least=0, most=1)
    ema_anneal_steps: int = of_teacher(30000, "Steps from the first decay to the last, linearly.", least=0)


class DinoSR(Objective):
    """Student and teacher encoders, a codebook of each of the teacher's last layers, and a linear head for each."""

    def __init__(self, encoder: D2vModel, config: CodebookSettings):
        """ValueError: more layers than the trunk has, or a part that does not exist."""
        super().__init__(tuple(f"encoder.{part}" for part in config.shared), encoder=encoder)
        trunk = encoder.trunk.config
        if config.top_k > trunk.depth:
            raise ValueError(f"objective.top_k is {config.top_k}; the trunk has {trunk.depth} layers")
        check_prefixes(config.frozen, encoder)
        self.config = config
        self.first = trunk.depth - config.top_k
        self.codebooks = Codebooks(config.top_k, config.num_codes, trunk.dim, config.code_decay)
        self.heads = nn.ModuleList(nn.Linear(trunk.dim, config.num_codes) for _ in range(config.top_k))

    def check(self, views: list[View]) -> None:
        """ValueError: nothing is hidden, several views, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def begin_step(self, step: int, steps: int) -> None:
        """No target is noted yet."""
        super().begin_step(step, steps)
        self.codebooks.begin_step()

    def forward(self, views: list[View]) -> Loss:
        """Cross entropy of the codes of hidden tokens, its mean over layers, summed over tokens; ValueError as in
        `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        hidden = mask.hidden  # (B, T)
        tokens = self.student["encoder"].embed(view)  # (B, T, D)
        targets = self.targets(view, tokens.detach(), hidden_at(mask))  # L of (n, D)
        sources = self.sources(view, tokens)  # L of (n, D)
        losses, chosen, right = [], [], []
        for book, (target, source) in enumerate(zip(targets, sources, strict=True)):
            codes = self.codebooks.nearest(book, target)  # (n,)
            logits = self.heads[book](source).float()  # (n, C)
            losses.append(F.cross_entropy(logits, codes, reduction="sum"))
            right.append((logits.argmax(dim=1) == codes).float().sum())
            chosen.append(codes)
        for book, (target, codes) in enumerate(zip(targets, chosen, strict=True)):
            self.codebooks.gather(book, target, codes)  # the next step's
        count = hidden.sum()
        metrics = {
            **code_use(chosen, self.config.num_codes),
            "accuracy": torch.stack(right).mean() / count.clamp(min=1),
            "target_std": channel_std(targets[-1]),
            "hidden_share": share_of(hidden, view.padding),
        }
        return Loss(torch.stack(losses).mean(), count, metrics)

    @torch.no_grad()
    def targets(self, view: View, tokens: Tensor, where: Tensor) -> list[Tensor]:
        """The teacher's last layers on the whole view, normed, of the tokens `where` (n,): L of (n, D)."""
        fed = tokens if self.config.feed_tokens else None
        layers = self.teacher["encoder"](view, tokens=fed, layers=self.config.layers, first=self.first).layers
        return [taken(normed(layer, self.config.layer_norms, view.padding), where) for layer in layers]

    def sources(self, view: View, tokens: Tensor) -> list[Tensor]:
        """What each head reads: the student's output at hidden tokens, L times (n, D)."""
        assert view.mask is not None
        x = self.student["encoder"](view, view.mask, tokens=tokens, only=hidden_at(view.mask)).x
        return [x] * len(self.heads)

    def adjust_gradients(self, step: int, steps: int) -> None:
        """Codes move by what the whole step has noted; frozen parts have no gradient, and so no weight decay either."""
        self.codebooks.update()
        if step >= self.config.freeze_share * steps:
            for name, parameter in self.student["encoder"].named_parameters():
                if any(within(name, prefix) for prefix in self.config.frozen):
                    parameter.grad = None

    def of_length(self, step: int, steps: int) -> tuple[float, ...]:
        """Whether parts are frozen, too."""
        return (*super().of_length(step, steps), step >= self.config.freeze_share * steps)

    def ema_decay(self, step: int, steps: int) -> float:
        """Linear from ema_decay to ema_end_decay over ema_anneal_steps; 1 after freeze_share."""
        config = self.config
        assert isinstance(config, Config)
        if step > config.freeze_share * steps:
            return 1.0
        return linear_decay(step, config.ema_decay, config.ema_end_decay, config.ema_anneal_steps)

    def update_teacher(self, decay: float, taken: Tensor | None = None) -> None:
        """As Objective, until the decay is 1: then what the teacher shares stays as well, as published."""
        if decay < 1:
            super().update_teacher(decay, taken)


def build(encoder: D2vModel, config: Config) -> DinoSR:
    """The objective around an encoder."""
    return DinoSR(encoder, config)
