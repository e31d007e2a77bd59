# %% [markdown]
# # 1000 layers in the memory of ten
#
# The memory that each gradient method keeps between the forward and the backward pass, measured over depth.

# %%
import gc
import time

import matplotlib.pyplot as plt
import torch
from torch import nn

from odenet_torch import ResidualStack

x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
METHODS = ("backprop", "checkpoint:states=32", "discrete-adjoint")


def network(depth, gradient):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(depth)]
    return ResidualStack(blocks, gradient=gradient)


def storages():
    """Of all tensors that Python sees."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


def kept(stack):
    """Bytes that wait for the backward pass: saved by autograd, or by a gradient method in objects of its own."""
    before, saved = storages(), {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = stack(x).square().mean()
    waiting = {**saved, **storages()}
    del loss
    return sum(size for place, size in waiting.items() if place not in before)


depths = (10, 100, 1000)
memory = {method: [kept(network(n, method)) for n in depths] for method in METHODS}
for method, found in memory.items():
    print(f"{method:22}", "  ".join(f"N={n}: {size / 1024:8.1f} KiB" for n, size in zip(depths, found, strict=True)))
assert memory["discrete-adjoint"][2] <= memory["backprop"][0]

# %% [markdown]
# The gradients of the 1000 layers: `checkpoint` gives the same bits as backprop; the certificate of the discrete
# adjoint estimates its error.

# %%
gradients, exact = {}, None
for method in METHODS:
    stack = network(1000, method)
    began = time.perf_counter()
    stack(x).square().mean().backward()
    taken = time.perf_counter() - began
    found = torch.cat([p.grad.flatten() for p in stack.parameters()]).double()
    exact = found if exact is None else exact
    error = ((found - exact).norm() / exact.norm()).item()
    said = f", certificate {stack.certificate:.1e}" if stack.certificate is not None else ""
    print(f"{method:22} error {error:.1e}{said}, {taken:.2f} s")
    assert error < 1e-3

# %%
for method, found in memory.items():
    plt.loglog(depths, [max(size, 1) / 1024 for size in found], "o-", label=method)
plt.xlabel("layers N")
plt.ylabel("KiB kept for the backward pass")
plt.legend()
plt.show()
