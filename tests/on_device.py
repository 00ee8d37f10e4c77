"""A `cuda` device without a GPU: what lies on it is torch's FakeTensor, a shape without numbers; the CPU computes.

Operators whose inputs lie on two devices fail as on a GPU, and whatever makes the CPU wait for the device is listed.
"""

import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CUDA = torch.device("cuda", 0)
# operators whose result or whose size the CPU must read
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.unique_dim}
READS |= {aten._unique2, aten.bincount, aten.unique_consecutive, aten.nonzero_numpy, aten.masked_scatter}


class FakeDevice(TorchDispatchMode):
    """Within it "cuda" is such a device; `waits` lists where the CPU waited for it, as "file:line operator"."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: list[str] = []
        self.patches = pytest.MonkeyPatch()

    def __enter__(self) -> "FakeDevice":
        self.patches.setattr(torch.Tensor, "backward", backward)
        self.patches.setattr(torch.autograd, "grad", gradient_by)
        self.patches.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        self.patches.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        self.patches.setattr(torch, "Generator", Generator)
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)
        self.patches.undo()
        for name, module in list(sys.modules.items()):
            if name.startswith("d2v."):  # nothing of this device is remembered
                for thing in vars(module).values():
                    getattr(thing, "cache_clear", lambda: None)()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tree_iter((args, kwargs)))
        there = [x for x in inputs if isinstance(x, FakeTensor)]
        to = kwargs.get("device")
        if not there and (to is None or torch.device(to).type == "cpu"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if self._waits(func, args, kwargs, bool(there)):
            self.waits.append(f"{_line()} {func}")
        if kwargs.get("generator") is not None:
            kwargs = {**kwargs, "generator": None}
        return func(*args, **kwargs)

    def _waits(self, func: Any, args: Any, kwargs: Any, reads_device: bool) -> bool:
        packet = func.overloadpacket
        if packet in READS:
            return True
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if packet is aten.repeat_interleave:
            return kwargs.get("output_size") is None  # of a tensor of numbers
        if packet is aten._to_copy:
            across = args[0].device.type != torch.device(kwargs.get("device") or args[0].device).type
            return across and not kwargs.get("non_blocking")
        if packet is aten.copy_:
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            return args[0].device.type != args[1].device.type and blocking
        return False


class Generator(torch.Generator):
    """A CPU's that says it is the device's; nothing is drawn from it."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        """Of the CPU wherever it is said to be."""
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        """Where it is said to be."""
        return self.where


def _line() -> str:
    """Where the project is, innermost."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(TESTS):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


def moved(module: nn.Module) -> nn.Module:
    """The module with new parameters and buffers on the device, within FakeDevice."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.to(CUDA)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """In place of autograd's engine, which asks the driver of a GPU for its streams: each node of the graph in turn."""
    start = loss.grad_fn
    nodes, waiting, stack = {start}, Counter(), [start]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in nodes:
                    nodes.add(node)
                    stack.append(node)
    incoming: dict[Any, list[Tensor | None]] = {node: [None] * len(node._input_metadata) for node in nodes}
    incoming[start] = [torch.ones_like(loss)]
    ready = [start]
    while ready:
        node = ready.pop()
        gradients = getattr(node, "apply", node)(*incoming.pop(node))
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        for (other, number), gradient in zip(node.next_functions, gradients, strict=False):
            if other is None:
                continue
            if gradient is not None:
                wanted, known = other._input_metadata[number], incoming[other][number]
                gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                incoming[other][number] = gradient if known is None else known + gradient
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)


def gradient_by(loss: Tensor, leaf: Tensor) -> tuple[Tensor]:
    """In place of torch.autograd.grad, by one leaf."""
    kept, leaf.grad = leaf.grad, None
    backward(loss)
    found, leaf.grad = leaf.grad, kept
    assert found is not None
    return (found,)
