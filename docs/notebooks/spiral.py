# %% [markdown]
# # A spiral and a flow: two Neural ODEs
#
# A field that learns a spiral from points on it, with adaptive steps and an exact gradient that stores a few states;
# and a continuous normalising flow that learns a density, with equal steps.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import odenet

torch.manual_seed(0)
truth = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
ts = torch.linspace(0.0, 5.0, 60).tolist()
tolerances = {"rtol": 1e-5, "atol": 1e-6}
span = {"t0": 0.0, "t1": ts[-1], "ts": ts}
spiral = odenet.solve(lambda t, y: (y**3) @ truth, torch.tensor([[2.0, 0.0]]), **span, **tolerances).ys

# %% [markdown]
# The field is a small network of $y^3$, as in torchdiffeq's example. Each training step starts at random points of the
# spiral and solves over the next ten times.

# %%
net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
losses = []
for _ in range(120):
    first = torch.randint(0, len(ts) - 10, (16,))
    targets = torch.stack([spiral[n : n + 10, 0] for n in first], 1)
    found = odenet.solve(
        lambda t, y: net(y**3), targets[0], t0=0.0, t1=ts[9], ts=ts[:10], rtol=1e-4, atol=1e-5, gradient="checkpoint"
    )
    loss = (found.ys - targets).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with torch.no_grad():
    learnt = odenet.solve(lambda t, y: net(y**3), spiral[0], **span, **tolerances)
print(f"mean error of the points: {losses[0]:.3f} at first, {sum(losses[-10:]) / 10:.3f} in the end")
print(f"{learnt.stats.accepted} steps, {learnt.stats.f_evaluations} evaluations of the network")
assert sum(losses[-10:]) < sum(losses[:10]) / 3

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
axes[0].plot(*spiral[:, 0].T, "o", markersize=3, label="given")
axes[0].plot(*learnt.ys[:, 0].T, label="learnt")
axes[0].legend()
axes[1].semilogy(losses)
axes[1].set_xlabel("step of training")
axes[1].set_ylabel("mean error")
plt.show()

# %% [markdown]
# ## A continuous normalising flow
#
# The flow transforms points of the plane into a Gaussian. The logarithm of their density is a second part of the state
# (a state may be any tree); its derivative is minus the trace of the field's Jacobian.

# %%
angles = math.pi * torch.rand(256)
upper = torch.stack((torch.cos(angles), torch.sin(angles)), 1)
lower = torch.stack((1 - torch.cos(angles), 0.5 - torch.sin(angles)), 1)
data = torch.cat((upper, lower)) - torch.tensor([0.5, 0.25]) + 0.08 * torch.randn(512, 2)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))

    def velocity(self, t, x):
        return self.net(torch.cat((x, torch.full_like(x[:, :1], float(t))), 1))

    def forward(self, t, state):
        x, _ = state
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = self.velocity(t, x)
            trace = sum(torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
        return v, -trace


flow = Flow()
normal = torch.distributions.Normal(0.0, 1.0)
optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
steps = []
for _ in range(120):
    x = data[torch.randint(0, len(data), (128,))]
    start = (x, torch.zeros(len(x)))
    end, change = odenet.solve(flow, start, t0=0.0, t1=1.0, steps=6, solver="rk4", gradient="backprop").y1
    loss = -(normal.log_prob(end).sum(1) - change).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    steps.append(loss.item())
print(f"negative logarithm of the likelihood: {steps[0]:.2f} at first, {sum(steps[-10:]) / 10:.2f} in the end")
assert sum(steps[-10:]) / 10 < steps[0] - 0.5

# %% [markdown]
# Samples: Gaussian points, solved backwards.

# %%
with torch.no_grad():
    drawn = odenet.solve(flow.velocity, torch.randn(512, 2), t0=1.0, t1=0.0, steps=12, solver="rk4").y1
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
for axis, points, title in zip(axes, (data, drawn), ("data", "samples"), strict=True):
    axis.scatter(*points.T, s=3)
    axis.set_title(title)
plt.show()
