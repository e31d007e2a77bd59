"""Two processes on Gloo, of which one loads torch and forks: `python _stages.py FILE` prints what they found, as JSON.

Run by test_processes. A deep stack in two halves by torch.distributed.pipelining, with each gradient method; each of
them and `gradient="auto"` under DistributedDataParallel and fully_shard.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings

import torch
import torch.distributed as dist
from _rank import in_parallel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

import odenet
from odenet_torch import ResidualStack

METHODS = {
    "backprop": "euler",
    "checkpoint": "euler",
    "checkpoint:states=2": "euler",
    "discrete-adjoint": "euler",
    "continuous-adjoint": "euler",
    "reversible": "alf",
}
DEPTH = 6


def blocks(generator: int, count: int) -> list[nn.Module]:
    torch.manual_seed(generator)
    return [nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double() for _ in range(count)]


def stack(half, gradient):
    """Half of the layers over half of the time, so that two of them are the whole."""
    layers, t0 = blocks(half, DEPTH // 2), half / 2
    solver = METHODS[gradient]
    return ResidualStack(layers, solver=solver, gradient=gradient, along="piecewise", t0=t0, t1=t0 + 0.5)


def loss(outputs, targets):
    return (outputs - targets).square().mean()


def apart(found, expected) -> float:
    pairs = [(g.full_tensor() if hasattr(g, "full_tensor") else g, e) for g, e in zip(found, expected, strict=True)]
    return max(float((g - e).norm() / e.norm()) for g, e in pairs)


def pipelined(rank: int, gradient: str, kind, x, y) -> tuple[float, float]:
    """How far the gradients of this rank's half, over four micro-batches, are from those of one process."""
    halves = [stack(half, gradient) for half in range(2)]
    like = torch.zeros_like(
        x[:2], requires_grad=True
    )  # else a first pass on memory that nobody has written finds the shapes
    stage = PipelineStage(halves[rank], rank, 2, torch.device("cpu"), input_args=(like,), output_args=(like,))
    schedule = kind(stage, n_microbatches=4, loss_fn=loss)
    losses: list[torch.Tensor] = []
    if rank == 0:
        schedule.step(x)
    else:
        schedule.step(target=y, losses=losses)
    alone = nn.Sequential(*[stack(half, gradient) for half in range(2)])
    value = loss(alone(x), y)
    value.backward()
    expected = [p.grad for p in alone[rank].parameters()]
    off = abs(float(torch.stack(losses).mean().detach() - value.detach())) if rank == 1 else 0.0
    return apart([p.grad for p in halves[rank].parameters()], expected), off


def automatic(rank: int, wrap, x) -> tuple[float, list[str]]:
    """Gradients of five steps against those of one process, and what this process chose."""
    mine = x[4 * rank : 4 * rank + 4]
    made = [nn.Sequential(nn.Linear(4, 4), ResidualStack(blocks(0, DEPTH), gradient=g)) for g in ("auto", "backprop")]
    made[1][0].load_state_dict(made[0][0].double().state_dict())
    made[1].double()
    wrapped, off = wrap(made[0]), []
    for step in range(5):
        for network, batch in ((wrapped, mine), (made[1], x)):
            network.zero_grad()
            (network(batch * (1 + step)).square().mean()).backward()
        off.append(apart([p.grad for p in made[0].parameters()], [p.grad for p in made[1].parameters()]))
    return max(off), [str(getattr(made[0][1], "gradient", None)), str(odenet.gradient("auto").label)]


def main(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    # the other warnings are errors: these gradients, of another function, are compared with themselves
    warnings.filterwarnings("ignore", "The certificate of continuous-adjoint", odenet.GradientWarning)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(8, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, float] = {}
    for gradient in METHODS:
        both_kinds = gradient in ("checkpoint", "discrete-adjoint") and torch.__version__ >= "2.8"  # 1F1B of 2.7 stops
        kinds = (ScheduleGPipe, Schedule1F1B) if both_kinds else (ScheduleGPipe,)
        for kind in kinds:
            off, value = pipelined(rank, gradient, kind, x, y)
            found[f"{kind.__name__} {gradient}"] = max(off, value)
    for name, wrap in (("DDP", DistributedDataParallel), ("FSDP", lambda net: fully_shard(net, mesh=mesh))):
        found[f"{name} auto"], chosen = automatic(rank, wrap, x)
        every: list = [None, None]
        dist.all_gather_object(every, chosen)
        assert every[0] == every[1], every
    found |= in_parallel(rank, mesh)
    both: list = [None, None]
    dist.all_gather_object(both, found)
    if rank == 1:
        print(json.dumps({name: max(each[name] for each in both) for name in found}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    child, status = os.fork(), 0
    try:
        main(int(child != 0), sys.argv[1])
    except BaseException:
        traceback.print_exc()
        status = 1
    if child:
        status |= os.waitpid(child, 0)[1] != 0
    sys.stderr.flush()
    os._exit(status)  # threads of Gloo that still run would end the interpreter with an abort, now and then
