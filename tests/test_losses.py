"""Losses against loops over tokens and channels, gradients included."""

import pytest
import torch

from d2v.objectives.common.regression import SCALES, regression_loss


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 4.0])
def test_regression(beta, scale):
    prediction, target = torch.randn(5, 9, requires_grad=True), torch.randn(5, 9) * 2
    total, gradient = 0.0, torch.zeros(5, 9)
    weight = {"sqrt": 1 / 3, "mean": 1 / 9, "sum": 1.0}[scale]
    for i in range(5):
        for d in range(9):
            error = float(prediction[i, d].detach() - target[i, d])
            if beta == 0:
                value, slope = error**2, 2 * error
            elif abs(error) < beta:
                value, slope = 0.5 * error**2 / beta, error / beta
            else:
                value, slope = abs(error) - 0.5 * beta, 1.0 if error > 0 else -1.0
            total += weight * value
            gradient[i, d] = weight * slope
    loss = regression_loss(prediction, target, beta, scale)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, prediction)[0], gradient, rtol=1e-5, atol=1e-6)


def test_sums_are_float32_and_of_nothing_zero():
    loss = regression_loss(torch.ones(4, 8, dtype=torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16), 0.0, "sum")
    assert loss.dtype == torch.float32 and loss == 32
    assert regression_loss(torch.zeros(0, 8), torch.zeros(0, 8), 2.0, "sqrt") == 0
