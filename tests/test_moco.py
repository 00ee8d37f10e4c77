"""MoCo, MoCHi, instance discrimination and SimCLR as they are trained: against slow steps, and by two processes as by one."""

import copy
import math
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from d2v import D2vConfig, D2vModel
from d2v.contrast import unit
from d2v.joint import Joint, embedding, seeded
from d2v.objectives import instdisc, mochi, moco, simclr
from d2v.types import Loss, View

BATCH, STEPS, SAMPLES = 8, 5, 20
HEAD = {"hidden_dim": 16, "out_dim": 8}
QUEUE = {**HEAD, "queue_size": 32}
MIXED = {**QUEUE, "hardest": 6, "mixed": 5, "mixed_with_query": 3, "start_step": 2}
BANK = {"num_samples": SAMPLES, "out_dim": 8}

# what is trained here: the config, and whether the encoder has batch norms
CASES = {
    "moco": (moco.Config(**QUEUE), False),
    "moco_v1_grouped": (moco.Config(**{**QUEUE, "hidden_dim": 0}, temperature=0.07, norm_groups=4), True),
    "moco_symmetric_grouped": (moco.Config(**QUEUE, symmetric=True, norm_groups=2), True),
    "moco_one_group": (moco.Config(**QUEUE), True),
    "mochi": (mochi.Config(**MIXED), False),
    "mochi_symmetric_grouped": (mochi.Config(**MIXED, symmetric=True, norm_groups=2), True),
    "instdisc": (instdisc.Config(**BANK, negatives=7), False),
    "instdisc_sampled_softmax": (instdisc.Config(**BANK, loss="softmax", negatives=7), False),
    "instdisc_softmax": (instdisc.Config(**BANK, loss="softmax", negatives=0, temperature=0.1), True),
    "simclr": (simclr.Config(out_dim=8, temperature=0.5), False),
    "simclr_norms": (simclr.Config(num_layers=3, hidden_dim=12, out_dim=8, temperature=0.5), True),
}
BUILD = {"moco": moco.build, "mochi": mochi.build, "instdisc": instdisc.build, "simclr": simclr.build}


class TokenNorm(nn.Module):
    """A batch norm over all tokens, (B, T, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def encoder(norms: bool = False) -> D2vModel:
    """Of features that differ: those of a class token at its small init hardly do, and a batch norm would blow up the rounding."""
    frontend = {"image_size": 8, "patch_size": 4, "class_token": not norms, "init": "xavier"}
    made = D2vModel(D2vConfig(frontends={"image": frontend}, trunk={"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "init": "default"}))
    if norms:
        made.trunk.final_norm = TokenNorm(16)
    return made


def objective(name: str) -> Joint:
    torch.manual_seed(1)
    config, norms = CASES[name]
    return BUILD[config.name](encoder(norms), config).train()


def batch(step: int, rank: int = 0, world: int = 1) -> list[View]:
    """This process's rows of two views."""
    generator = torch.Generator().manual_seed(100 + step)
    indices = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    common = torch.randn(BATCH, 3, 8, 8, generator=generator)
    pixels = [common + 0.5 * torch.randn(BATCH, 3, 8, 8, generator=generator) for _ in range(2)]
    return [View("image", {"pixel_values": x[rank::world]}, indices=indices[rank::world]) for x in pixels]


def one_step(model: Joint, step: int, rank: int = 0, world: int = 1) -> tuple[float, dict[str, Tensor], Loss]:
    """The loop's: the mean loss of all samples, gradients of all processes, plain SGD, the teacher."""
    model.begin_step(step, STEPS)
    views = batch(step, rank, world)
    model.check(views)
    loss = model(views)
    loss.total.backward()
    sums = torch.stack([loss.total.detach(), loss.count.float()])
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    for value in (sums, *(p.grad for p in trained.values())):
        if world > 1:
            dist.all_reduce(value)
    gradients = {key: p.grad / sums[1] for key, p in trained.items()}
    with torch.no_grad():
        for key, p in trained.items():
            p -= 0.01 * gradients[key]
    model.zero_grad()
    if len(model.teacher):
        model.update_teacher(model.ema_decay(step + 1, STEPS))
    return float(sums[0] / sums[1]), gradients, loss


def trained(name: str, rank: int = 0, world: int = 1) -> dict:
    model = objective(name)
    model.check_batch(BATCH, world)
    steps = [one_step(model, step, rank, world) for step in range(4)]
    return {"losses": [loss for loss, *_ in steps], "gradients": [gradients for _, gradients, _ in steps], "state": model.state_dict()}


def two_processes(folder: Path) -> None:
    """What each of two does: every case, and the wrong settings that only several processes can have."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save({name: trained(name, rank, 2) for name in CASES}, folder / f"{rank}.pt")
    with pytest.raises(ValueError, match="norm_groups is 3; it must be 1 or a multiple of the number of processes, 2"):
        moco.build(encoder(True), moco.Config(**{**QUEUE, "queue_size": 24}, norm_groups=3)).check_batch(12, 2)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("pair")
    assert tiny.wait(tiny.start(two_processes, folder, world=2)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, pair):
    one = trained(name)
    for two in (found[name] for found in pair):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for found, expected in zip(two["gradients"], one["gradients"], strict=True):
            assert found.keys() == expected.keys()
            for key in expected:
                largest = float(expected[key].abs().max())  # what rounding is relative to; where a norm makes it 0, to others
                torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-3 * largest + 1e-5, msg=lambda text, key=key: f"{key}: {text}")
        assert two["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            torch.testing.assert_close(two["state"][key], value, rtol=1e-3, atol=2e-5, msg=key)
    remembered = [key for key in one["state"] if key.startswith(("queue.", "bank.", "normaliser"))]
    assert remembered or name.startswith("simclr")
    assert all(torch.equal(pair[0][name]["state"][key], pair[1][name]["state"][key]) for key in remembered)
    fresh = objective(name).state_dict()
    assert all(not torch.equal(one["state"][key], fresh[key]) for key in remembered if key not in ("queue.position", "normaliser"))


@pytest.mark.parametrize("name", CASES)
def test_what_is_trained_and_shown(name):
    _, gradients, loss = one_step(objective(name), 3)
    assert loss.total.dtype == torch.float32 and loss.total.ndim == 0 and int(loss.count) == BATCH
    assert all(value.ndim == 0 and value.isfinite() for value in loss.metrics.values())
    assert {"accuracy", "negatives", "alignment", "uniformity", "target_spread", "prediction_spread"} == loss.metrics.keys()
    still = [key for key, gradient in gradients.items() if not gradient.any()]
    assert [key for key in still if not key.endswith("attention.qkv.bias")] == [], "no gradient"
    assert not any("mask_token" in key for key in gradients)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_exact(name):
    """What is drawn is of the step; what is remembered is in the state dict."""
    whole, resumed = objective(name), None
    for step in range(5):
        if step == 3:
            resumed = objective(name)
            resumed.load_state_dict(whole.state_dict())
            torch.manual_seed(99)
            torch.rand(7)
        expected = one_step(whole, step)
    assert resumed is not None
    one_step(resumed, 3)
    found = one_step(resumed, 4)
    assert found[0] == expected[0] and all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


# MoCo


def slow_moco(model: moco.MoCo, views: list[View]) -> tuple[Tensor, Tensor]:
    """The published order: queries, keys, logits with the queue as it was, then the queue; one direction after another."""
    config, queue = model.config, model.queue.rows.clone()
    queries = [F.normalize(embedding(model.student, view), dim=1) for view in views]
    with torch.no_grad():
        keys = [F.normalize(embedding(model.teacher, view), dim=1) for view in views]
    total = torch.tensor(0.0)
    for one, other in [(0, 1), (1, 0)] if config.symmetric else [(0, 1)]:
        for i in range(BATCH):
            logits = torch.stack([queries[one][i] @ keys[other][i], *(queries[one][i] @ row for row in queue)]) / config.temperature
            total = total - logits.log_softmax(dim=0)[0]
    return total, torch.cat(keys if config.symmetric else keys[1:])


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_is_the_slow_step_and_the_queue_holds_the_last_keys(symmetric, hidden):
    torch.manual_seed(1)
    model = moco.build(encoder(), moco.Config(**{**QUEUE, "hidden_dim": hidden}, symmetric=symmetric, temperature=0.3)).train()
    linear = [module for module in model.student["projector"] if isinstance(module, nn.Linear)]
    assert [tuple(module.weight.shape) for module in linear] == ([(8, 16)] if hidden == 0 else [(16, 16), (8, 16)])
    assert all(module.bias is not None for module in linear)
    pushed: list[Tensor] = []
    for step in range(5):  # past the queue's end
        views = batch(step)
        expected, keys = slow_moco(model, views)
        wanted = torch.autograd.grad(expected, linear[0].weight)[0]
        _, gradients, loss = one_step(model, step)
        torch.testing.assert_close(loss.total.detach(), expected.detach())
        torch.testing.assert_close(gradients["student.projector.0.weight"], wanted / BATCH, rtol=1e-4, atol=1e-6)
        pushed.append(keys)
        recent = torch.cat(pushed)[-32:]
        torch.testing.assert_close(model.queue.rows.roll(-int(model.queue.position), 0)[-len(recent) :], recent)
        assert float(loss.metrics["negatives"]) == 32


def test_collapsed_moco_is_the_log_of_its_candidates():
    """Once constant keys have filled the queue."""
    model = objective("moco")
    with torch.no_grad():
        for side in (model.student, model.teacher):
            side["projector"][-1].weight.zero_()
    for step in range(4):
        model(batch(step))
    loss = model(batch(4))
    assert float(loss.total.detach() / loss.count) == pytest.approx(math.log(33), rel=1e-5)


def test_keys_come_back_in_the_order_of_the_batch():
    """In evaluation every key is its sample's own, whoever stood beside it; in training the groups are drawn anew at every step."""
    model, view = objective("moco_v1_grouped"), batch(0)[1]
    plain = unit(embedding(model.teacher.eval(), view))
    for step in range(3):
        order = moco.shuffled(view, seeded(step, plain.device))[1]
        assert sorted(order.tolist()) == list(range(BATCH)) and not torch.equal(order, torch.arange(BATCH))
        torch.testing.assert_close(model.keys(view, seeded(step, plain.device)), plain)
    model.train()
    keys = [model.keys(view, seeded(step, plain.device)) for step in (0, 0, 1)]
    assert torch.equal(keys[0], keys[1]) and not torch.allclose(keys[0], keys[2])


def test_groups_of_batch_norm_are_gpus_of_their_own():
    """Four groups of the shuffled keys, one after another, with ordinary batch norm."""
    model, view = objective("moco_v1_grouped"), batch(0)[1]
    found = model.keys(view, seeded(3, torch.device("cpu")))
    plain = moco.build(encoder(True), moco.Config(**{**QUEUE, "hidden_dim": 0})).train()
    plain.load_state_dict(objective("moco_v1_grouped").state_dict())
    order = moco.shuffled(view, seeded(3, torch.device("cpu")))[1]
    for group in range(4):
        rows = order[group::4]
        part = View("image", {"pixel_values": view.inputs["pixel_values"][rows]})
        torch.testing.assert_close(found[rows], unit(embedding(plain.teacher, part)))


# MoCHi


def slow_mix(model: mochi.MoCHi, query: Tensor, queue: Tensor, generator: torch.Generator) -> Tensor:
    """One negative after another, with the same draws."""
    config, size = model.config, (BATCH, model.config.mixed + model.config.mixed_with_query)
    first, second = (torch.randint(config.hardest, size, generator=generator) for _ in range(2))
    weight, made = torch.rand(size, generator=generator), torch.empty(*size, queue.shape[1])
    for i in range(BATCH):
        hardest = sorted(range(len(queue)), key=lambda row: -float(query[i] @ queue[row]))[: config.hardest]
        for j in range(size[1]):
            one = queue[hardest[first[i, j]]]
            if j < config.mixed:
                mixed = (1 - weight[i, j]) * one + weight[i, j] * queue[hardest[second[i, j]]]
            else:
                mixed = (1 - weight[i, j] / 2) * one + weight[i, j] / 2 * query[i]
            made[i, j] = mixed / mixed.norm()
    return made


def test_mochi_mixes_the_hardest_negatives_of_each_query():
    model = objective("mochi")
    query, queue = unit(torch.randn(BATCH, 8)), model.queue.rows.clone()
    key = unit(torch.randn(BATCH, 8))
    model.begin_step(2, STEPS)
    mixed = slow_mix(model, query, queue, seeded(2, queue.device))
    expected, query = query.clone().requires_grad_(), query.clone().requires_grad_()
    slow = torch.cat([(expected * key).sum(dim=1, keepdim=True), expected @ queue.T, (expected.unsqueeze(1) * mixed).sum(dim=2)], dim=1)
    found, labels = model.compare(query, key, queue, seeded(2, queue.device))
    assert found.shape == (BATCH, 1 + 32 + 5 + 3) and not labels.any()
    torch.testing.assert_close(found, slow)
    wanted, got = (torch.autograd.grad(F.cross_entropy(x / 0.2, labels), leaf)[0] for x, leaf in ((slow, expected), (found, query)))
    torch.testing.assert_close(got, wanted)  # none through the mixtures
    assert (slow[:, 33 + 5 :] >= slow[:, 1:33].topk(6).values[:, -1:] - 1e-6).all(), "the query's share makes a negative harder, not easier"


def test_mochi_is_moco_before_its_first_step_and_remembers_no_mixture():
    mixing, plain = objective("mochi"), objective("moco")
    for step in range(4):
        found, expected = one_step(mixing, step), one_step(plain, step)
        assert (found[0] == expected[0]) == (step < 2)
        assert float(found[2].metrics["negatives"]) == (32 if step < 2 else 40)
        if step < 3:  # step 2's keys are of a teacher that has not seen a mixture
            assert torch.equal(mixing.queue.rows, plain.queue.rows)
    with pytest.raises(ValueError, match=r"start_step is 2; train.steps is 2: nothing would ever be mixed"):
        mixing.begin_step(0, 2)


# Instance discrimination


@pytest.mark.parametrize("name", ["instdisc", "instdisc_sampled_softmax", "instdisc_softmax"])
def test_instdisc_is_the_slow_step(name):
    model = objective(name)
    config = model.config
    z = 0.0
    for step in range(3):
        model.begin_step(step, STEPS)
        view, bank = batch(step)[0], model.bank.rows.clone()
        twin = copy.deepcopy(model.student)
        features = unit(embedding(twin, view))
        drawn = torch.randint(SAMPLES, (BATCH, config.negatives), generator=seeded(step, bank.device)).tolist()
        everyone = list(range(SAMPLES))
        scores = []
        for i, own in enumerate(view.indices.tolist()):
            candidates = [own, *drawn[i]] if config.negatives else [own, *everyone[:own], *everyone[own + 1 :]]
            scores.append(torch.stack([features[i] @ bank[j] / config.temperature for j in candidates]))
        if config.loss == "nce":
            z = z or float(torch.stack(scores).detach().exp().mean()) * SAMPLES
            p, share = torch.stack(scores).double().exp() / z, config.negatives / SAMPLES
            slow = -(p[:, 0] / (p[:, 0] + share + 1e-7)).log().sum() - (share / (p[:, 1:] + share + 1e-7)).log().sum()
        else:
            slow = -sum(row.log_softmax(dim=0)[0] for row in scores)
        wanted = torch.autograd.grad(slow, twin["projector"][0].weight)[0] / BATCH
        _, gradients, loss = one_step(model, step)
        assert float(loss.total.detach()) == pytest.approx(float(slow.detach()), rel=1e-4) and float(model.normaliser) == pytest.approx(z, rel=1e-5)
        torch.testing.assert_close(gradients["student.projector.0.weight"], wanted, rtol=1e-3, atol=1e-5)
        for i, own in enumerate(view.indices.tolist()):
            torch.testing.assert_close(model.bank.rows[own], unit((bank[own] + features[i].detach())[None] / 2)[0], rtol=1e-4, atol=1e-5)
        rest = [number for number in everyone if number not in view.indices.tolist()]
        assert torch.equal(model.bank.rows[rest], bank[rest])
        counted = [len([j for j in row if j != own]) for row, own in zip(drawn, view.indices.tolist(), strict=True)]
        assert float(loss.metrics["negatives"]) == pytest.approx(sum(counted) / BATCH if config.negatives else SAMPLES - 1)


def test_instdisc_says_what_it_misses():
    with pytest.raises(ValueError, match=r"objective.num_samples is 0.*number of usable samples"):
        instdisc.build(encoder(), instdisc.Config())
    model, (view, _) = objective("instdisc"), batch(0)
    with pytest.raises(ValueError, match="do not number them"):
        model.check([view._replace(indices=None)])
    with pytest.raises(ValueError, match="num_samples is 20, but a sample's number is 20"):
        model.check([view._replace(indices=torch.arange(13, 21))])
    model.check([view])


# SimCLR


def test_simclr_is_the_mean_over_all_views():
    model, views = objective("simclr"), batch(0)
    assert not len(model.teacher) and model.encoders[0] is model.encoders[1]
    last = model.student["projector"][-1]
    assert last.bias is None and last.weight.shape == (8,)
    features = torch.cat([model.student["encoder"](view).extra[:, 0] for view in views])
    z = features @ model.student["projector"][0].weight.T
    z = ((z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt()).relu()  # both views together; a fresh norm's weights are 1 and 0
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


# Wrong settings


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (moco.Config, {"temperature": 0.0}, "objective.temperature is 0.0; it must be above 0"),
        (moco.Config, {"temperature": math.nan}, "objective.temperature is nan"),
        (moco.Config, {"queue_size": 0}, "objective.queue_size is 0"),
        (moco.Config, {"ema_decay": 1.5}, "objective.ema_decay is 1.5"),
        (moco.Config, {"hidden_dim": -1}, "objective.hidden_dim is -1; it must be 0 or more"),
        (moco.Config, {"norm_groups": 0}, "objective.norm_groups is 0"),
        (mochi.Config, {"hardest": 0}, "objective.hardest is 0; it must be between 1 and objective.queue_size, 65536"),
        (mochi.Config, {"queue_size": 512}, "objective.hardest is 1024; it must be between 1 and objective.queue_size, 512"),
        (mochi.Config, {"mixed": -1}, "objective.mixed is -1"),
        (mochi.Config, {"mixed": 0, "mixed_with_query": 0}, "both 0"),
        (mochi.Config, {"temperature": -1.0}, "objective.temperature is -1.0"),
        (instdisc.Config, {"loss": "ce"}, "objective.loss is 'ce'; it may be nce, softmax"),
        (instdisc.Config, {"negatives": 0}, "objective.negatives is 0; nce needs 1 or more"),
        (instdisc.Config, {"negatives": -1, "loss": "softmax"}, "objective.negatives is -1"),
        (instdisc.Config, {"bank_momentum": 1.0}, "objective.bank_momentum is 1.0"),
        (simclr.Config, {"temperature": 0.0}, "objective.temperature is 0.0"),
        (simclr.Config, {"num_layers": 0}, "objective.num_layers is 0"),
        (simclr.Config, {"num_layers": 1, "hidden_dim": 4}, "objective.hidden_dim is 4; a head of one layer"),
        (simclr.Config, {"hidden_dim": -4}, "objective.hidden_dim is -4; it must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense(config, wrong, message):
    config()
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_batches_and_views_that_do_not_fit():
    plain, symmetric, grouped = (objective(name) for name in ("moco", "moco_symmetric_grouped", "moco_v1_grouped"))
    plain.check_batch(32, 1)
    for size in (12, 64):
        with pytest.raises(ValueError, match=f"queue_size is 32; it must be a multiple of the {size} keys of a step"):
            plain.check_batch(size, 1)
    with pytest.raises(ValueError, match=r"multiple of the 64 keys of a step \(train.batch_size 32\)"):
        symmetric.check_batch(32, 1)
    with pytest.raises(ValueError, match=r"train.batch_size is 4, of which batch norm takes 4 equal groups"):
        grouped.check_batch(4, 1)
    with pytest.raises(ValueError, match=r"train.accumulate is 2"):
        plain.check_batch(8, 2)
    with pytest.raises(ValueError, match="norm_groups is 2; this encoder has no batch norm"):
        moco.build(encoder(), moco.Config(**QUEUE, norm_groups=2))
    views = batch(0)
    padded = [view._replace(padding=torch.zeros(BATCH, 4, dtype=torch.bool)) for view in views]
    plain.check(padded)
    with pytest.raises(ValueError, match="norm_groups is 4, which needs samples of one length"):
        grouped.check(padded)
    for model in (plain, objective("simclr")):
        with pytest.raises(ValueError, match=r"compares 2 views of a sample; data.views makes 1"):
            model.check(views[:1])
