"""Small models of the methods that compare views without negatives, and of data2vec with a guard; steps of them on
views of noise."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import small
import tiny
import torch
import torch.distributed as dist
from torch import Tensor

from d2v.objectives import barlow, data2vec, data2vec2, lejepa, simdino, vicreg, visreg, wmse
from d2v.objectives.common.objective import Objective
from d2v.types import Mask, View

BATCH, STEPS, MASKS = 8, 5, 2
HEAD = {"hidden_dim": 12, "out_dim": 6}
DECODER = {"dim": 16, "groups": 2, "layers": 1, "noise": 0.0}
MODULES = {
    "barlow": barlow,
    "vicreg": vicreg,
    "lejepa": lejepa,
    "visreg": visreg,
    "simdino": simdino,
    "wmse": wmse,
    "data2vec": data2vec,
    "data2vec2": data2vec2,
}
# what is trained here: the method, its settings, and how many local views there are
CASES = {
    "barlow": ("barlow", HEAD, 0),
    "vicreg": ("vicreg", HEAD, 0),
    "lejepa": ("lejepa", {**HEAD, "num_directions": 16, "weight": 0.5}, 0),
    "lejepa_local": ("lejepa", {**HEAD, "num_directions": 16}, 2),
    "visreg": ("visreg", {**HEAD, "num_directions": 16}, 0),
    "visreg_local": ("visreg", {**HEAD, "num_directions": 16}, 1),
    "simdino": ("simdino", HEAD, 0),
    "simdino_local": ("simdino", {**HEAD, "head_norm": True}, 2),
    "wmse": ("wmse", {"hidden_dim": 12, "out_dim": 2, "sub_batch": 4, "rounds": 2}, 0),
    "data2vec_sigreg": ("data2vec", {"top_k": 1, "guard": "sigreg"}, 0),
    "data2vec_visreg": ("data2vec", {"top_k": 1, "guard": "visreg", "guard_weight": 1.0}, 0),
    "data2vec2_visreg": ("data2vec2", {"top_k": 1, "guard": "visreg"}, 0),
}


def objective(case: str, modality: str = "image", **settings) -> Objective:
    """In training mode, the same whenever it is made; a teacher has moved away from the student."""
    name, given, _ = CASES[case]
    torch.manual_seed(0)
    module = MODULES[name]
    frontend = {"mask_token": False, "class_token": False} if name == "data2vec2" else {}
    config = module.Config(**given | settings)
    if name == "data2vec2":
        config.decoder = type(config.decoder)(**{**vars(config.decoder), **decoder_of(config)})
    made = module.build(small.encoder(modality, **frontend), config)
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made.train()


def decoder_of(config) -> dict:
    """Of the settings of a decoder those that are there."""
    return {name: value for name, value in DECODER.items() if name in vars(config.decoder)}


def views_of(case: str, step: int, part: slice = slice(None), modality: str = "image") -> list[View]:
    """Two views, or one masked one, of these samples, and the local ones."""
    name, _, local = CASES[case]
    views = [small.view(modality, BATCH, seed=10 * step + number) for number in range(2)]
    if name.startswith("data2vec"):
        view = views[0]
        generator = torch.Generator().manual_seed(step)
        order = torch.rand(BATCH, MASKS, 4, generator=generator).argsort(dim=2)  # of the four patches
        hidden = torch.zeros(BATCH, MASKS, 4, dtype=torch.bool).scatter(2, order[..., :2], True)
        if name == "data2vec":
            view = view._replace(mask=Mask(hidden[part, 0]))
        else:
            keep = order[..., 2:].sort(dim=2).values
            view = view._replace(mask=Mask(hidden[part].flatten(0, 1), keep[part].flatten(0, 1)))
        return [small.rows(view._replace(mask=None), part)._replace(mask=view.mask)]
    for number in range(local):
        whole = small.view(modality, BATCH, seed=10 * step + 5 + number)
        pixels = whole.inputs["pixel_values"][:, :, :8, :8].contiguous()
        views.append(whole._replace(inputs={"pixel_values": pixels}, local=True))
    return [small.rows(view, part)._replace(local=view.local) for view in views]


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """What is float32 is float64: differences of more than rounding cannot hide in it."""
    single = Tensor.float
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = single  # type: ignore[method-assign]


@in_double()
def trained(case: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Losses and gradients of three steps, as the loop takes them, and all that the objective then keeps."""
    model, found = objective(case), {}
    model.seed = 3
    model.check_batch(BATCH, world)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    for step in range(3):
        model.begin_step(step, STEPS)
        loss = model(views_of(case, step, slice(rank, None, world)))
        loss.total.backward()
        sums = torch.stack([loss.total.detach(), loss.count.float()])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        for value in (sums, *gradients):
            if world > 1:
                dist.all_reduce(value)
        found[f"loss.{step}"] = sums[0] / sums[1]
        with torch.no_grad():
            for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                found[f"gradient.{step}.{key}"] = gradient / sums[1]
                parameter -= 0.02 * gradient / sums[1]
        model.zero_grad()
        if len(model.teacher):
            model.update_teacher(0.9)
    return found | {key: value.clone() for key, value in model.state_dict().items()}


Found = dict[str, Tensor]


def by_two(folder: Path, trained: Callable[[str, int, int], Found], cases: Collection[str]) -> list[dict[str, Found]]:
    """What each of two processes has of `trained(case, rank, 2)`, by case."""
    assert tiny.wait(tiny.start(_one_of_two, folder, trained, list(cases), world=2)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _one_of_two(folder: Path, trained: Callable[[str, int, int], Found], cases: Collection[str]) -> None:
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    torch.save({case: trained(case, rank, 2) for case in cases}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def assert_equal(found: Found, one: Found) -> None:
    """To 1e-6, which is all that may lie between two processes and one."""
    assert found.keys() == one.keys()
    for key, value in one.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
