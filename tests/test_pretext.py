"""RotNet, Jigsaw and PIRL: against slow steps, over two processes, and what they refuse."""

import copy
import math
from itertools import combinations, permutations

import pytest
import small
import tiny
import torch
from torch import Tensor
from two_views import assert_equal, by_two, in_double

from d2v import D2vConfig, D2vModel
from d2v.objectives import instdisc, jigsaw, pirl, rotnet
from d2v.objectives.common.masked import row_generators
from d2v.objectives.common.multi_view import MultiView, generator_of_step, summary
from d2v.objectives.common.tiles import cut, draws, far_apart
from d2v.types import View

BATCH, STEPS, SAMPLES, SIZE, TILE = 6, 3, 10, 14, 2
ROOM = SIZE // 3 - TILE
MODULES = {"rotnet": rotnet, "jigsaw": jigsaw, "pirl": pirl}
BANK = {"num_samples": SAMPLES, "out_dim": 6, "tile_size": TILE}
CASES = {
    "rotnet": ("rotnet", {}),
    "jigsaw": ("jigsaw", {"num_permutations": 7, "tile_size": TILE, "hidden_dim": 5}),
    "pirl": ("pirl", {**BANK, "negatives": 7}),
    "pirl_softmax": ("pirl", {**BANK, "negatives": 0, "loss": "softmax", "temperature": 0.2}),
}


def objective(case: str, **settings) -> MultiView:
    """In training mode, the same whenever it is made."""
    name, given = CASES[case]
    torch.manual_seed(0)
    encoder = small.encoder(image_size=SIZE, patch_size=TILE, positions="sincos", relative_bias=False)
    made = MODULES[name].build(encoder, MODULES[name].Config(**{**given, **settings})).train()
    made.seed = 3
    return made


def views_of(made: MultiView, step: int, part: slice = slice(None)) -> list[View]:
    """As many views of noise as the method reads, of samples that a bank tells apart."""
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    images = [torch.randn(BATCH, 3, SIZE, SIZE, generator=generator) for _ in range(made.config.num_views)]
    return [View("image", {"pixel_values": x[part]}, indices=indices[part]) for x in images]


# What has no gradient: biases of keys; and in jigsaw what a batch norm takes away again.
FLAT = dict.fromkeys(CASES, ("qkv.bias",)) | {"jigsaw": ("qkv.bias", "norm2.bias", "tile_head.0.bias")}


# The slow versions: one image, one tile, one pixel after another.


def encoded(made: MultiView, image: Tensor) -> Tensor:
    """The summary (D,) of one image (C, S, S)."""
    return summary(made.student["encoder"], View("image", {"pixel_values": image[None]}))[0]


def slow_rotnet(made: MultiView, views: list[View]) -> Tensor:
    total = torch.zeros(())
    for image in views[0].inputs["pixel_values"]:
        for angle in range(4):
            logits = made.head(encoded(made, image))
            total = total - logits.log_softmax(dim=0)[angle]
            turned = torch.empty_like(image)
            for y in range(SIZE):
                for x in range(SIZE):
                    turned[:, y, x] = image[:, x, SIZE - 1 - y]  # by 90 degrees, against the clock
            image = turned
    return total


def slow_tiles(image: Tensor, offsets: Tensor) -> list[Tensor]:
    """Nine, column by column; the cells have a third of the side, rounded down."""
    tiles = []
    for column in range(3):
        for row in range(3):
            y, x = offsets[len(tiles)].tolist()
            y, x = row * (SIZE // 3) + y, column * (SIZE // 3) + x
            tiles.append(image[:, y : y + TILE, x : x + TILE])
    return tiles


def slow_jigsaw(made: MultiView, views: list[View]) -> Tensor:
    images, rows, numbers = views[0].inputs["pixel_values"], [], []
    for image, generator in zip(images, row_generators(made.seed, made.step, BATCH, torch.device("cpu")), strict=True):
        tiles = slow_tiles(image, torch.randint(ROOM + 1, (9, 2), generator=generator))
        numbers.append(int(torch.randint(made.config.num_permutations, (), generator=generator)))
        for tile in far_apart(9, made.config.num_permutations)[numbers[-1]]:
            mean = tiles[tile].mean(dim=(1, 2), keepdim=True)
            var = tiles[tile].var(dim=(1, 2), keepdim=True, unbiased=False)
            rows.append(made.tile_head[0](encoded(made, (tiles[tile] - mean) / (var + 1e-5).sqrt())))
    rows = torch.stack(rows)
    rows = (rows - rows.mean(dim=0)) / (rows.var(dim=0, unbiased=False) + 1e-5).sqrt()
    rows = (rows * made.tile_head[1].weight + made.tile_head[1].bias).clamp(min=0)
    total = torch.zeros(())
    for i, number in enumerate(numbers):
        logits = made.head(torch.cat(list(rows[9 * i : 9 * i + 9])))
        total = total - logits.log_softmax(dim=0)[number]
    return total


def slow_pirl(made: MultiView, views: list[View], z: float) -> tuple[Tensor, float, Tensor]:
    """The loss, Z, which is estimated where it is 0, and the images' embeddings."""
    config, own = made.config, views[0].indices.tolist()
    drawn = torch.randint(
        SAMPLES, (BATCH, config.negatives), generator=generator_of_step(made.step, torch.device("cpu"), made.seed)
    ).tolist()
    everyone, images, tiles = list(range(SAMPLES)), [], []
    generators = row_generators(made.seed, made.step, BATCH, torch.device("cpu"))
    for i, generator in enumerate(generators):
        image = made.student["projector"](encoded(made, views[0].inputs["pixel_values"][i]))
        parts = slow_tiles(views[1].inputs["pixel_values"][i], torch.randint(ROOM + 1, (9, 2), generator=generator))
        order = torch.randperm(9, generator=generator).tolist()
        joined = torch.cat([made.tile_head(encoded(made, parts[tile])) for tile in order])
        images.append(image / image.norm())
        tile = made.tiles_head(joined)
        tiles.append(tile / tile.norm())
    total = torch.zeros(())
    for features in (images, tiles):
        scores = []
        for i, feature in enumerate(features):
            others = drawn[i] if config.negatives else [j for j in everyone if j != own[i]]
            scores.append(made.bank.rows[[own[i], *others]] @ feature / config.temperature)
        scores = torch.stack(scores)
        if config.loss == "softmax":
            total = total - scores.log_softmax(dim=1)[:, 0].sum() / 2
            continue
        z = z or float(scores.detach().exp().mean()) * SAMPLES
        p, noise = scores.exp() / z, config.negatives / SAMPLES
        total = total - (p[:, 0] / (p[:, 0] + noise + 1e-7)).log().sum() / 2
        total = total - (noise / (p[:, 1:] + noise + 1e-7)).log().sum() / 2
    return total, z, torch.stack(images)


@pytest.mark.parametrize("case", CASES)
def test_an_objective_and_its_gradients_are_the_slow_ones(case):
    with in_double():
        made, z = objective(case), 0.0
        for step in range(STEPS):
            made.begin_step(step, STEPS)
            slow, views = copy.deepcopy(made), views_of(made, step)
            made.check(views)
            if case == "rotnet":
                expected, count = slow_rotnet(slow, views), 4 * BATCH
            elif case == "jigsaw":
                expected, count = slow_jigsaw(slow, views), BATCH
            else:
                (expected, z, images), count = slow_pirl(slow, views, z), BATCH
            bank = None if "pirl" not in case else made.bank.rows.clone()
            loss = made(views)
            assert int(loss.count) == count
            assert all(value.ndim == 0 and value.isfinite() for value in loss.metrics.values())
            torch.testing.assert_close(loss.total, expected, rtol=1e-9, atol=0)
            loss.total.backward()
            expected.backward()
            others = dict(slow.named_parameters())
            for key, parameter in made.named_parameters():
                if parameter.requires_grad:
                    torch.testing.assert_close(parameter.grad, others[key].grad, rtol=1e-6, atol=1e-8, msg=key)
                    assert parameter.grad.abs().max() > 1e-6 or key.endswith(FLAT[case]), key
            made.zero_grad()
            if bank is not None:  # the old bank was read, and images alone move it
                for own, image in zip(views[0].indices.tolist(), images.detach(), strict=True):
                    moved = (bank[own] + image) / 2
                    torch.testing.assert_close(made.bank.rows[own], moved / moved.norm())
                rest = [j for j in range(SAMPLES) if j not in views[0].indices.tolist()]
                assert torch.equal(made.bank.rows[rest], bank[rest])
                assert float(made.normaliser) == pytest.approx(z)


def test_losses_start_at_the_logarithm_of_the_number_of_classes():
    """Exactly where the head says nothing, and near it at the published init; PIRL's where all rows are alike."""
    for head, wanted in (
        (objective("rotnet"), math.log(4)),
        (objective("jigsaw", num_permutations=2000, hidden_dim=100), 7.601),
    ):
        loss = head(views_of(head, 0))
        assert float(loss.total.detach() / loss.count) == pytest.approx(wanted, abs=0.2)
        torch.nn.init.zeros_(head.head.weight)
        torch.nn.init.zeros_(head.head.bias)
        loss = head(views_of(head, 0))
        assert float(loss.total.detach() / loss.count) == pytest.approx(wanted, abs=1e-3)
    made = objective("pirl_softmax")
    made.bank.rows.copy_(made.bank.rows[:1].expand(SAMPLES, -1).clone())
    loss = made(views_of(made, 0))
    assert float(loss.total.detach() / loss.count) == pytest.approx(math.log(SAMPLES), abs=1e-5)


def test_pirls_bank_is_of_unit_rows_from_the_start():
    torch.testing.assert_close(objective("pirl").bank.rows.norm(dim=1), torch.ones(SAMPLES))


def fitted(case: str, steps: int) -> tuple[MultiView, dict[str, Tensor]]:
    """After steps on ten smooth images, which are seen in each; what the last one says."""
    made, generator = objective(case), torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(SAMPLES, 3, 3, 3, generator=generator), size=(SIZE, SIZE))
    views = [View("image", {"pixel_values": images}, indices=torch.arange(SAMPLES))] * made.config.num_views
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        made.begin_step(step, steps)
        loss = made(views)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return made, loss.metrics


@pytest.mark.parametrize(("case", "least"), [("rotnet", 0.8), ("jigsaw", 0.4), ("pirl_softmax", 0.9)])
def test_what_is_asked_can_be_learnt(case, least):
    before, after = fitted(case, 1)[1], fitted(case, 100)[1]
    assert float(before["accuracy"]) <= 0.3 and float(after["accuracy"]) >= least
    if "pirl" in case:
        assert float(after["tiles_cosine"]) > 0.4 > float(before["tiles_cosine"])


# Orders of tiles.


def distance(a, b) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_each_order_is_as_far_from_those_before_as_any_that_is_left(tiles):
    every = list(permutations(range(tiles)))
    found = [tuple(order) for order in far_apart(tiles, len(every))]
    assert sorted(found) == every
    for number in range(1, len(found)):
        before = found[:number]
        scores = {}
        for order in every:
            if order not in before:
                apart = [distance(order, other) for other in before]
                scores[order] = (sum(apart), min(apart))
        assert found[number] == next(order for order in every if scores.get(order) == max(scores.values()))


@pytest.mark.parametrize(("tiles", "count"), [(3, 2), (3, 3), (3, 4), (3, 5), (4, 2), (4, 3), (4, 4)])
def test_no_set_of_orders_is_farther_apart(tiles, count):
    def spread(orders) -> int:
        return sum(distance(a, b) for a, b in combinations(orders, 2))

    every = permutations(range(tiles))
    assert spread(far_apart(tiles, count)) == max(map(spread, combinations(every, count)))


def test_nine_tiles_have_orders_that_share_no_place_and_then_few():
    orders = far_apart(9, 100)
    assert {distance(a, b) for a, b in combinations(orders[:9], 2)} == {9}
    assert len({tuple(order) for order in orders}) == 100 and all(sorted(order) == list(range(9)) for order in orders)
    assert min(distance(a, b) for a, b in combinations(orders, 2)) >= 4
    assert far_apart(9, 20) == orders[:20]
    assert objective("jigsaw").state_dict()["orders"].tolist() == orders[:7]
    with pytest.raises(ValueError, match="3 tiles have 6 orders, not 7"):
        far_apart(3, 7)


# Draws.


def test_tiles_lie_anywhere_in_their_cells_and_any_order_comes():
    offsets, number = draws(0, 0, 400, 2, lambda g: torch.randint(5, (), generator=g))
    assert offsets.shape == (400, 9, 2) and sorted(number.unique().tolist()) == [0, 1, 2, 3, 4]
    for value in range(3):
        assert ((offsets == value).float().mean(dim=0) - 1 / 3).abs().max() < 0.1
    both = (offsets[..., 0] * 3 + offsets[..., 1]).flatten().bincount()
    assert len(both) == 9 and both.min() > 300


def test_draws_are_of_seed_step_and_place_alone():
    def loss(case: str, seed: int, step: int, before: int = 0) -> float:
        made = objective(case)
        made.seed = seed
        torch.manual_seed(before)
        made.begin_step(step, 5)
        return float(made(views_of(made, 0)).total.detach())

    for case in ("jigsaw", "pirl"):
        assert loss(case, 0, 1) == loss(case, 0, 1, before=7)
        assert len({loss(case, seed, step) for seed in (0, 1) for step in (0, 1)}) == 4


def test_the_same_image_in_another_place_is_cut_elsewhere():
    images = torch.arange(SIZE * SIZE).float().view(1, 1, SIZE, SIZE).expand(4, 1, -1, -1)
    offsets, _ = draws(0, 0, 4, ROOM, lambda g: torch.randperm(9, generator=g))
    tiles = cut(images, offsets, TILE)
    assert tiles.shape == (4, 9, 1, TILE, TILE) and len({tuple(row.flatten().tolist()) for row in tiles}) == 4


def test_what_light_and_contrast_a_tile_has_do_not_tell_its_place():
    made = objective("jigsaw")
    images = views_of(made, 0)[0].inputs["pixel_values"]
    cells = torch.arange(9.0).view(3, 3).repeat_interleave(SIZE // 3, 0).repeat_interleave(SIZE // 3, 1)
    lit = torch.nn.functional.pad(cells, (0, SIZE % 3, 0, SIZE % 3))
    found, _ = made.puzzles(images)
    other, _ = made.puzzles((1 + lit) * images + 3 * lit)
    torch.testing.assert_close(found, other, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.mean(dim=(3, 4)), torch.zeros(found.shape[:3]), atol=1e-5, rtol=0)


# Processes.


def trained(case: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Losses and gradients of steps as the loop takes them, by plain gradient descent, and all that is kept."""
    with in_double():
        model, found = objective(case), {}
        model.check_batch(BATCH, world)
        for step in range(STEPS):
            model.begin_step(step, STEPS)
            loss = model(views_of(model, step, slice(rank, None, world)))
            loss.total.backward()
            sums = torch.stack([loss.total.detach(), loss.count.double()])
            parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
            for value in (sums, *(p.grad for p in parameters.values())):
                if world > 1:
                    torch.distributed.all_reduce(value)
            found[f"loss.{step}"] = sums[0] / sums[1]
            with torch.no_grad():
                for key, parameter in parameters.items():
                    found[f"gradient.{step}.{key}"] = parameter.grad / sums[1]
                    parameter -= 0.05 * parameter.grad / sums[1]
            model.zero_grad()
        return found | {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    return by_two(tmp_path_factory.mktemp("two"), trained, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, two):
    one = trained(case)
    assert any(key.startswith("gradient.0.student.encoder") and value.abs().max() > 1e-4 for key, value in one.items())
    for found in two:
        assert_equal(found[case], one)


# What is refused.


@pytest.mark.parametrize("modality", ["speech", "text"])
@pytest.mark.parametrize("name", MODULES)
def test_samples_that_are_no_images_are_refused_before_the_first_step(name, modality, tmp_path):
    path = tiny.demo_of(modality, name)
    with pytest.raises(ValueError, match=rf"^{name} .* of images, and samples here are sequences: .*another$"):
        tiny.run([str(path), *tiny.TRUNK[:-1], *tiny.SHORT, f"run.dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["jigsaw", "pirl"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("model.frontends.image.image_size=8",),
            "tile_size is 2; tiles must be smaller than a third .* 8 x 8 pixels that is (at most 1|impossible.*)$",
        ),
        (("objective.tile_size=4",), "objective.tile_size is 4; tiles must .* with gaps between .* at most 3$"),
        (("objective.tile_size=3",), r"objective.tile_size is 3, which the encoder cannot read: .*squares of 2 x 2"),
    ],
)
def test_images_too_small_for_the_tiles_are_refused_before_the_first_step(name, more, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        tiny.run(tiny.arguments("image", tmp_path, tiny.using(name), *more))
    assert "\n" not in str(caught.value) and not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("name", "side", "least", "size"), [("jigsaw", 8, 2, 9), ("pirl", 5, 1, 6)])
def test_images_too_small_for_any_tile_are_refused_before_the_first_step(name, side, least, size, tmp_path):
    image = "model.frontends.image"
    more = (f"{image}.image_size={side}", f"{image}.patch_size=1", f"objective.tile_size={least}")
    message = f"of images of {side} x {side} pixels that is impossible, as these need {size} pixels at least$"
    with pytest.raises(ValueError, match=message):
        tiny.run(tiny.arguments("image", tmp_path, tiny.using(name), *more))


def test_a_backbone_of_one_size_cannot_read_tiles():
    frontends = {"image": {"image_size": 224, "backbone": "mixer_s32_224"}}
    encoder = D2vModel(D2vConfig(frontends=frontends, trunk={"dim": 512, "depth": 0, "input_norm": False}))
    made = jigsaw.build(encoder, jigsaw.Config(num_permutations=2))
    view = View("image", {"pixel_values": torch.zeros(1, 3, 224, 224)})
    with pytest.raises(
        ValueError, match=r"^objective.tile_size is 64, which the encoder cannot read: .*\(1, 3, 64, 64\)"
    ):
        made.check([view])


def test_images_that_are_not_square_cannot_be_turned():
    made = objective("rotnet")
    with pytest.raises(
        ValueError, match=r"^rotnet turns images by 90 degrees, .* square ones; these have 6 x 8 pixels$"
    ):
        made.check([View("image", {"pixel_values": torch.zeros(2, 3, 6, 8)})])


def test_the_check_of_tiles_leaves_the_encoder_as_it_was():
    made = objective("jigsaw")
    before = {key: value.clone() for key, value in made.state_dict().items()}
    made.check(views_of(made, 0))
    tiny.assert_same(made.state_dict(), before)
    assert made.training and all(module.training for module in made.student.modules())


@pytest.mark.parametrize("name", ["jigsaw", "pirl"])
def test_parts_of_a_batch_are_refused_where_the_whole_is_seen(name):
    with pytest.raises(ValueError, match=f"train.accumulate is 2; {name} compares the samples of a whole batch"):
        objective(name).check_batch(8, 2)


def test_rotations_need_no_whole_batch_but_batch_norm_does():
    made = objective("rotnet")
    made.check_batch(1, 1)
    made.check_batch(8, 2)
    made.student["encoder"].trunk.final_norm = torch.nn.BatchNorm1d(small.DIM)
    with pytest.raises(ValueError, match=r"train.accumulate is 2; rotnet compares"):
        made.check_batch(8, 2)


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (jigsaw.Config, {"num_permutations": 1}, "objective.num_permutations is 1; it must be at least 2"),
        (jigsaw.Config, {"num_permutations": 20_000}, "objective.num_permutations is 20000; .* at most 10000"),
        (jigsaw.Config, {"tile_size": 1}, "objective.tile_size is 1; it must be at least 2"),  # one is only its mean
        (pirl.Config, {"tile_size": 0}, "objective.tile_size is 0; it must be at least 1"),
        (pirl.Config, {"negatives": 0}, "objective.negatives is 0; nce needs 1 or more"),
    ],
)
def test_wrong_settings_are_named(config, wrong, message):
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_pirl_says_what_it_misses():
    encoder = small.encoder(patch_size=4)
    with pytest.raises(ValueError, match=r"objective.num_samples is 0; pirl remembers every sample"):
        pirl.build(encoder, pirl.Config())
    made = objective("pirl")
    views = views_of(made, 0)
    with pytest.raises(ValueError, match=r"pirl compares 2 views of a sample; data.views makes 1"):
        made.check(views[:1])
    with pytest.raises(ValueError, match="pirl remembers every sample, but these views do not number them"):
        made.check([view._replace(indices=None) for view in views])
    assert instdisc.Config().negatives == 4096
