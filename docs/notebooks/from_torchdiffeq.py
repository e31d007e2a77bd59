# %% [markdown]
# # A script of torchdiffeq, moved
#
# First only the import line changes. Then the call changes, which makes every solver and gradient method available.

# %%
import time

import torch
import torchdiffeq
from torch import nn

import odenet
import odenet_torch

torch.manual_seed(0)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))

    def forward(self, t, y):
        return self.net(y)


field, y0, t = Field(), torch.randn(32, 4), torch.linspace(0.0, 1.0, 5)


def gradient(solve):
    """The gradient by this solve, and its seconds, of three."""
    seconds = []
    for _ in range(3):
        field.zero_grad()
        began = time.perf_counter()
        solve(field, y0, t)[-1].square().mean().backward()
        seconds.append(time.perf_counter() - began)
    return torch.cat([p.grad.flatten() for p in field.parameters()]).double(), min(seconds)


# %% [markdown]
# ## 1. The import line

# %%
options = {"rtol": 1e-6, "atol": 1e-8, "method": "dopri5"}
theirs, before = gradient(lambda *a: torchdiffeq.odeint_adjoint(*a, **options))
ours, after = gradient(lambda *a: odenet_torch.odeint_adjoint(*a, **options))
apart = ((ours - theirs).norm() / theirs.norm()).item()
print(f"gradients differ by {apart:.0e}; {before:.3f} s before, {after:.3f} s after")
assert (ours - theirs).norm() < 1e-3 * theirs.norm()

# %% [markdown]
# ## 2. The call

# %%
exact, _ = gradient(lambda *a: odenet_torch.odeint(*a, rtol=1e-10, atol=1e-10))
for method in ("backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint"):
    found, taken = gradient(
        lambda f, y, ts, method=method: (
            odenet.solve(f, y, t0=0.0, t1=1.0, ts=ts.tolist(), rtol=1e-6, atol=1e-8, gradient=method).ys
        )
    )
    error = ((found - exact).norm() / exact.norm()).item()
    print(f"{method:20} error {error:.0e}, {taken:.3f} s")
    assert error < 1e-3

# %% [markdown]
# ## 3. The module

# %%
ode = odenet_torch.NeuralODE(field, rtol=1e-6, atol=1e-8, gradient="checkpoint")
print(tuple(ode(y0).shape))
