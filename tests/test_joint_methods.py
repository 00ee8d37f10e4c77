"""BYOL, SimSiam, MoCo v3 and Contrastive Clustering against loops over samples.

tests/test_joint_distributed.py has them over processes.
"""

import math

import pytest
import small
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.objectives import byol, clustering, mocov3, simsiam
from d2v.objectives.common.contrastive import cosines, nt_xent
from d2v.objectives.common.multi_view import summary
from d2v.objectives.common.objective import Objective
from d2v.training.collapse import normalised_std

MODULES = {"byol": byol, "simsiam": simsiam, "mocov3": mocov3, "clustering": clustering}
SMALL = {
    "byol": {"hidden_dim": 12, "out_dim": 6},
    "simsiam": {"out_dim": 10, "predictor_dim": 4},
    "mocov3": {"hidden_dim": 12, "out_dim": 6},
    "clustering": {"out_dim": 6, "num_clusters": 3},
}


def objective(name: str, modality: str = "image", **settings) -> Objective:
    """A small one in training mode, the same whenever it is made.

    Its teacher, where there is one, has moved away from the student.
    """
    torch.manual_seed(0)
    module = MODULES[name]
    made = module.build(small.encoder(modality), module.Config(**SMALL[name] | settings))
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made.train()


def pair(modality: str = "image", samples: int = 8) -> list:
    return [small.view(modality, samples, seed) for seed in (0, 1)]


# The slow versions: one sample, one direction, one negative after another, from vectors (B, P) of each view.


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def slow_byol(predictions, targets, config) -> Tensor:
    total = torch.zeros(())
    for a, b in ((0, 1), (1, 0)):
        for i in range(len(targets[0])):
            total = total + (unit(predictions[a][i]) - unit(targets[b][i])).square().sum()
    return total


def slow_simsiam(predictions, targets, config) -> Tensor:
    total = torch.zeros(())
    for a, b in ((0, 1), (1, 0)):
        for i in range(len(targets[0])):
            total = total - 0.5 * (unit(predictions[a][i]) * unit(targets[b][i].detach())).sum()
    return total


def slow_mocov3(queries, keys, config) -> Tensor:
    total, t = torch.zeros(()), config.temperature
    for a, b in ((0, 1), (1, 0)):
        for i in range(len(keys[0])):
            exps = [((unit(queries[a][i]) * unit(key)).sum() / t).exp() for key in keys[b]]
            total = total - 2 * t * (exps[i] / sum(exps)).log()
    return total


def slow_nt_xent(x: Tensor, y: Tensor, t: float) -> Tensor:
    """Its mean over 2N rows."""
    z, n, total = [unit(row) for row in (*x, *y)], len(x), torch.zeros(())
    for i in range(2 * n):
        exps = {k: ((z[i] * z[k]).sum() / t).exp() for k in range(2 * n) if k != i}
        total = total - (exps[(i + n) % (2 * n)] / sum(exps.values())).log()
    return total / (2 * n)


def slow_clustering(rows, logits, config) -> Tensor:
    shares = [torch.stack([row.exp() / row.exp().sum() for row in x]) for x in logits]  # (B, C)
    value = slow_nt_xent(*rows, config.instance_temperature) + slow_nt_xent(
        *(p.T for p in shares), config.cluster_temperature
    )
    for p in shares:
        mean = p.sum(dim=0) / p.sum()
        value = value + math.log(config.num_clusters) + sum(q * q.log() for q in mean)
    return value * len(rows[0])


def slow(made: Objective, views: list) -> Tensor:
    """The loss by the slow versions, from the modules of the objective applied by hand."""
    name, config, student = made.config.name, made.config, made.student
    features = [summary(student["encoder"], view) for view in views]
    if name == "clustering":
        return slow_clustering(
            [student["instance"](x) for x in features], [student["cluster"](x) for x in features], config
        )
    projections = [student["projector"](x) for x in features]
    predictions = [made.predictor(x) for x in projections]
    if name == "simsiam":
        return slow_simsiam(predictions, projections, config)
    with torch.no_grad():
        targets = [made.teacher["projector"](summary(made.teacher["encoder"], view)) for view in views]
    return (slow_byol if name == "byol" else slow_mocov3)(predictions, targets, config)


CASES = [
    ("byol", {}),
    ("simsiam", {}),
    ("simsiam", {"projector_layers": 2}),
    ("mocov3", {}),
    ("mocov3", {"temperature": 1.0, "projector_layers": 2, "predictor_norm": False}),
    ("clustering", {}),
    ("clustering", {"instance_temperature": 0.1, "cluster_temperature": 0.5, "num_clusters": 5}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize(("modality", "samples"), [("image", 8), ("image", 3), ("speech", 4), ("text", 4)])
def test_the_loss_and_its_gradients_are_those_of_a_loop(name, settings, modality, samples):
    fast, made = objective(name, modality, **settings), objective(name, modality, **settings)
    views = pair(modality, samples)
    loss, expected = fast(views), slow(made, views)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5) and int(loss.count) == samples
    assert loss.total.dtype == torch.float32 and all(
        value.ndim == 0 and value.isfinite() for value in loss.metrics.values()
    )
    loss.total.backward()
    expected.backward()
    others = dict(made.named_parameters())
    for parameter_name, parameter in fast.named_parameters():
        other = others[parameter_name].grad
        assert (parameter.grad is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(parameter.grad, other, rtol=1e-3, atol=1e-4, msg=parameter_name)
    trained = {key for key, p in fast.named_parameters() if p.requires_grad}
    assert trained == {key for key, p in fast.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("name", MODULES)
def test_the_views_are_treated_alike(name):
    one, other = objective(name), objective(name)
    assert one(pair()).total.item() == pytest.approx(other(pair()[::-1]).total.item(), rel=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_one_view_or_three_are_an_error(name):
    for number in (1, 3):
        with pytest.raises(ValueError, match=rf"{name} compares 2 views of a sample.*{number}"):
            objective(name)([small.view(seed=seed) for seed in range(number)])


# What the losses are where it is known (facts/ssl_methods.md 0.6).


def test_byol_starts_at_four_and_collapses_to_zero():
    made = objective("byol", hidden_dim=512, out_dim=256)
    loss = made(pair(samples=64))
    assert loss.total.item() / 64 == pytest.approx(4, abs=0.5)
    constant = torch.randn(1, 6).expand(8, 6)
    assert byol.distance(constant, 3 * constant).item() == pytest.approx(0, abs=1e-5)
    made.predictor, made.teacher = nn.Identity(), made.student  # the way to collapse: what does not change is predicted
    nn.init.zeros_(made.student["projector"][1].weight)
    nn.init.ones_(made.student["projector"][1].bias)
    collapsed = made(pair(samples=64))
    assert collapsed.total.item() == pytest.approx(0, abs=1e-3) and collapsed.metrics["target_spread"] < 1e-3


def test_simsiam_starts_at_zero_and_collapses_to_minus_one():
    made = objective("simsiam", out_dim=512, predictor_dim=128)
    loss = made(pair(samples=64))
    assert loss.total.item() / 64 == pytest.approx(0, abs=0.2) and loss.metrics["target_spread"] == pytest.approx(
        1, abs=0.1
    )
    constant = torch.randn(1, 6).expand(8, 6)
    assert (
        simsiam.difference(2 * constant, constant).item() / 8 == pytest.approx(-1, abs=1e-5)
        and normalised_std(constant) < 1e-6
    )


def test_without_the_stop_gradient_simsiam_collapses():
    """A few steps on noise: with it the projections keep their spread, without it they lose it.

    The test of facts/ssl_methods.md 9.
    """
    spread = {}
    for stops in (True, False):
        torch.manual_seed(0)
        body, head = nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
        for _ in range(100):
            x = torch.randn(64, 8)
            a, b = body(x + 0.5 * torch.randn_like(x)), body(x + 0.5 * torch.randn_like(x))
            loss = simsiam.difference(head(a), b.detach() if stops else b) + simsiam.difference(
                head(b), a.detach() if stops else a
            )
            optimizer.zero_grad()
            (loss / 128).backward()
            optimizer.step()
        spread[stops] = float(normalised_std(body(torch.randn(256, 8))))
    assert spread[False] < 0.5 * spread[True], spread


def test_mocov3_knows_nothing_at_the_logarithm_of_the_batch():
    made = objective("mocov3", temperature=0.2)
    nn.init.zeros_(made.predictor[0].weight)  # no query
    loss = made(pair(samples=16))
    assert loss.total.item() / 16 == pytest.approx(2 * 0.2 * 2 * math.log(16), rel=1e-5)
    assert loss.metrics["accuracy"] == pytest.approx(1 / 16) and loss.metrics["prediction_spread"] == 0


def test_clustering_starts_where_it_should_and_one_cluster_for_all_costs_its_entropy():
    rows = torch.randn(2, 256, 128)
    assert nt_xent(*rows, 0.5).item() == pytest.approx(math.log(511) + 0.016, abs=0.02)
    made = objective("clustering", num_clusters=10)
    metrics = made(pair(samples=32)).metrics
    assert (
        metrics["cluster_loss"].item() == pytest.approx(math.log(19), abs=0.1) and 0 <= metrics["missing_entropy"] < 0.5
    )
    balanced = torch.full((20, 10), 1e-4).log().scatter(1, torch.arange(20).view(-1, 1) % 10, 0.0).log_softmax(dim=1)
    assert clustering.missing_entropy(balanced).item() == pytest.approx(0, abs=1e-5)
    last = made.student["cluster"][-1]
    with torch.no_grad():
        last.bias[3] += 300
    collapsed = made(pair(samples=32))
    assert collapsed.metrics["missing_entropy"].item() == pytest.approx(2 * math.log(10), rel=1e-5)
    assert collapsed.metrics["confidence"] == 1
    collapsed.total.backward()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)  # of empty clusters too


# lightly's losses, where the definition is the same.


def test_cosine_losses_are_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    negative = lightly.NegativeCosineSimilarity()
    a, b = torch.randn(8, 6), torch.randn(8, 6)
    torch.testing.assert_close(simsiam.difference(a, b) / 8, negative(a, b))
    torch.testing.assert_close(byol.distance(a, b) / 8, 2 + 2 * negative(a, b))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_lightlys_and_the_loops(temperature):
    lightly = pytest.importorskip("lightly.loss")
    x, y = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    loss = nt_xent(x, y, temperature)
    for other in (lightly.NTXentLoss(temperature)(x, y), slow_nt_xent(x, y, temperature)):
        torch.testing.assert_close(loss, other)
        for found, expected in zip(
            torch.autograd.grad(loss, [x, y], retain_graph=True), torch.autograd.grad(other, [x, y]), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# Precision, rates, settings.


@pytest.mark.parametrize("name", MODULES)
def test_under_bf16_the_loss_and_the_statistics_are_float32(name):
    made, exact = objective(name), objective(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = made(pair())
    expected = exact(pair())
    assert loss.total.dtype == torch.float32 and {value.dtype for value in loss.metrics.values()} == {torch.float32}
    assert loss.total.item() == pytest.approx(expected.total.item(), abs=0.05 * 8)
    loss.total.backward()
    buffers = [(key, value) for key, value in made.named_buffers() if "running" in key]
    assert {value.dtype for _, value in buffers} <= {torch.float32}
    for key, value in buffers:
        torch.testing.assert_close(value, exact.get_buffer(key), rtol=0.05, atol=0.05)


def test_cosines_are_not_rounded_under_autocast():
    x, y = torch.randn(4, 6), torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosines(F.normalize(x, dim=1), F.normalize(y, dim=1))
    assert found.dtype == torch.float32 and found.shape == (4, 5)
    torch.testing.assert_close(found, torch.stack([torch.stack([(unit(a) * unit(b)).sum() for b in y]) for a in x]))


def test_teachers_follow_half_a_cosine_and_the_predictor_is_not_averaged():
    for name, start in (("byol", 0.996), ("mocov3", 0.99)):
        made = MODULES[name].build(small.encoder(), MODULES[name].Config(**SMALL[name]))
        assert [made.ema_decay(step, 100) for step in (0, 50, 100)] == pytest.approx([start, (1 + start) / 2, 1.0])
        assert set(made.teacher) == {"encoder", "projector"} and made.predictor is not None
        tensors = zip(made.student.parameters(), made.teacher.parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in tensors)


def test_methods_without_a_teacher_have_none():
    for name in ("simsiam", "clustering"):
        assert len(objective(name).teacher) == 0 and objective(name).ema_decay(3, 10) == 1
    assert objective("simsiam").constant_rate == ("predictor",) and objective("clustering").constant_rate == ()


def test_the_patch_projection_of_mocov3_stays_where_the_config_says_so():
    made = objective("mocov3", freeze=["frontends.image.patch_embed"])
    made(pair()).total.backward()
    still = {name for name, p in made.student["encoder"].named_parameters() if not p.requires_grad}
    assert still == {f"frontends.image.{name}" for name in ("patch_embed.weight", "patch_embed.bias", "mask_token")}
    assert all(made.student["encoder"].get_parameter(name).grad is None for name in still)
    with pytest.raises(ValueError, match=r"no parameter of the encoder begins with 'frontends.image.patch_embed'"):
        objective("mocov3", "text", freeze=["frontends.image.patch_embed"])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clustering", {"num_clusters": 1}, "objective.num_clusters is 1; it must be at least 2"),
        (
            "clustering",
            {"cluster_temperature": 0.0},
            "objective.cluster_temperature is 0.0; it must be a positive number",
        ),
        ("clustering", {"instance_temperature": -1.0}, "objective.instance_temperature is -1.0"),
        ("clustering", {"out_dim": 0}, "objective.out_dim is 0; it must be at least 1"),
        ("mocov3", {"temperature": 0.0}, "objective.temperature is 0.0"),
        ("mocov3", {"ema_decay": 1.5}, "objective.ema_decay is 1.5"),
        ("mocov3", {"projector_layers": 0}, "objective.projector_layers is 0"),
        ("simsiam", {"predictor_dim": 0}, "objective.predictor_dim is 0"),
        ("byol", {"hidden_dim": 0}, "objective.hidden_dim is 0"),
        ("byol", {"ema_decay": -0.1}, "objective.ema_decay is -0.1"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        MODULES[name].Config(**settings)
