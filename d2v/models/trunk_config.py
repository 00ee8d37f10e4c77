"""The settings of a trunk: its shape, norms, dropouts, initial weights, and what of it each modality has for itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from d2v.settings import check_values, setting


def has_prenet(objective: str) -> bool:
    """Whether a method knows of blocks that give no targets: 2.0, and those of other packages may."""
    return objective == "data2vec2" or "." in str(objective)


BLOCKS = {"depth": True}  # what blocks alone read


@dataclass
class TrunkConfig:
    """The Transformer's shape, norms, dropouts and initial weights."""

    depth: int = setting(12, "Blocks.", least=0, limit=200)
    dim: int = setting(768, "Width of the tokens.", least=1, limit=1_000_000)
    num_heads: int = setting(12, "Heads of attention; they divide the width.", least=1, limit=10_000, only=BLOCKS)
    mlp_dim: int = setting(3072, "Width of the MLP's hidden layer.", least=1, limit=10_000_000, only=BLOCKS)
    pre_norm: bool = setting(
        False, "Norms stand before attention and MLP (images), not after their residual sums.", only=BLOCKS
    )
    layer_scale: float = setting(
        0.0, "Where the scales of a block's outputs start; 0: there are none.", least=0, limit=1000, only=BLOCKS
    )
    qkv_bias: str = setting("qkv", "Which projections have a bias.", among=("qkv", "qv", "none"), only=BLOCKS)
    norm_eps: float = setting(1e-5, "Added to the variance in every norm.", above=0, limit=1)
    input_norm: bool = setting(True, "A norm (and dropout) before the first block.")
    final_norm: bool = setting(False, "A norm after the last block.")
    prenet_depth: int = setting(
        0,
        "How many of the first blocks give no targets (data2vec 2.0).",
        least=0,
        limit=1000,
        only=[{"depth": True, "objective.name": has_prenet}, {"prenet_layer_drop": lambda chance: chance is not None}],
    )
    dropout: float = setting(0.0, "Of the outputs of attention and MLP, and before the first block.", least=0, below=1)
    input_dropout: float | None = setting(None, "Before the first block; null: dropout.", least=0, below=1)
    attention_dropout: float = setting(0.0, "Of the attention's weights.", least=0, below=1, only=BLOCKS)
    activation_dropout: float = setting(0.0, "Of the MLP's hidden layer.", least=0, below=1, only=BLOCKS)
    drop_path: float = setting(
        0.0,
        "How often the last block's residuals are left out of a row; it grows linearly from 0.",
        least=0,
        below=1,
        only=BLOCKS,
    )
    layer_drop: float = setting(0.0, "How often a block is left out of a step.", least=0, below=1, only=BLOCKS)
    prenet_layer_drop: float | None = setting(
        None, "How often a block of the prenet is; null: layer_drop.", least=0, below=1, only={"prenet_depth": True}
    )
    init: str = setting(
        "normal",
        "normal: N(0, init_std); depth_scaled: cut at one std, outputs divided by sqrt(2 * layer) (BEiT); "
        "xavier: uniform, by both widths of a matrix (MAE); default: torch's.",
        among=("normal", "depth_scaled", "xavier", "default"),
        only=BLOCKS,
    )
    init_std: float = setting(
        0.02,
        "Standard deviation of the initial weights.",
        least=0,
        limit=1000,
        only=[
            {"depth": True, "init": ("normal", "depth_scaled")},
            {"objective.head_init": "trunk"},
            {"objective.decoder.head_init": "trunk"},
        ],
    )
    own_norms: bool = setting(
        False,
        "Of several modalities, each has its own norms in every block, and before and after the blocks.",
        only=[{"depth": True}, {"input_norm": True}, {"final_norm": True}],
    )
    own_ffn_from: int = setting(
        0,
        "Of several modalities, each has its own MLP in this block, the first being 1, and in those above; 0: in none.",
        least=0,
        limit=1000,
    )

    def __post_init__(self):
        """ValueError: a value outside its bounds, widths that do not divide, or settings that contradict each other."""
        check_values(self, "model.trunk")
        if self.depth and self.dim % self.num_heads:  # without blocks there are no heads
            raise ValueError(f"model.trunk.dim {self.dim} is not a multiple of model.trunk.num_heads {self.num_heads}")
        if self.prenet_depth > self.depth:
            raise ValueError(
                f"model.trunk.prenet_depth is {self.prenet_depth}; "
                f"the trunk has {self.depth} blocks (model.trunk.depth)"
            )
        if self.own_ffn_from > self.depth:
            raise ValueError(
                f"model.trunk.own_ffn_from is {self.own_ffn_from}; "
                f"the trunk has {self.depth} blocks (model.trunk.depth)"
            )
        if self.layer_scale and not self.pre_norm:
            raise ValueError(
                f"model.trunk.layer_scale is {self.layer_scale}, "
                "but only pre-norm blocks have one (model.trunk.pre_norm=true)"
            )

    @property
    def drops_layers(self) -> bool:
        """Whether a step may leave blocks without gradients."""
        return max(self.layer_drop, self.prenet_layer_drop or 0) > 0

    @property
    def shared(self) -> "TrunkConfig":
        """The same trunk, in which no modality has anything for itself."""
        return replace(self, own_norms=False, own_ffn_from=0)

    def check_modalities(self, names: Sequence[str]) -> None:
        """ValueError: a modality would have something for itself, and there are no others."""
        for name in ("own_norms", "own_ffn_from"):
            value = getattr(self, name)
            if value and len(names) < 2:
                raise ValueError(
                    f"model.trunk.{name} is {str(value).lower()}, and nothing reads it: it is of models of several "
                    f"modalities, and this one reads {', '.join(names) or 'one'}: leave it out"
                )
