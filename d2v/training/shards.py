"""Weights and moments of a sharded run in files: each process writes its share, and any number of them read it.

In the format of safetensors, whose header says where in its tensor a share lies; written and read by
torch.distributed.checkpoint. Nothing is pickled.
"""

import warnings
from pathlib import Path

import torch
from accelerate.utils import load as load_plain
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

OPTIMIZER = "optimizer.bin"  # where accelerate puts moments that are not sharded
MODEL, MOMENTS = "model.", "optimizer."  # how names in the files begin


def shard_files(checkpoint: Path) -> list[str]:
    """The names of the shares of a checkpoint; none: it is of a run that was not sharded."""
    return sorted(path.name for path in checkpoint.glob("shard-*.safetensors"))


def save_shares(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes this process's share of weights, buffers and moments; every process calls it. OSError: as of the disk."""
    tensors = {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{MOMENTS}{name}/{key}"] = value
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as error:  # the first failure of any process, on all of them
        raise next(iter(error.failures.values()))[0] from None


def load_shares(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Fills weights, buffers and moments, sharded or not, from all shares. ValueError: they are of another model."""
    saved = _sizes(checkpoint)
    tensors = {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    _check({name: size for name, size in saved.items() if name.startswith(MODEL)}, tensors)
    parameters = dict(model.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    for whole_name, size in saved.items():
        if whole_name.startswith(MOMENTS):
            name, _, key = whole_name.removeprefix(MOMENTS).rpartition("/")
            parameter = parameters[name].detach()
            empty = parameter.new_zeros(size) if size != parameter.shape else torch.zeros_like(parameter)
            moments.setdefault(name, {})[key] = tensors[whole_name] = empty
    _read(tensors, checkpoint)
    _take_moments(optimizer, {parameters[name]: state for name, state in moments.items()})


def load_whole(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Fills this process's share of weights, buffers and moments from files of a run that was not sharded.

    ValueError: they are of another model.
    """
    tensors = dict(model.state_dict())
    _check(_sizes(checkpoint), tensors)
    saved = load_plain(checkpoint / OPTIMIZER, map_location="cpu")["state"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {}
    for number, state in saved.items():
        parameter = parameters[number]
        moments[parameter] = {key: _shared_out(value, parameter) for key, value in state.items()}
    _read(tensors, checkpoint)
    _take_moments(optimizer, moments)


def read_shares(checkpoint: Path) -> dict[str, Tensor]:
    """All weights and buffers of a sharded run, whole, in one process."""
    tensors = {}
    for name, value in _reader(checkpoint).read_metadata().state_dict_metadata.items():
        if name.startswith(MODEL):
            tensors[name] = torch.empty(value.size, dtype=value.properties.dtype)  # type: ignore[union-attr]
    _read(tensors, checkpoint)
    return {name.removeprefix(MODEL): value for name, value in tensors.items()}


def _take_moments(optimizer: torch.optim.Optimizer, moments: dict[Tensor, dict[str, Tensor]]) -> None:
    optimizer.state.clear()
    for parameter, state in moments.items():
        optimizer.state[parameter] = state


def _shared_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Of a tensor of a parameter's shape this process's share, beside the parameter's."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _reader(checkpoint: Path) -> HuggingFaceStorageReader:
    return HuggingFaceStorageReader(str(checkpoint))


def _sizes(checkpoint: Path) -> dict[str, torch.Size]:
    """The shape of each tensor in the files, put together."""
    found = _reader(checkpoint).read_metadata().state_dict_metadata
    return {name: value.size for name, value in found.items()}  # type: ignore[union-attr]


def _check(saved: dict[str, torch.Size], wanted: dict[str, Tensor]) -> None:
    """ValueError: other names or shapes."""
    for name in sorted(saved.keys() | wanted.keys()):
        before, now = saved.get(name), wanted[name].shape if name in wanted else None
        if before != now:
            shapes = [tuple(shape) if shape is not None else "missing" for shape in (before, now)]
            raise ValueError(f"size mismatch for {name}: {shapes[0]} in the checkpoint, {shapes[1]} in the model")


def _read(tensors: dict[str, Tensor], checkpoint: Path) -> None:
    """Fills tensors in place; each process reads what it needs by itself."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it is meant
            load(tensors, storage_reader=_reader(checkpoint), no_dist=True)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
