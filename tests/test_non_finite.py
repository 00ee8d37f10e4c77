"""A step that is not taken moves nothing; one without predictions is said; what is remembered is alike everywhere."""

import json
import time
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from omegaconf import OmegaConf
from tiny import OBJECTIVES

from d2v.objectives.common.multi_view import generator_of_step
from d2v.training.collapse import knn_leave_one_out, knn_votes
from d2v.training.health import HealthCheck
from scripts import finetune_image, pretrain

OPTIMIZERS = {
    "adamw": (),
    "sgd": ("train.optimizer=sgd", "train.betas=[0.9,0.98]", "train.eps=1e-6"),
    "lars": ("train.optimizer=lars", "train.betas=[0.9,0.98]", "train.eps=1e-6"),
}
QUEUES = {"swav": ("objective.queue_size=8", "objective.queue_share=0")}


class Changed:
    """Batches of which some steps (or micro-batches) are changed by a function of their views."""

    def __init__(self, batches, change, steps, part=None):
        self.batches, self.change, self.steps, self.part = batches, change, set(steps), part

    def __call__(self, step, part, parts):
        views, ids = self.batches(step, part, parts)
        if step in self.steps and self.part in (None, part):
            views = self.change(views)
        return views, ids


def poison(value: float, which: int):
    def change(views):
        for tensor in views[which % len(views)].inputs.values():
            tensor[0] = value  # a whole sample: what tiles leave out is not read
        return views

    return change


def state(loop) -> dict[str, torch.Tensor]:
    """Everything that training changes, copied: also what no state dict holds."""
    tensors = {name: value.clone() for name, value in loop.objective.state_dict().items()}
    tensors |= {f"buffer.{name}": value.clone() for name, value in loop.objective.named_buffers()}
    for number, parameter in enumerate(loop.parameters):
        for name, value in loop.optimizer.state[parameter].items():
            tensors[f"optimizer.{number}.{name}"] = value.clone()
    return tensors


NAN, INF = float("nan"), float("inf")
OF_IMAGES = [name for name in OBJECTIVES if tiny.fits("image", name)]  # words are numbers, never NaN
CASES = [(name, "adamw", NAN, 0) for name in OF_IMAGES] + [(name, "adamw", INF, 1) for name in OF_IMAGES]
CASES += [(name, optimizer, NAN, 0) for name in ("byol", "moco") for optimizer in ("sgd", "lars")]


@pytest.mark.parametrize(("objective", "optimizer", "value", "which"), CASES)
def test_a_step_that_is_not_finite_moves_nothing(objective, optimizer, value, which, tmp_path):
    more = (*OPTIMIZERS[optimizer], *QUEUES.get(objective, ()), "train.steps=5", "train.warmup_steps=0")
    config = tiny.config_of("image", tmp_path, tiny.using(objective), *more)
    loop = tiny.loop_of(config, batches=Changed(tiny.batches_of(config), poison(value, which), [2]))
    loop.model.train()
    source = loop._batches()
    for _ in range(2):
        loop._step(source)
    before = state(loop)
    loop._step(source)
    after = state(loop)
    assert after.keys() == before.keys()
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    loop._step(source)
    assert all(x.isfinite().all() for x in state(loop).values())
    moved = {name.partition(".")[0] for name, x in state(loop).items() if not torch.equal(x, after[name])}
    assert {"student", "optimizer"} <= moved and ("teacher" in moved) == (len(loop.objective.teacher) > 0)


def test_the_teacher_of_a_first_step_that_is_not_finite_stays(tmp_path):
    config = tiny.config_of("image", tmp_path, tiny.using("dino"), "train.steps=3", "train.warmup_steps=0")
    loop = tiny.loop_of(config, batches=Changed(tiny.batches_of(config), poison(float("nan"), 0), [0]))
    loop.model.train()
    before = {name: value.clone() for name, value in loop.objective.state_dict().items()}
    source = loop._batches()
    loop._step(source)
    tiny.assert_same(loop.objective.state_dict(), before)


# Steps without predictions.


def nothing_hidden(views):
    (view,) = views
    return [view._replace(mask=view.mask._replace(hidden=torch.zeros_like(view.mask.hidden)))]


@pytest.mark.parametrize("empty", [0, 1])
def test_a_micro_batch_without_hidden_tokens_counts_nothing(empty, tmp_path):
    """The loss and the gradient are those of the other micro-batch alone."""
    more = ("train.steps=1", "train.warmup_steps=0", "train.accumulate=2", "train.optimizer=sgd")
    config = tiny.config_of("image", tmp_path, *more, "train.betas=[0.9,0.98]", "train.eps=1e-6", "train.momentum=0",
                            "train.weight_decay=0", "train.clip=0", "train.lr=0.1")  # fmt: skip
    batches = tiny.batches_of(config)
    alone = tiny.objective_of(config).train()
    loss = alone(batches(0, 1 - empty, 2)[0])
    mean = loss.total / loss.count
    mean.backward()
    loop = tiny.loop_of(config, batches=Changed(batches, nothing_hidden, [0], part=empty))
    loop.model.train()
    loop._step(loop._batches())
    (step,) = loop.meter.steps
    assert float(step.loss) == pytest.approx(float(mean), rel=1e-6) and bool(step.finite)
    for (name, found), wanted in zip(loop.objective.named_parameters(), alone.parameters(), strict=True):
        if wanted.grad is not None:
            expected = wanted.detach() - 0.1 * wanted.grad
            torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)
    metrics = loop.meter.flush(True).metrics
    assert metrics["target_std"] == pytest.approx(float(loss.metrics["target_std"]), rel=1e-6)


def test_a_step_without_predictions_is_skipped_and_named(tmp_path):
    config = tiny.config_of("image", tmp_path / "a", "train.steps=4", "train.warmup_steps=0", "run.log_every=4")
    loop = tiny.loop_of(config, batches=Changed(tiny.batches_of(config), nothing_hidden, [1]))
    loop.model.train()
    source = loop._batches()
    loop._step(source)
    before = state(loop)
    loop._step(source)
    tiny.assert_same(state(loop), before)
    config = tiny.config_of("image", tmp_path / "b", "train.steps=9", "train.max_bad_steps=3")
    loop = tiny.loop_of(config, batches=Changed(tiny.batches_of(config), nothing_hidden, range(2, 9)))
    with pytest.raises(ValueError, match=r"3 steps in a row, up to step 4, had nothing to predict.*Hide more tokens"):
        loop()
    entries = [json.loads(line) for line in (tmp_path / "b" / "bad_steps.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["predictions"], len(entry["samples"])) for entry in entries] == [
        (2, 0, 4), (3, 0, 4), (4, 0, 4)
    ]  # fmt: skip


# fp16.


def with_scaler(loop, scale: float):
    """As accelerate prepares it where it trains in fp16, which it does not on a CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    loop.accelerator.scaler = scaler
    loop.optimizer = AcceleratedOptimizer(loop.optimizer.optimizer, device_placement=False, scaler=scaler)
    loop.accelerator._optimizers = [loop.optimizer]
    loop.accelerator.unscale_gradients = lambda: scaler.unscale_(loop.optimizer.optimizer)
    for parameter in loop.parameters:
        parameter.register_hook(lambda gradient: gradient.half().float())  # above 65,504 it is infinite
    return scaler


def test_a_scale_that_falls_is_no_bad_step(tmp_path):
    """The scaler begins so high that gradients overflow, and halves its scale until they do not."""
    config = tiny.config_of("image", tmp_path, "train.steps=20", "train.warmup_steps=0", "train.max_bad_steps=1",
                            "run.log_every=20")  # fmt: skip
    loop = tiny.loop_of(config)
    scaler = with_scaler(loop, 2.0**24)
    before = {name: value.clone() for name, value in loop.objective.state_dict().items()}
    loop.model.train()
    source = loop._batches()
    loop._step(source)
    tiny.assert_same(loop.objective.state_dict(), before)
    assert scaler.get_scale() == 2.0**23
    loop()
    skipped = sum(record.get("skipped", 0) for record in loop.history.records)
    assert skipped >= 1 and not (tmp_path / "bad_steps.jsonl").exists()
    assert not torch.equal(loop.objective.state_dict()[(name := next(iter(before)))], before[name])


def test_a_loss_that_is_not_finite_is_bad_under_a_scale_too(tmp_path):
    config = tiny.config_of("image", tmp_path, "train.steps=6", "train.warmup_steps=0", "train.max_bad_steps=2")
    loop = tiny.loop_of(config, batches=Changed(tiny.batches_of(config), poison(float("nan"), 0), [2, 3, 4]))
    with_scaler(loop, 8.0)
    with pytest.raises(ValueError, match=r"2 steps in a row, up to step 3, gave a loss or gradient"):
        loop()
    entries = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 3]


# What is logged.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_decay_is_logged_where_there_is_a_teacher(objective, tmp_path):
    modality = next(name for name in tiny.MODALITIES if tiny.fits(name, objective))
    loop = tiny.loop_of(tiny.config_of(modality, tmp_path, tiny.using(objective), "train.steps=1"))
    loop()
    (record,) = (record for record in loop.history.records if "loss" in record)
    assert ("ema_decay" in record) == (len(loop.objective.teacher) > 0)


def test_health_checks_are_no_training_time(tmp_path):
    more = ("train.steps=6", "run.health_every=2", "run.log_every=1", "run.save_every=100")
    loop = tiny.loop_of(tiny.config_of("image", tmp_path, *more), health=True)
    calls = []

    class Slow(HealthCheck):
        def __call__(self, *arguments):
            calls.append(time.sleep(1.0))
            return super().__call__(*arguments)

    assert loop.health is not None
    loop.health.__class__ = Slow
    loop()
    seconds = [record["seconds"] for record in loop.history.records if "seconds" in record]
    assert len(calls) == 4 and len(seconds) == 6 and max(seconds[1:]) < 1.0 and sum(seconds) < 3.0


# What is drawn.


def test_draws_of_a_step_follow_the_seed(tmp_path):
    device = torch.device("cpu")

    def draws(*numbers):
        return torch.rand(8, generator=generator_of_step(*numbers))

    assert torch.equal(draws(3, device), draws(3, device, 0)) and torch.equal(draws(3, device, 5), draws(3, device, 5))
    drawn = [draws(step, device, seed) for seed in (*range(20), 2**31, -1) for step in range(20)]
    assert len({tuple(row.tolist()) for row in drawn}) == len(drawn)

    losses = {}
    for objective, more in (("mochi", ()), ("instdisc", ("objective.negatives=8",))):
        for seed in (0, 1):
            config = tiny.config_of("image", tmp_path / f"{objective}{seed}", tiny.using(objective), *more)
            model = tiny.objective_of(config).train()
            views = tiny.batches_of(config)(0, 0, 1)[0]
            model.begin_step(0, 20)
            assert model.seed == 0
            model.seed = seed
            losses[objective, seed] = float(model(views).total)  # of one init and one batch
        assert losses[objective, 0] != losses[objective, 1]
    assert tiny.objective_of(tiny.config_of("image", tmp_path, tiny.using("moco"), "train.seed=7")).seed == 7


# Several processes.

REMEMBERING = {"moco": (), "mochi": (), "instdisc": ("objective.negatives=8",), "dino": (), "ibot": ()} | QUEUES


def remember(root: Path) -> None:
    """One of two processes: a few steps of each method, of which one is not finite; its buffers."""
    for objective, more in REMEMBERING.items():
        config = tiny.config_of("image", root / objective, tiny.using(objective), *more, "train.steps=5")
        loop = tiny.loop_of(config, batches=Changed(tiny.batches_of(config), poison(float("nan"), 0), [3], part=1))
        loop()
        assert loop.model.broadcast_buffers is False
        buffers = dict(loop.objective.named_buffers())
        torch.save(buffers, root / f"{objective}_{loop.accelerator.process_index}.pt")
        torch.save(loop.objective.state_dict(), root / f"{objective}_{loop.accelerator.process_index}_state.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_remember_alike_without_sending_buffers_around(tmp_path):
    assert tiny.wait(tiny.start(remember, tmp_path, world=2)) == [0, 0]
    for objective in REMEMBERING:
        for kind in ("", "_state"):
            one, two = (torch.load(tmp_path / f"{objective}_{rank}{kind}.pt", weights_only=True) for rank in (0, 1))
            assert one
            tiny.assert_same(one, two)


# Neighbours.


@pytest.mark.parametrize("temperature", [0.07, 0.01, 0.001, 1e-6])
def test_no_temperature_makes_votes_overflow(temperature):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels, 8).float() + 0.3 * torch.randn(60, 8, generator=generator)
    votes = knn_votes(features, features, labels, 20, temperature)
    assert votes.isfinite().all()
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    top, nearest = (unit @ unit.T).topk(20, dim=1)
    weights = ((top - top.amax(dim=1, keepdim=True)) / temperature).exp()
    expected = (weights[..., None] * torch.nn.functional.one_hot(labels)[nearest]).sum(dim=1)
    if temperature >= 0.001:
        torch.testing.assert_close(votes.double(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(votes.argmax(dim=1), labels)  # each is its own nearest
    far = torch.cat([features[:30], -features[:30]])  # the nearest other one may be at a cosine of -1
    assert 0 <= knn_leave_one_out(far, labels, 5, temperature) <= 1
    assert knn_leave_one_out(features, labels, 5, temperature) > 0.8


# Views.


@pytest.mark.parametrize("objective", ["data2vec", "data2vec2", "instdisc"])
def test_a_method_of_one_view_refuses_two(objective, tmp_path):
    """Crops of other places, whose tokens are not those that the student predicts."""
    values = OmegaConf.load(tiny.ROOT / "configs" / "image" / "demo.yaml")
    values.data = {"path": "demo", "views": ["byol_a", "byol_b"], **tiny.kept(values.data)}
    if objective == "instdisc":
        values.objective = {"name": objective, "negatives": 8}
    else:
        values.objective = {"name": objective, "top_k": 2}
        values.data.mask_views = True
        values.model.frontends.image.mask_token = objective == "data2vec"
    OmegaConf.save(values, tmp_path / "config.yaml")
    line = [str(tmp_path / "config.yaml"), *tiny.TRUNK[:-1], *tiny.SHORT, f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"(of one view|compares 1 views).*make 2") as raised:
        pretrain.main(line)
    assert "\n" not in str(raised.value)


# An average of weights with batch norm.


@pytest.mark.slow
def test_an_averaged_model_takes_the_statistics_of_batch_norms(tmp_path):
    from test_backbone import photos

    folder = photos(tmp_path / "photos", 24)
    config = str(tiny.ROOT / "configs" / "image" / "finetune_tiny.yaml")
    frontend = "{backbone: test_resnet, image_size: 32}"
    settings = ["model.trunk.depth=0", "model.trunk.dim=96", "model.trunk.input_norm=false", "model.trunk.drop_path=0"]
    settings += [f"data.{one}" for one in ("split=train", "test_split=''", "validation_share=0.34", "flip=0")]
    settings += [f"train.{one}" for one in ("steps=60", "warmup_steps=2", "batch_size=8", "ema_decay=0.9", "lr=1e-3",
                                            "layer_decay=1", "validate_every=60", "weight_decay=0")]  # fmt: skip
    values = tmp_path / "config.yaml"
    text = Path(config).read_text()
    start, stop = text.index("    image: {"), text.index("  trunk:")
    values.write_text(text[:start] + f"    image: {frontend}\n" + text[stop:])
    scores = finetune_image.main([str(values), *settings, f"data.path={folder}", f"run.dir={tmp_path / 'run'}"])
    assert scores["validation"]["accuracy"] == 1.0
    saved = tiny.load(tmp_path / "run" / "checkpoints" / "00000060" / "model.safetensors")
    names = [name for name in saved if name.startswith("teacher") and "running" in name]
    assert names and all(torch.equal(saved[name], saved[name.replace("teacher", "student", 1)]) for name in names)


def test_a_run_of_which_no_step_was_finite_is_an_error_however_short_it_is(tmp_path):
    """max_bad_steps is ten; a run of two steps ended well, with a verdict that blamed the rate."""
    config = tiny.config_of("image", tmp_path, "train.steps=2")
    objective = tiny.objective_of(config)
    with torch.no_grad():
        next(iter(objective.student["encoder"].parameters())).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"no step of this run was finite; samples: .*bad_steps\.jsonl"):
        tiny.loop_of(config, objective=objective)()


def test_masks_that_a_method_would_not_read_are_refused(tmp_path):
    command = tiny.arguments("text", tmp_path / "run", tiny.using("byol"), "data.mask_views=true")
    with pytest.raises(
        ValueError, match=r"byol reads views whole, and data\.mask_views=true hides tokens: leave it out"
    ):
        pretrain.main(command)
