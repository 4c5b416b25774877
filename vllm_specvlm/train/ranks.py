"""The processes of one run: one alone, or those that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """This process among all. Every method is called by all of them, in the same order."""

    def __init__(self) -> None:
        """Joins the processes that `torchrun`'s environment names; CUDA devices are taken by local rank."""
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def total(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def totals(self, values: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> dict[str, float]:
        """Sums of scalars over all processes, by name; of a process that has none of a name, 0.

        `names` are the same in all processes, in the same order.
        """
        none = torch.zeros((), dtype=torch.float64, device=device)
        mine = torch.stack([values[name].double() if name in values else none for name in names])
        return dict(zip(names, self.total(mine).tolist(), strict=True))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over all processes; a process without one, whose gate took another branch, counts as 0."""
        if self.count == 1:
            return
        wanted = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in wanted])
        dist.all_reduce(flat)
        for parameter, part in zip(wanted, flat.split([p.numel() for p in wanted]), strict=True):
            parameter.grad = part.view_as(parameter)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """All take the first process's values, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, trouble: str | None) -> str | None:
        """The first process's trouble, for all; None if it has none."""
        if self.count == 1:
            return trouble
        said = [trouble]
        dist.broadcast_object_list(said, 0)
        return said[0]

    def leave(self) -> None:
        """Before the process ends."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()
