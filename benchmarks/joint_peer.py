"""The rival: MoCo v2 and DINO as lightly's published examples build them from its parts, on a backbone of timm.

As in those examples each view is a forward pass of its own and torch chooses the optimizer's kernel. `tuned`: views of
one size are joined in one pass, as in lightly's ImageNet benchmark of DINO, and the kernel is fused.
V views, B samples, S pixels along a side, P width of a projection.
"""

import timm
import torch
from joint_work import DINO_TEMPERATURE, MOCO_TEMPERATURE, MOMENTUM, RECIPES, JointWork
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models.modules import DINOProjectionHead, MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn


def make_backbone(work: JointWork) -> nn.Module:
    """(B, 3, S, S) -> (B, D), the mean over positions, after a ViT's last norm."""
    vit = {"img_size": work.size, "dynamic_img_size": True, "fc_norm": False} if "vit" in work.backbone else {}
    return timm.create_model(work.backbone, num_classes=0, global_pool="avg", **vit)


def make_head(work: JointWork) -> nn.Module:
    """(B, D) -> (B, P)."""
    if work.method == "moco":
        return MoCoProjectionHead(work.num_features)
    return DINOProjectionHead(work.num_features, output_dim=work.prototypes)


class Peer(nn.Module):
    """Student, teacher, and the loss."""

    def __init__(self, work: JointWork, tuned: bool):
        super().__init__()
        self.method, self.tuned = work.method, tuned
        self.student, self.teacher = (nn.Sequential(make_backbone(work), make_head(work)) for _ in range(2))
        self.teacher.load_state_dict(self.student.state_dict())
        deactivate_requires_grad(self.teacher)
        if work.method == "moco":
            self.criterion = NTXentLoss(MOCO_TEMPERATURE, memory_bank_size=(work.queue, 128))
        else:
            self.criterion = DINOLoss(work.prototypes, teacher_temp=DINO_TEMPERATURE)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Mean over samples."""
        if self.method == "moco":
            query, key = views
            return self.criterion(self.student(query), self.teacher(key))
        return self.criterion(self.outputs(self.teacher, views[:2]), self.outputs(self.student, views))

    def outputs(self, side: nn.Module, views: list[Tensor]) -> list[Tensor]:
        """(B, P) of each view."""
        if not self.tuned:
            return [side(view) for view in views]
        rows: list[Tensor] = []
        for group in (views[:2], views[2:]):
            if group:
                rows += side(torch.cat(group)).chunk(len(group))
        return rows


class PeerStep:
    """One optimizer step."""

    def __init__(self, work: JointWork, tuned: bool):
        self.model, self.recipe = Peer(work, tuned).train(), RECIPES[work.method]
        self.parameters = list(self.model.student.parameters())
        settings = {"lr": self.recipe.lr, "weight_decay": self.recipe.weight_decay, "fused": True if tuned else None}
        trained = [p for p in self.parameters if p.requires_grad]
        sgd = self.recipe.optimizer == "sgd"
        self.optimizer = (
            torch.optim.SGD(trained, momentum=MOMENTUM, **settings) if sgd else torch.optim.AdamW(trained, **settings)
        )

    def __call__(self, views: list[Tensor]) -> float:
        """Everything but the teacher's update; the loss of a sample."""
        loss = self.model(views)
        loss.backward()
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def update_teacher(self) -> None:
        update_momentum(self.model.student, self.model.teacher, self.recipe.ema_decay)
