"""Weights, gradients and the optimiser's state split among processes (FSDP2), and put together to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn


def shard(model: nn.Module, blocks: Collection[str], device: torch.device) -> None:
    """Split a model among all processes, in place; each block's weights are together only while it is computed.

    Args:
        model: in the memory of each process, on ``device`` or on the host.
        blocks: class names of its repeated blocks.
        device: of this process.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_weights(model: nn.Module, *, wanted: bool) -> dict[str, torch.Tensor]:
    """A model's ``state_dict`` on the host, tied weights still tied; all processes call it.

    Empty where it is not ``wanted``: a process that does not write needs no memory for it.
    """
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen[id(value)] = _whole(value.detach(), wanted=wanted)
        found[name] = seen[id(value)]
    return found if wanted else {}


def share_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let its ``state_dict`` be whole, as that of a model that is not split, and take such a one.

    All processes call ``state_dict``, and then have the whole state on the host.
    """
    optimizer.register_state_dict_post_hook(_put_together)
    optimizer.register_load_state_dict_pre_hook(_split)


def _put_together(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    whole = {
        number: {name: _whole(value, wanted=True) for name, value in of_weight.items()}
        for number, of_weight in state["state"].items()
    }
    return {**state, "state": whole}


def _split(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    split = {
        number: {name: _like(value, weights[number]) for name, value in of_weight.items()}
        for number, of_weight in state["state"].items()
    }
    return {**state, "state": split}


def _whole(value: Any, *, wanted: bool) -> Any:  # noqa: ANN401 - the state of an optimiser also holds numbers
    if not isinstance(value, torch.Tensor):
        return value
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.cpu() if wanted else full.new_empty(0)


def _like(value: Any, weight: torch.Tensor) -> Any:  # noqa: ANN401
    """``value`` split as ``weight`` is, if it has its shape; every process has the whole, so none sends it."""
    if not isinstance(weight, DTensor) or not isinstance(value, torch.Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
