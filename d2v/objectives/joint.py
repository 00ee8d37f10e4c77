"""Several methods around one student and one EMA teacher, each with its own modality, weight and steps.

`total` of a part is a sum over its predictions: what a step minimises is the sum over parts of the weight times the
mean over predictions, so that a modality with more tokens does not weigh more.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from d2v.models.alignment import D2vForAlignment
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.parts import AUTO, BETWEEN, PROJECTIONS, JointSettings, heads_of, names_of, seen_by
from d2v.training.distributed import all_mean, all_sum, pooled
from d2v.training.mixes import Mix, Together, Turns
from d2v.training.schedules import linear_decay
from d2v.types import Loss, Pooled, View


class Joint(Objective):
    """One student and one teacher, and the parts that read and train them."""

    can_be_sharded = False  # diagnose takes gradients of parts by themselves

    def __init__(self, encoder: D2vModel, parts: Mapping[str, Objective], config: JointSettings, seed: int):
        """`parts` were built around encoders of their own, which go. ValueError: a weight or share of no part."""
        heads = heads_of(parts)
        taught = [name for name, part in parts.items() if len(part.teacher)]
        copied: list[str] = []
        for part in parts.values():
            copied += part.copied
        super().__init__(tuple(dict.fromkeys(copied)), teacher=bool(taught), encoder=encoder, **heads)
        for key in heads:
            if taught and not any(key.startswith(f"{name}_") for name in taught):
                del self.teacher[key]  # of a part without a teacher, or projections
        self.config, self.seed = config, seed
        self.parts: Any = nn.ModuleDict(parts)  # Objectives
        constant_rate: list[str] = []
        for name, part in parts.items():
            modalities = name.split(BETWEEN)
            part.lend(
                seen_by(self.student, name, modalities),
                seen_by(self.teacher if name in taught else None, name, modalities),
            )
            constant_rate += [f"parts.{name}.{prefix}" for prefix in part.constant_rate]
        self.constant_rate = tuple(constant_rate)
        auto = config.weights == AUTO
        known = {} if auto else config.weights
        for what, values in (("weights", known), ("shares", config.shares)):
            for name in values:
                if name not in parts:
                    raise ValueError(
                        f"objective.{what} names {name!r}, which is no part; the parts are {', '.join(parts)}"
                    )
        self.weights: Tensor  # (P,) float32, of each part's mean loss
        self.register_buffer("weights", torch.tensor([float(known.get(name, 1)) for name in parts]))
        on = {name: int(known.get(name, 1) > 0) for name in parts}
        if not any(on.values()):
            raise ValueError("objective.weights is 0 for every part: there is nothing to train")
        shares = {name: int(config.shares.get(name, 1)) * on[name] for name in parts}
        self.mix: Mix = Turns(shares, seed) if config.mix == "turns" else Together(on)
        self.places = {name: place for place, name in enumerate(parts)}

    def exported(self, encoder: D2vModel) -> PreTrainedModel:
        """What is saved of an encoder: with the projections, where there are pairs."""
        if PROJECTIONS not in self.student:
            return encoder
        return D2vForAlignment.of(encoder, self.student[PROJECTIONS])

    def of_part(self, views: list[View]) -> dict[str, list[View]]:
        """The views of each part, in the order in which parts come."""
        found: dict[str, list[View]] = {}
        for view in views:
            found.setdefault(view.part, []).append(view)
        return found

    def apart(self, views: list[View]) -> list[list[View]]:
        """Those of each part: a step then takes the memory of the largest, not of all."""
        return list(self.of_part(views).values())

    def forward(self, views: list[View]) -> Loss:
        """The weighted sum of the parts' mean losses, over all processes.

        Its count is 1 with the first part of the step, and 0 of others that come apart from it. Each micro-batch has
        its own means, of which the step takes the mean.
        """
        groups = self.of_part(views)
        first = next(iter(self.mix.at(self.step)))
        total: Tensor = torch.zeros((), device=self.weights.device)
        metrics: dict[str, Tensor | Pooled] = {}
        for name, group in groups.items():
            loss = self.parts[name](group)
            count = all_mean(loss.count.float()).clamp(min=1)
            total = total + self.weights[self.places[name]] * (loss.total / count)
            sums = torch.stack([loss.total.detach().float(), loss.count.float()])
            metrics[f"{name}/loss"] = pooled(sums, lambda sums: (sums[0] / sums[1]).float())
            metrics |= {f"{name}/{key}": value for key, value in loss.metrics.items()}
        return Loss(total, torch.full((), float(first in groups), device=total.device), metrics)

    def check(self, views: list[View]) -> None:
        """ValueError: as of the parts."""
        for name, group in self.of_part(views).items():
            with names_of(name):
                self.parts[name].check(group)

    def check_masks(self, views: list[View]) -> None:
        """ValueError: as of the parts."""
        for name, group in self.of_part(views).items():
            with names_of(name):
                self.parts[name].check_masks(group)

    def check_batch(self, batch_size: Any, parts: int) -> None:
        """`batch_size`: by part. ValueError: as of the parts."""
        for name, part in self.parts.items():
            with names_of(name):
                part.check_batch(batch_size[name], parts)

    def begin_step(self, step: int, steps: int) -> None:
        """Tells the parts of this step which of their own it is."""
        super().begin_step(step, steps)
        ends = self.mix.before(steps)
        for name, own in self.mix.at(step).items():
            self.parts[name].begin_step(own, ends[name])

    def remembered(self) -> list[Tensor]:
        """Of all parts."""
        found = [*self.student.buffers(), *self.teacher.buffers()]
        for part in self.parts.values():
            found += part.remembered()
        return found

    def adjust_gradients(self, step: int, steps: int) -> None:
        """Of the parts of this step."""
        ends = self.mix.before(steps)
        for name, own in self.mix.at(step).items():
            self.parts[name].adjust_gradients(own, ends[name])

    def ema_decay(self, step: int, steps: int) -> float:
        """Linear from ema_decay to ema_end_decay over ema_anneal_steps, whatever was trained in them."""
        return linear_decay(step, self.config.ema_decay, self.config.ema_end_decay, self.config.ema_anneal_steps)

    def of_length(self, step: int, steps: int) -> tuple[float, ...]:
        """Of the parts of this step, and the teacher's decay."""
        found, ends = [self.ema_decay(step + 1, steps)], self.mix.before(steps)
        for name, own in self.mix.at(step).items():
            found += self.parts[name].of_length(own, ends[name])
        return tuple(found)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within it steps may be tried: gradients, what parts remember and randomness are then as before."""
        before = [x.clone() for x in self.remembered()]
        device = self.weights.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
        self.zero_grad(set_to_none=True)
        with torch.no_grad():
            for x, old in zip(self.remembered(), before, strict=True):
                x.copy_(old)

    def diagnose(self, views: list[View]) -> dict[str, Tensor]:
        """How hard each part pulls the trunk: the length of its gradient there, times its weight."""
        with self.untouched():
            norms = self.trunk_norms(views)
        return {f"{name}/trunk_norm": self.weights[self.places[name]] * norm for name, norm in norms.items()}

    def trunk_norms(self, views: list[View]) -> dict[str, Tensor]:
        """The length of the gradient of each part's mean loss in the trunk, (), over all processes; of a frozen trunk
        none."""
        norms: dict[str, Tensor] = {}
        trunk = [p for p in self.student["encoder"].trunk.parameters() if p.requires_grad]
        if not trunk:
            return norms
        for name, group in self.of_part(views).items():
            loss = self.parts[name](group)
            mean = loss.total / all_sum(loss.count.float()).clamp(min=1)
            gradients = [g for g in torch.autograd.grad(mean, trunk, allow_unused=True) if g is not None]
            norms[name] = torch.stack([all_sum(g.float()).norm() for g in gradients]).norm()
        return norms
