"""One small encoder of image, speech and text, for tests of what each has for itself."""

from typing import Any

import small
import torch

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel

OWN = {"own_norms": True, "own_ffn_from": 2}
POST = {"depth": 2, "dim": small.DIM, "num_heads": 2, "mlp_dim": 32, "init_std": 0.2}
PRE = POST | {"pre_norm": True, "layer_scale": 0.5, "input_norm": False, "final_norm": True, "qkv_bias": "qv"}


def encoder(*modalities: str, **trunk: Any) -> D2vModel:
    """Of these modalities, or all; the same whenever it is made, as a new one is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        frontends = {name: small.FRONTENDS[name] for name in modalities or small.FRONTENDS}
        return D2vModel(D2vConfig(frontends=frontends, trunk=POST | trunk)).eval()


def trained(model: torch.nn.Module) -> Any:
    """The same with other weights everywhere, so that no two parts of it are alike."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model
