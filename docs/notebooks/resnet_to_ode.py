# %% [markdown]
# # From a ResNet to its ODE
#
# A residual network of N blocks is Euler's method with N steps. If its weights are a smooth function of depth, it has
# a limit as N grows, which is an ODE. Its distance falls as 1/N; that of Heun's network (HeunNet) as 1/N².

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import odenet

jax.config.update("jax_enable_x64", True)

rng = np.random.default_rng(0)
ends = [{"a": rng.normal(size=(8, 8)) / 3, "b": rng.normal(size=8)} for _ in range(4)]
x = rng.normal(size=(32, 8))


def weights(s):
    """Weights at a place 0 <= s <= 1 of the depth: smooth."""
    powers = [1.0, s, np.sin(3 * s), np.cos(5 * s)]
    return {name: sum(p * end[name] for p, end in zip(powers, ends, strict=True)) for name in ("a", "b")}


def stacked(places):
    """The weights of layers at these places."""
    return {name: np.stack([weights(s)[name] for s in places]) for name in ("a", "b")}


def field(t, y, w):
    return jnp.tanh(y @ w["a"]) + w["b"]


# %% [markdown]
# The ODE itself, solved by a method of order 8 with many steps, and networks of increasing depth.


# %%
def final(depth, solver):
    """The output of a network: N layers for Euler (a ResNet), N+1 nodes for Heun (a HeunNet)."""
    if solver == "euler":
        along = odenet.Depth(stacked(np.arange(depth) / depth), "piecewise")
    else:
        along = odenet.Depth(stacked(np.arange(depth + 1) / depth), "linear")
    y0 = jnp.asarray(x)
    return np.asarray(odenet.solve(field, y0, along, t0=0.0, t1=1.0, steps=depth, solver=solver).y1)


depths = [4, 8, 16, 32, 64, 128]
truth = final(2048, "heun")
errors = {solver: [np.abs(final(n, solver) - truth).max() for n in depths] for solver in ("euler", "heun")}
for solver, found in errors.items():
    order = -np.polyfit(np.log(depths[2:]), np.log(found[2:]), 1)[0]  # from 16 layers on
    print(f"{solver}: {found[0]:.1e} with {depths[0]} layers, {found[-1]:.1e} with {depths[-1]}; order {order:.2f}")
    assert abs(order - {"euler": 1, "heun": 2}[solver]) < 0.2

# %%
for solver, found in errors.items():
    plt.loglog(depths, found, "o-", label={"euler": "ResNet (Euler)", "heun": "HeunNet (Heun)"}[solver])
plt.xlabel("layers N")
plt.ylabel("distance to the ODE")
plt.legend()
plt.show()

# %% [markdown]
# Where the weights of neighbouring layers are independent, the limit is another one, and depends on how weights are
# interpolated between layers: `odenet.theory.limits` estimates how rough they are, and which limit is near.
