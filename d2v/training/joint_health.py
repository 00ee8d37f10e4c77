"""Health of a joint run: each modality's own check and verdict; the run's is the worst, and names it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.training.health import HealthCheck
from d2v.training.run_log import of_name
from d2v.training.verdict import Verdict, better

WORST = ("collapsed", "collapsing", "too early", "healthy")


class JointHealth:
    """The health checks of a run's modalities, as one."""

    def __init__(self, checks: Mapping[str, HealthCheck]):
        self.checks = checks
        self.names = tuple(checks)

    def __call__(
        self, student: D2vModel, teacher: D2vModel, device: torch.device
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics and features of each, behind the modality's name and a slash."""
        metrics, features = {}, {}
        for name, check in self.checks.items():
            numbers, found = check(student, teacher, device)
            metrics |= {f"{name}/{key}": value for key, value in numbers.items()}
            features |= {f"{name}/{key}": value for key, value in found.items()}
        return metrics, features

    def judge(self, records: list[dict]) -> Verdict:
        """The worst of the modalities' verdicts."""
        verdicts = self.verdicts(records)
        name = min(verdicts, key=lambda one: WORST.index(verdicts[one].state))
        worst = verdicts[name]
        if worst.state == "healthy":
            return worst._replace(reason="; ".join(f"{one}: {verdict.reason}" for one, verdict in verdicts.items()))
        return worst._replace(reason=f"{name}: {worst.reason}")

    def verdicts(self, records: list[dict]) -> dict[str, Verdict]:
        """Of each modality."""
        return {name: check.judge(of_name(records, name)) for name, check in self.checks.items()}

    def better(self, records: list[dict]) -> str:
        """Which of "student" and "teacher" is better for more modalities; the teacher where they are as many."""
        students = sum(better(of_name(records, name)) == "student" for name in self.names)
        return "student" if 2 * students > len(self.names) else "teacher"
