"""SpidR (arXiv 2512.20308): DinoSR, each of whose heads reads the student's own layer, the teacher's counterpart.

B samples, T tokens, D width, L layers, n hidden tokens in all.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from d2v.models.encoder import D2vModel, hidden_at
from d2v.objectives import dinosr
from d2v.objectives.common.codebooks import CodebookSettings
from d2v.objectives.common.objective import freeze
from d2v.settings import of_teacher, setting
from d2v.types import View


@dataclass
class Config(CodebookSettings):
    """DinoSR's targets and codebooks, and a teacher that slows down by itself; the published values of speech."""

    name: str = setting("spidr", "Which method.")
    freeze_share: float = setting(
        0.5, "When the frozen parts stop: a share of train.steps.", above=0, most=1, only={"frozen": True}
    )
    ema_decay: float = of_teacher(0.999, "The teacher's at the start; 1 never updates it.", least=0, most=1)
    ema_steps: int = of_teacher(20000, "Steps in which what the decay lacks of 1 falls by a factor of e.", least=1)


class SpidR(dinosr.DinoSR):
    """As DinoSR; what lies behind the last layer that is read is not trained."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError as DinoSR; blocks that may be left out of a step, whose heads would have nothing to read."""
        trunk = encoder.trunk.config
        if trunk.drops_layers:
            raise ValueError(
                f"spidr reads every layer of the student, and model.trunk.layer_drop is {trunk.layer_drop}: set it to 0"
            )
        unread = ["trunk.final_norm"] if trunk.final_norm else []
        if config.layers == "ffn" and not trunk.pre_norm and trunk.depth:
            unread.append(f"trunk.blocks.{trunk.depth - 1}.norm2")
        freeze(unread, encoder)
        super().__init__(encoder, config)

    def sources(self, view: View, tokens: Tensor) -> list[Tensor]:
        """What each head reads: its layer of the student at hidden tokens, L of (n, D), from where the teacher's is."""
        assert view.mask is not None
        return self.student["encoder"](
            view, view.mask, tokens=tokens, layers=self.config.layers, first=self.first, only=hidden_at(view.mask)
        ).layers

    def ema_decay(self, step: int, steps: int) -> float:
        """1 - (1 - ema_decay) exp(-step / ema_steps), and 1 where that lacks less than 1e-7."""
        config = self.config
        assert isinstance(config, Config)
        lack = (1 - config.ema_decay) * math.exp(-step / config.ema_steps)
        return 1 - lack if lack >= 1e-7 else 1.0


def build(encoder: D2vModel, config: Config) -> SpidR:
    """The objective around an encoder."""
    return SpidR(encoder, config)
