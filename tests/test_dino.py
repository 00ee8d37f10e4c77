"""DINO, iBOT and SwAV as whole objectives.

Against slow versions, over steps, in three modalities, and by two processes as by one.
"""

import os

import pytest
import tiny
import torch
from torch import Tensor, nn

from d2v import plugins
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives import dino, ibot, swav
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.prototypes import sinkhorn
from d2v.training.distributed import all_sum, gather, mine, world_size
from d2v.types import Mask, View

TRUNK = {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32}
FRONTENDS = {
    "image": {"image_size": 16, "patch_size": 8},
    "speech": {
        "conv_dim": 8,
        "conv_kernels": [10, 4],
        "conv_strides": [5, 4],
        "pos_kernel": 3,
        "pos_depth": 1,
        "pos_groups": 2,
    },
    "text": {"vocab_size": 30, "max_positions": 16, "mask_token_id": 3},
}
HEAD = {"hidden_dim": 16, "bottleneck_dim": 8, "num_prototypes": 12}
CONFIGS = {
    "dino": dino.Config(**HEAD),
    "ibot": ibot.Config(**HEAD),
    "swav": swav.Config(hidden_dim=16, out_dim=8, num_prototypes=12, queue_size=8),
}


def encoder_of(modality: str, **trunk: float) -> D2vModel:
    return D2vModel(D2vConfig(frontends={modality: FRONTENDS[modality]}, trunk={**TRUNK, **trunk}))


def made(name: str, encoder: D2vModel | None = None, **changes: object) -> Objective:
    """An objective whose teacher differs from the student, so that a mix-up shows.

    Its samples differ as well, so that norms blow up no rounding.
    """
    config = type(CONFIGS[name])(**{**vars(CONFIGS[name]), **changes})
    objective = plugins.load("d2v.objectives", name).build(encoder or encoder_of("image"), config).train()
    for parameter in objective.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    objective.begin_step(0, 1)
    return objective


def images(num_views: int = 2, batch: int = 4) -> list[View]:
    """Views whose first two carry masks; nothing is hidden in the first sample."""
    views = [View("image", {"pixel_values": torch.randn(batch, 3, 16, 16)}) for _ in range(num_views)]
    return [view._replace(mask=masked(batch, 4)) if number < 2 else view for number, view in enumerate(views)]


def masked(batch: int, tokens: int) -> Mask:
    hidden = torch.rand(batch, tokens) < 0.6
    hidden[0], hidden[-1, 1] = False, True
    return Mask(hidden)


def sequences(modality: str, encoder: D2vModel) -> list[View]:
    """Two long and two short views, with padding in one sample."""
    views = []
    for number, length in enumerate((120, 120, 80, 80) if modality == "speech" else (10, 10, 6, 6)):
        real = torch.ones(4, length, dtype=torch.long)
        real[1, length - length // 4 :] = 0
        if modality == "speech":
            view = encoder.view(input_values=torch.randn(4, length), attention_mask=real)
        else:
            view = encoder.view(
                input_ids=torch.randint(5, 30, (4, length)).masked_fill(real == 0, 1), attention_mask=real
            )
        assert view.padding is not None and view.padding.any()
        mask = Mask(masked(4, view.padding.shape[1]).hidden & ~view.padding)
        views.append(view._replace(mask=mask) if number < 2 else view)
    return views


# Slow versions, view by view and sample by sample.


def slow_head(side: nn.ModuleDict, x: Tensor, output: int) -> Tensor:
    layer = side["head"].prototypes[output].parametrizations.weight
    z = side["head"].mlp(x)
    return (z / z.norm(dim=-1, keepdim=True)) @ (
        layer.original0 * layer.original1 / layer.original1.norm(dim=1, keepdim=True)
    ).T


def slow_tokens(side: nn.ModuleDict, view: View, mask: Mask | None) -> tuple[list[Tensor], list[Tensor]]:
    """The summary (D,) and the tokens (T, D) of each sample."""
    features = side["encoder"](view, mask)
    if features.extra is not None:
        return list(features.extra[:, 0]), list(features.x)
    real = [slice(None)] * len(features.x) if view.padding is None else [~row for row in view.padding]
    return [x[where].mean(dim=0) for x, where in zip(features.x, real, strict=True)], list(features.x)


def slow_loss(objective: Objective, views: list[View], *, hide: bool) -> tuple[Tensor, Tensor]:
    """The class and the patch term, means over samples."""
    student, teacher, config = objective.student, objective.teacher, objective.config
    seen = [slow_tokens(student, view, view.mask if hide else None) for view in views]
    with torch.no_grad():
        whole = [slow_tokens(teacher, view, None) for view in views[:2]]
    batch = len(seen[0][0])

    def compared(i: int, v: int, b: int) -> Tensor:
        target = ((slow_head(teacher, whole[i][0][b], 0) - objective.center.value) / objective.temperature).softmax(0)
        return -(target * (slow_head(student, seen[v][0][b], 0) / config.student_temperature).log_softmax(0)).sum()

    pairs = [(i, v) for i in range(2) for v in range(len(views)) if i != v]
    class_loss = torch.stack([compared(i, v, b) for i, v in pairs for b in range(batch)]).mean()
    patch_loss = torch.zeros(())
    for i in range(2) if hide else ():
        for b in range(batch):
            losses = []
            for t in views[i].mask.hidden[b].nonzero().flatten():
                target = (
                    slow_head(teacher, whole[i][1][b][t], -1) - objective.patch_center.value
                ) / objective.patch_temperature
                rows = slow_head(student, seen[i][1][b][t], -1) / config.student_temperature
                losses.append(-(target.softmax(0) * rows.log_softmax(0)).sum())
            if losses:
                patch_loss = patch_loss + torch.stack(losses).mean() / batch / 2
    return class_loss, patch_loss


def assert_equal_gradients(objective: Objective, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    names, trained = zip(*[(name, p) for name, p in objective.named_parameters() if p.requires_grad], strict=True)
    gradients = torch.autograd.grad(found, trained), torch.autograd.grad(expected, trained, allow_unused=True)
    for name, x, y in zip(names, *gradients, strict=True):
        torch.testing.assert_close(x, torch.zeros_like(x) if y is None else y, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("num_views", [2, 10])
@pytest.mark.parametrize("frozen_gain", [True, False])
def test_dino_is_its_definition(num_views, frozen_gain):
    objective, views = made("dino", frozen_gain=frozen_gain), images(num_views)
    objective.center.value.normal_(std=0.1)
    expected = slow_loss(objective, views, hide=False)[0]
    loss = objective(views)
    assert_equal_gradients(objective, loss.total / loss.count, expected)
    assert int(loss.count) == 4 and all(value.ndim == 0 for value in loss.metrics.values())


@pytest.mark.parametrize("num_views", [2, 4])
@pytest.mark.parametrize("shared_head", [True, False])
def test_ibot_is_its_definition(num_views, shared_head):
    objective, views = made("ibot", shared_head=shared_head, class_weight=0.5, patch_weight=2.0), images(num_views)
    objective.center.value.normal_(std=0.1), objective.patch_center.value.normal_(std=0.1)
    class_loss, patch_loss = slow_loss(objective, views, hide=True)
    with torch.no_grad():
        rows = torch.cat(
            [objective.teacher["head"](objective.teacher["encoder"](view).x, -1).mean(dim=1) for view in views[:2]]
        )
    centers = 0.9 * objective.patch_center.value + 0.1 * rows.mean(dim=0)
    loss = objective(views)
    assert_equal_gradients(objective, loss.total / loss.count, 0.5 * class_loss + 2 * patch_loss)
    torch.testing.assert_close(loss.metrics["class_loss"], class_loss)
    torch.testing.assert_close(loss.metrics["patch_loss"], patch_loss)
    torch.testing.assert_close(objective.patch_center.value, centers)


@pytest.mark.parametrize("modality", ["speech", "text"])
@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_views_of_two_lengths_with_padding_and_without_a_class_token(modality, name):
    objective = made(name, encoder_of(modality))
    views = sequences(modality, objective.student["encoder"])
    expected = sum(slow_loss(objective, views, hide=name == "ibot"))
    loss = objective(views)
    torch.testing.assert_close(loss.total / loss.count, expected, rtol=1e-4, atol=1e-5)
    if name == "ibot":  # what is hidden is what the student does not see
        other = views[0]._replace(mask=Mask(torch.zeros_like(views[0].mask.hidden)))
        assert not torch.allclose(
            objective([other, *views[1:]]).metrics["class_loss"], loss.metrics["class_loss"], rtol=1e-6, atol=0
        )


def test_ibot_with_nothing_hidden_still_gives_every_parameter_a_gradient():
    objective, views = made("ibot", shared_head=False), images()
    views = [view._replace(mask=Mask(torch.zeros(4, 4, dtype=torch.bool))) for view in views]
    loss = objective(views)
    loss.total.backward()
    assert float(loss.metrics["patch_loss"]) == 0 and all(value.isfinite() for value in loss.metrics.values())
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]


def test_the_center_moves_after_the_loss_and_lightly_agrees():
    lightly = pytest.importorskip("lightly.loss")
    objective, theirs = made("dino"), lightly.DINOLoss(output_dim=12, center_momentum=0.9)
    for step in range(3):
        views = images(4)
        objective.begin_step(step, 20)
        with torch.no_grad():
            teacher, student = dino.scores(objective.teacher, views[:2]), dino.scores(objective.student, views)
        loss = objective(views)
        torch.testing.assert_close(loss.total / 4, theirs(teacher, student, teacher_temp=objective.temperature))
        torch.testing.assert_close(objective.center.value, theirs.center.view(-1))
        assert step or not torch.allclose(objective.center.value, torch.zeros(12))


def test_temperature_ema_and_freezing_follow_the_step():
    objective = made("dino", warmup_share=0.5, frozen_share=0.2)
    found = []
    for step in range(10):
        objective.begin_step(step, 10)
        found.append(objective.temperature)
    assert found == pytest.approx([0.04 + 0.006 * step for step in range(5)] + [0.07] * 5)
    assert [objective.ema_decay(step, 10) for step in (0, 5, 10)] == pytest.approx([0.996, 0.998, 1.0])
    both = made(
        "ibot", warmup_share=0.5, start_temperature=0.02, patch_temperature=0.06, shared_head=False, frozen_share=0.2
    )
    both.begin_step(2, 8)
    assert (both.temperature, both.patch_temperature) == pytest.approx((0.045, 0.04))
    for one in (objective, both, made("swav", frozen_share=0.2)):
        for step, frozen in ((0, True), (1, True), (2, False)):
            one.zero_grad()
            one(images()).total.backward()
            one.adjust_gradients(step, 10)
            without = {name for name, p in one.named_parameters() if p.requires_grad and p.grad is None}
            assert without == (
                {name for name, p in one.named_parameters() if p.requires_grad and "prototypes" in name}
                if frozen
                else set()
            )
            assert not frozen or without


def test_the_teacher_drops_no_path_and_the_student_does():
    encoder = encoder_of("image", depth=2, drop_path=0.5)
    objective = dino.build(encoder, CONFIGS["dino"]).train()
    views = images()
    assert all(
        torch.equal(x, y)
        for x, y in zip(dino.scores(objective.teacher, views), dino.scores(objective.teacher, views), strict=True)
    )
    assert not all(
        torch.equal(x, y)
        for x, y in zip(dino.scores(objective.student, views), dino.scores(objective.student, views), strict=True)
    )


def slow_swav(objective: Objective, views: list[View], queue: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The mean loss, with what is in front of each view's batch, and the embeddings of the first two views."""
    x = torch.cat([objective.student["encoder"](view).extra[:, 0] for view in views])
    z = objective.student["projector"](x)  # one batch norm over all crops
    z = (z / z.norm(dim=1, keepdim=True)).chunk(len(views))
    logits = [rows @ objective.prototypes.weight.T for rows in z]
    losses = []
    for i in range(2):
        target = sinkhorn(torch.cat([queue[i] @ objective.prototypes.weight.T, logits[i]]), 0.05)[len(queue[i]) :]
        losses.append(
            torch.stack(
                [-(target * (x / 0.1).log_softmax(1)).sum(1).mean() for v, x in enumerate(logits) if v != i]
            ).mean()
        )
    return torch.stack(losses).mean(), [rows.detach() for rows in z[:2]]


def test_swav_is_its_definition_before_and_after_its_queue_is_full():
    objective = made("swav", queue_size=8, queue_share=0.2)
    empty, seen = torch.zeros(0, 8), [[], []]
    for step in range(7):  # of 10: the queue starts at step 2, and holds 8 rows, two batches, from step 4 on
        objective.begin_step(step, 10)
        torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(12))
        views = images(4)
        queue = [torch.cat(rows[:2]) if step >= 4 else empty for rows in seen]
        expected, z = slow_swav(objective, views, queue)
        loss = objective(views)
        assert_equal_gradients(objective, loss.total / loss.count, expected)
        if step >= 2:
            for rows, new in zip(seen, z, strict=True):
                rows.insert(0, new)
            for rows, kept in zip(seen, objective.queue, strict=True):
                torch.testing.assert_close(kept[: 4 * len(rows)], torch.cat(rows)[:8])
        assert step >= 2 or not objective.queue.any()
        objective.prototypes.weight.data *= 2
    assert objective.ema_decay(1, 10) == 1.0 and not len(objective.teacher)
    assert made("swav", queue_size=0).queue is None


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_dict_brings_all_that_was_remembered(name):
    objective, views = made(name), images(3)
    for step in range(3):
        objective.begin_step(step, 3)
        objective(views)
    again = made(name)
    again.load_state_dict(objective.state_dict())
    for one in (objective, again):
        one.begin_step(3, 3)
    torch.testing.assert_close(again(views).total, objective(views).total, rtol=0, atol=0)
    tiny.assert_same(again.state_dict(), objective.state_dict())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_few_steps_lower_the_loss(name):
    objective, views = made(name, **({} if name == "swav" else {"ema_decay": 1.0, "center_momentum": 1.0})), images(3)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(12):
        objective.begin_step(step, 1000)
        loss = objective(views).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_wrong_settings_and_batches_are_named():
    with pytest.raises(ValueError, match=r"objective.teacher_temperature is 0; it must be a positive number"):
        dino.Config(teacher_temperature=0)
    with pytest.raises(ValueError, match=r"objective.warmup_share is 30; it must be at least 0 and at most 1"):
        ibot.Config(warmup_share=30)
    with pytest.raises(ValueError, match=r"objective.ema_decay is 1.5"):
        dino.Config(ema_decay=1.5)
    with pytest.raises(ValueError, match=r"objective.queue_size is -1"):
        swav.Config(queue_size=-1)
    with pytest.raises(
        ValueError, match=r"objective.queue_size is 8; it must be a multiple of train.batch_size, 3, or 0"
    ):
        made("swav").check_batch(3, 1)
    made("swav").check_batch(4, 1)
    for name in CONFIGS:
        with pytest.raises(ValueError, match=f"{name} compares 2 views"):
            made(name).check(images(1))
    objective, views = made("ibot"), images()
    objective.check(views)
    keep = views[0].mask._replace(keep=torch.zeros(4, 1, dtype=torch.long))
    several = Mask(views[0].mask.hidden.repeat(2, 1))
    for mask, said in ((None, "no mask"), (keep, "one that leaves tokens out"), (several, "several")):
        with pytest.raises(ValueError, match=f"view 1 has {said}"):
            objective.check([views[0], views[1]._replace(mask=mask)])


# Two processes.


class TokenNorm(nn.Module):
    """Batch norm of every token."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view(x.shape)


def part_of(view: View, rank: int, world: int) -> View:
    mask = None if view.mask is None else Mask(view.mask.hidden[rank::world])
    return View(view.modality, {name: value[rank::world] for name, value in view.inputs.items()}, mask=mask)


def train(name: str) -> dict[str, Tensor]:
    """Three steps of plain gradient descent by all processes: gradients and state at the end, and the losses."""
    rank, world = int(os.environ.get("RANK", 0)) if world_size() > 1 else 0, world_size()
    torch.manual_seed(1)
    encoder = encoder_of("image")
    encoder.trunk.final_norm = TokenNorm(16)
    objective = made(name, encoder)
    objective.check_batch(8, world)
    found = {}
    for step in range(3):  # SwAV's queue of 8 is in use from the second on
        objective.begin_step(step, 3)
        loss = objective([part_of(view, rank, world) for view in images(3, batch=8)])
        loss.total.backward()
        found[f"loss.{step}"], count = all_sum(loss.total.detach()), all_sum(loss.count)
        for key, parameter in objective.named_parameters():
            if parameter.requires_grad:
                parameter.grad = all_sum(parameter.grad) / count
                found[f"gradient.{step}.{key}"] = parameter.grad.clone()
                parameter.data -= 0.1 * parameter.grad
        objective.zero_grad()
        objective.update_teacher(0.9)
        found |= {
            f"metric.{step}.{key}": tiny.known(value)
            for key, value in loss.metrics.items()
            if key in ("prototypes_used", "center_norm")
        }
    return found | objective.state_dict()


def two_processes(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    for name in CONFIGS:
        torch.save(train(name), f"{folder}/{name}_{os.environ['RANK']}.pt")
    cosines = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).tanh()
    whole = gather(sinkhorn(cosines[mine(4, cosines.device)], 0.05))
    torch.save(whole, f"{folder}/shares_{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    processes = tiny.start(two_processes, str(tmp_path), world=2)
    expected = {name: train(name) for name in CONFIGS}
    assert tiny.wait(processes) == [0, 0]
    for name, values in expected.items():
        first, second = (torch.load(tmp_path / f"{name}_{rank}.pt", weights_only=True) for rank in (0, 1))
        tiny.assert_same(first, second)
        assert first.keys() == values.keys()
        for key, value in values.items():
            torch.testing.assert_close(first[key], value, rtol=1e-3, atol=1e-5, msg=key)
    cosines = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).tanh()
    for rank in (0, 1):
        torch.testing.assert_close(
            torch.load(tmp_path / f"shares_{rank}.pt", weights_only=True), sinkhorn(cosines, 0.05)
        )
