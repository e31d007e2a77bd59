"""Numbers that the processes of a distributed training agree on, so that all of them make the same choice."""

from __future__ import annotations

import torch
import torch.distributed as dist


def several() -> bool:
    """Whether this is one of several processes of a training."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agreed(numbers: list[float], *, least: bool = False) -> list[float]:
    """The largest of each number over all processes (NaN where one has it), or the least.

    All processes of the default group have to come here, as they have to for the gradients of data parallelism.
    """
    if not several():
        return numbers
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    sent = torch.tensor(numbers, dtype=torch.float64, device=device)
    unknown = sent.isnan().to(torch.float64)
    sent = sent.nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
    dist.all_reduce(sent, op=dist.ReduceOp.MIN if least else dist.ReduceOp.MAX)
    dist.all_reduce(unknown, op=dist.ReduceOp.MAX)
    return [float("nan") if nan else value for value, nan in zip(sent.tolist(), unknown.tolist(), strict=True)]
