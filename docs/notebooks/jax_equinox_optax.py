# %% [markdown]
# # JAX: equinox modules, optax
#
# A `ResidualStack` is an equinox module, and works with `eqx.filter_jit`, `eqx.filter_value_and_grad` and optax as any
# other module.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from odenet_jax import ResidualStack

digits = load_digits()
images = jnp.asarray(digits.images.reshape(-1, 64) / 16, jnp.float32)
labels = jnp.asarray(digits.target)


class Network(eqx.Module):
    stem: eqx.nn.Linear
    stack: ResidualStack
    head: eqx.nn.Linear

    def __init__(self, depth, gradient, key):
        first, *keys, last = jax.random.split(key, depth + 2)
        self.stem, self.head = eqx.nn.Linear(64, 32, key=first), eqx.nn.Linear(32, 10, key=last)
        blocks = [eqx.nn.MLP(32, 32, 32, 1, jnp.tanh, key=key) for key in keys]
        self.stack = ResidualStack(blocks, solver="heun", gradient=gradient)

    def __call__(self, x):
        return self.head(self.stack(self.stem(x)))


def loss(network, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(network)(x), y).mean()


# %% [markdown]
# The gradient of the discrete adjoint, which keeps one state, compared with that of backprop:

# %%
flat = {}
for gradient in ("backprop", "discrete-adjoint"):
    network = Network(32, gradient, jax.random.key(0))
    found = eqx.filter_jit(eqx.filter_grad(loss))(network, images[:64], labels[:64])
    flat[gradient] = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])
error = float(jnp.linalg.norm(flat["discrete-adjoint"] - flat["backprop"]) / jnp.linalg.norm(flat["backprop"]))
print(f"the gradients differ by {error:.1e}")
assert error < 1e-2

# %%
network = Network(16, "discrete-adjoint", jax.random.key(0))
optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, 150))
state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))


@eqx.filter_jit
def step(network, state, x, y):
    value, found = eqx.filter_value_and_grad(loss)(network, x, y)
    updates, state = optimizer.update(found, state, eqx.filter(network, eqx.is_inexact_array))
    return eqx.apply_updates(network, updates), state, value


rng = np.random.default_rng(0)
order = rng.permutation(len(labels))
seen, unseen = order[:1344], order[1344:]
losses = []
for _ in range(150):
    chosen = rng.choice(seen, 64)
    network, state, value = step(network, state, images[chosen], labels[chosen])
    losses.append(float(value))
accuracy = float((jax.vmap(network)(images[unseen]).argmax(1) == labels[unseen]).mean())
print(f"{100 * accuracy:.0f} % of {len(unseen)} unseen digits are classified right")
assert accuracy > 0.85

# %%
plt.plot(losses)
plt.xlabel("step of training")
plt.ylabel("cross-entropy")
plt.show()
