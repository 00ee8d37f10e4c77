"""The class token as the features of an evaluation; means over tokens are in test_evaluation.py."""

import numpy as np
import pytest
import torch

from d2v.evaluation.features import pooled_features
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.types import View

PICTURES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pictures:
    """Samples that are PICTURES."""

    lengths = None

    def __len__(self) -> int:
        return len(PICTURES)

    def view(self, indices) -> View:
        return View("image", {"pixel_values": PICTURES[indices]})


SAMPLES = Pictures()


def encoder(class_token: bool) -> D2vModel:
    image = {"image_size": 8, "patch_size": 4, "relative_bias": False, "class_token": class_token}
    return D2vModel(D2vConfig({"image": image}, {"depth": 1, "dim": 8, "num_heads": 2, "mlp_dim": 16})).eval()


def test_the_class_token_is_a_layer_of_its_own():
    model = encoder(class_token=True)
    got = pooled_features(model, SAMPLES, 2, indices=np.array([4, 0, 3]), layer="class")
    expected = [model(pixel_values=PICTURES[i][None]).extra[0, -1].detach().numpy() for i in (4, 0, 3)]
    assert list(got) == ["class"]
    np.testing.assert_allclose(got["class"], expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_class_token_says_so():
    with pytest.raises(ValueError, match=r"evaluate.layer is 'class'; this encoder has no class token"):
        pooled_features(encoder(class_token=False), SAMPLES, 2, indices=np.array([0]), layer="class")
