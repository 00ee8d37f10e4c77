"""SimCLR against a slow step."""

import math

import pytest
import torch
from contrasting import BATCH, batch, objective

from d2v.objectives.common.contrastive import unit


def test_simclr_is_the_mean_over_all_views():
    model, views = objective("simclr"), batch(0)
    assert not len(model.teacher) and model.encoders[0] is model.encoders[1]
    last = model.student["projector"][-1]
    assert last.bias is None and last.weight.shape == (8,)
    features = torch.cat([model.student["encoder"](view).extra[:, 0] for view in views])
    z = features @ model.student["projector"][0].weight.T
    z = (
        (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt()
    ).relu()  # both views together; a fresh norm's weights are 1 and 0
    z = z @ model.student["projector"][3].weight.T
    z = unit((z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt())
    terms = []
    for i in range(2 * BATCH):
        logits = {j: z[i] @ z[j] / 0.5 for j in range(2 * BATCH) if j != i}
        terms.append(torch.stack(list(logits.values())).logsumexp(dim=0) - logits[(i + BATCH) % (2 * BATCH)])
    loss = model(views)
    torch.testing.assert_close(loss.total / loss.count, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    assert float(loss.metrics["negatives"]) == 2 * BATCH - 2


def test_collapsed_simclr_is_the_log_of_its_candidates():
    model = objective("simclr")
    with torch.no_grad():
        model.student["projector"][-2].weight.zero_()
    loss = model(batch(0))
    assert float(loss.total.detach() / loss.count) == pytest.approx(math.log(2 * BATCH - 1), rel=1e-5)
