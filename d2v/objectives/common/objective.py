"""Objective: student, teacher and update_teacher; all that training changes lives here."""

import copy
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2v.models.transformer import Trunk
from d2v.training.distributed import shares
from d2v.types import Loss, View

LAYERS = 0x1A7E5  # sets the draw of dropped layers apart from others of the seed and the step


class Objective(nn.Module):
    """What sits in `student` is averaged into `teacher`; predictors and decoders sit beside it.

    `copied`: prefixes of names in `student` that the teacher shares with it: copied at each update instead of averaged.
    `teacher` false: there is none, and nothing to update.
    """

    # parts beside the student whose learning rate stays at its peak (prefixes of names)
    constant_rate: tuple[str, ...] = ()
    # the teacher's batch norms normalise by the batches that it sees; false: it sees none in training
    teacher_sees_batches: ClassVar[bool] = True
    # parameters are read within `forward` alone, where they are whole; false: train.sharding=fsdp is refused
    can_be_sharded: ClassVar[bool] = True
    seed = 0  # what is drawn in a step is a function of it and the step
    step = 0  # the optimizer step that begin_step was last told
    student: Any  # a ModuleDict, as the teacher, of parts that have methods of their own
    teacher: Any

    def __init__(self, copied: tuple[str, ...] = (), *, teacher: bool = True, **averaged: nn.Module):
        """ValueError: a prefix in `copied` that no parameter has."""
        super().__init__()
        self.student = nn.ModuleDict(averaged)
        self.teacher = copy.deepcopy(self.student if teacher else nn.ModuleDict()).requires_grad_(False).eval()
        check_prefixes(copied, self.student)
        self.copied = copied

    def lend(self, student: nn.ModuleDict, teacher: nn.ModuleDict) -> None:
        """From now on student and teacher are another objective's, which trains, moves and saves them: what remains
        this one's is beside them."""
        del self.student, self.teacher
        self.__dict__ |= {"student": student, "teacher": teacher}

    def is_copied(self, name: str) -> bool:
        """Whether the teacher shares the student's parameter of this name."""
        return any(within(name, prefix) for prefix in self.copied)

    def train(self, mode: bool = True) -> "Objective":
        """The teacher stays in evaluation mode, but for its batch norms: as published, they normalise by the batch,
        like the student's."""
        super().train(mode)
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    @property
    def encoders(self) -> tuple[Any, Any]:
        """The student's and the teacher's encoder; the student's twice where there is no teacher."""
        student = self.student["encoder"]
        return student, self.teacher["encoder"] if len(self.teacher) else student

    def exported(self, encoder: Any) -> Any:
        """The model that is saved of an encoder of this method."""
        return encoder

    def check(self, views: list[View]) -> None:
        """ValueError: batches of this form cannot be trained on; asked once, before a run begins."""

    def check_data(self, digest: str) -> None:
        """ValueError: what the method brings was made of other data than the run's, which has this fingerprint; asked
        on one process, with `check`."""

    def check_masks(self, views: list[View]) -> None:
        """ValueError: a run's batches carry masks that the method would not read; asked with `check`."""

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: the method cannot be trained on global batches of this size, cut into so many parts (processes
        times micro-batches)."""

    def begin_step(self, step: int, steps: int) -> None:
        """What a method changes before optimizer step `step` (0 is the first) of `steps`.

        Here: which layers of the student drop, which is the same on all processes, as in fairseq.
        """
        self.step = step
        for module in self.student.modules():
            if isinstance(module, Trunk) and module.config.drops_layers:
                module.layer_draws = np.random.default_rng((self.seed, step, LAYERS))

    def apart(self, views: list[View]) -> list[list[View]]:
        """Groups of views whose losses do not need one another: each has a backward pass of its own, and its memory."""
        return [views]

    def remembered(self) -> list[Tensor]:
        """What a step changes beside the optimizer and the teacher: it is put back after one that is not taken."""
        return list(self.buffers())

    def adjust_gradients(self, step: int, steps: int) -> None:
        """What a method changes in the gradients of step `step`, before they are clipped."""

    def forward(self, views: list[View]) -> Loss:
        """The loss of one batch of views."""
        raise NotImplementedError

    def diagnose(self, views: list[View]) -> dict[str, Tensor]:
        """What else there is to know of a step with these views, at each health check; nothing is changed by it."""
        return {}

    def ema_decay(self, step: int, steps: int) -> float:
        """Decay of the teacher after optimizer step `step` (1 is the first) of `steps`.

        1: it stands still, or there is none.
        """
        return 1.0

    def of_length(self, step: int, steps: int) -> tuple[float, ...]:
        """What of optimizer step `step` (0 is the first) depends on `steps`; a run gets longer only where it stays."""
        return (self.ema_decay(step + 1, steps),)

    @torch.no_grad()
    def update_teacher(self, decay: float, taken: Tensor | None = None) -> None:
        """teacher <- decay * teacher + (1 - decay) * student, in the parameters' float32.

        Shared parts and all buffers are copied. Not the statistics of batch norms: the teacher's are its own, if it
        sees batches. `taken` () bool: false, and it stays, as the student does in a step that is not taken.
        """
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])  # the teacher's, the student's
        copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        student = dict(self.student.named_parameters())
        for name, parameter in self.teacher.named_parameters():
            pair = copied if self.is_copied(name) else averaged
            pair[0].append(parameter)
            pair[1].append(student[name])
        norms: tuple[str, ...] = ()
        if self.teacher_sees_batches:
            modules = self.teacher.named_modules()
            norms = tuple(f"{name}." for name, module in modules if isinstance(module, _BatchNorm))
        buffers = dict(self.student.named_buffers())
        for name, buffer in self.teacher.named_buffers():
            if not name.startswith(norms):
                copied[0].append(buffer)
                copied[1].append(buffers[name])
        if averaged[0] and taken is None:
            torch._foreach_lerp_(shares(averaged[0]), shares(averaged[1]), 1 - decay)
        elif averaged[0] and taken is not None:
            weight = torch.where(taken, 1 - decay, 0.0)  # on the device: nobody waits for it
            torch._foreach_lerp_(shares(averaged[0]), shares(averaged[1]), [weight] * len(averaged[0]))
        if copied[0]:
            torch._foreach_copy_(shares(copied[0]), shares(copied[1]))


def check_together(name: str, batch_size: int, parts: int, world: int) -> None:
    """ValueError: batches that `world` processes do not share evenly, or that are cut into micro-batches, where `name`
    compares all their samples."""
    if parts > world:
        raise ValueError(
            f"train.accumulate is {parts // world}; {name} compares the samples of a whole batch: it must be 1"
        )
    if batch_size % world:
        raise ValueError(f"train.batch_size {batch_size} must be a multiple of the number of processes, {world}")


def within(name: str, prefix: str) -> bool:
    """Whether a parameter's name is, or begins with, the whole parts of `prefix`."""
    return name == prefix or name.startswith(f"{prefix}.")


def freeze(prefixes: Iterable[str], module: nn.Module) -> None:
    """Parameters whose names begin with one of `prefixes` are never trained.

    ValueError: a prefix that no parameter's name begins with.
    """
    check_prefixes(prefixes, module)
    for name, parameter in module.named_parameters():
        if any(within(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)


def freeze_mask_tokens(encoder: nn.Module) -> None:
    """Mask tokens are never trained, of a method that hides nothing."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(".mask_token"):
            parameter.requires_grad_(False)


def check_prefixes(prefixes: Iterable[str], module: nn.Module) -> None:
    """ValueError: a prefix that no parameter's name begins with."""
    names = [name for name, _ in module.named_parameters()]
    for prefix in prefixes:
        if not any(within(name, prefix) for name in names):
            parts = sorted({name.rsplit(".", 2)[0] for name in names})
            raise ValueError(f"no parameter of the encoder begins with {prefix!r}; they begin with {', '.join(parts)}")
