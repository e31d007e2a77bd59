# %% [markdown]
# # A script of diffrax, moved
#
# The field is the same function `f(t, y, args)`; the call changes.

# %%
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

import odenet

jax.config.update("jax_enable_x64", True)
net = eqx.nn.MLP(4, 4, 64, 1, jnp.tanh, key=jax.random.key(0))
y0 = jax.random.normal(jax.random.key(1), (32, 4))


def field(t, y, args):
    return jax.vmap(args)(y)


def before(net):
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        0.0,
        1.0,
        None,
        y0,
        net,
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
    )
    return (found.ys[-1] ** 2).mean()


def after(net, gradient="checkpoint"):
    array, rest = eqx.partition(net, eqx.is_array)
    found = odenet.solve(
        lambda t, y, w: field(t, y, eqx.combine(w, rest)),
        y0,
        array,
        t0=0.0,
        t1=1.0,
        solver="dopri5",
        rtol=1e-6,
        atol=1e-8,
        gradient=gradient,
    )
    return (found.y1**2).mean()


# %% [markdown]
# The gradients, and the time that they take when compiled.

# %%
flat = {}
for name, loss in (
    ("diffrax", before),
    *(
        (gradient, lambda net, gradient=gradient: after(net, gradient))
        for gradient in ("checkpoint", "discrete-adjoint")
    ),
):
    program = eqx.filter_jit(eqx.filter_grad(loss))
    found = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(eqx.filter(program(net), eqx.is_array))])
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(program(net))
        seconds.append(time.perf_counter() - began)
    flat[name] = found
    error = float(jnp.linalg.norm(found - flat["diffrax"]) / jnp.linalg.norm(flat["diffrax"]))
    print(f"{name:20} {1000 * min(seconds):6.1f} ms, differs from diffrax by {error:.0e}")
    assert error < 1e-4

# %% [markdown]
# diffrax itself is a backend, too: the same call, for a comparison.

# %%
solution = odenet.solve(
    lambda t, y: -y, jnp.ones(2), t0=0.0, t1=1.0, rtol=1e-6, atol=1e-8, solver="tsit5", backend="diffrax"
)
print(solution.y1, solution.stats.accepted)
