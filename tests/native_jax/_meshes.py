"""On two devices of this machine: solves and gradients under each kind of mesh, beside the same without one.

A process of its own, since JAX asks for its devices once. Prints a line for what differs, and OK.
"""

from __future__ import annotations

import itertools
import os
import sys
from functools import cache, partial

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"  # read once

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from odenet import Depth, Event, InputError, UnsupportedError
from odenet_jax import solve

METHODS = ("backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint")
ROWS = jnp.asarray(np.linspace(0.5, 2.0, 8).reshape(4, 2), jnp.float32)
WEIGHT = jnp.float32(0.5)


def turning(t, y, w):
    """A field that looks at the time, and holds numbers and loops."""
    slope = lax.cond(t < 0.05, lambda: -(w + 1.0) * y, lambda: -w * y * y)
    slope = lax.scan(lambda c, _: (0.9 * c, None), slope, None, length=2)[0]
    slope = (
        lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, 0.9 * c[1]), (0, lax.stop_gradient(w) * 0.01))[1]
        + slope
    )
    return jax.checkpoint(lambda w, k: (w + 0.5) * k)(w, bent(slope, w))


@jax.custom_jvp
def bent(x, w):
    """A function with a rule of its own, of the state and of an array that is the same on all devices."""
    return jnp.sin(w * x)


@bent.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return bent(x, w), jnp.cos(w * x) * (w * dx + x * dw)


@jax.custom_vjp
def own_way_back(x, w):
    """The same with a way back of its own."""
    return jnp.sin(w * x)


own_way_back.defvjp(
    lambda x, w: (jnp.sin(w * x), (x, w)),
    lambda kept, g: (g * jnp.cos(kept[1] * kept[0]) * kept[1], (g * jnp.cos(kept[1] * kept[0]) * kept[0]).sum()),
)


def total(y, weight, closed=False, turns=False, event=None, refused=False, **choices):
    """A loss of the last state."""
    if refused:
        return solve(lambda t, y: -own_way_back(y, weight), y, **choices).y1.sum()
    if turns:
        return solve(lambda t, y: turning(t, y, weight), y, **choices).y1.sum()
    if event is not None:
        met = solve(lambda t, y, w: -w * y * y, y, weight, event=EVENTS[event], **choices)
        return met.y1.sum() + met.event_t
    if closed:
        return solve(lambda t, y: -weight * y * y, y, **choices).y1.sum()
    return solve(lambda t, y, w: -w * y * y, y, weight, **choices).y1.sum()


EVENTS = {
    "time": Event(lambda t, y: t - 0.43),
    "state": Event(lambda t, y: y.max() - 0.48),
}


def gradients(function):
    """By state and weight."""
    return jax.value_and_grad(function, (0, 1))


@cache
def alone(choices):
    """Value and gradients of the same on one device: once for every kind of mesh."""
    return jax.jit(gradients(lambda y, weight: total(y, weight, **dict(choices))))(ROWS, WEIGHT)


def sharded(kind, **choices):
    """Value and gradients of the loss over all rows, under a mesh."""

    def loss(y, weight):
        return total(y, weight, **choices)

    if kind in ("auto", "explicit", "single"):
        count = 1 if kind == "single" else 2
        axes = (AxisType.Auto if kind == "auto" else AxisType.Explicit,)
        mesh = jax.make_mesh((count,), ("i",), axis_types=axes, devices=jax.devices()[:count])
        rows = jax.device_put(ROWS, NamedSharding(mesh, P("i")))
        return jax.jit(gradients(loss))(rows, WEIGHT)
    if kind == "pmap":
        value, (of_rows, of_weight) = jax.pmap(gradients(loss), in_axes=(0, None))(ROWS.reshape(2, 2, 2), WEIGHT)
        return value.sum(), (of_rows.reshape(4, 2), of_weight.sum())
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda y, weight: loss(y, weight)[None], mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i"),
        check_vma=kind != "shard_map without checks",
    )  # fmt: skip
    run = gradients(lambda y, weight: mapped(y, weight).sum())
    return (run if kind == "eager shard_map" else jax.jit(run))(ROWS, WEIGHT)


WAYS = (
    ("euler", "checkpoint:segments=2"),
    ("euler", "checkpoint:states=2"),
    ("alf", "reversible"),
    ("euler", "discrete-adjoint:tolerance=1e-2"),
    ("euler", "continuous-adjoint:interpolate=yes"),
)


def spread_rows(few: bool) -> None:
    """Rows that lie on two devices, and weights on each: their gradients lie so, too, and are those of one device."""
    y0 = jax.random.normal(jax.random.key(0), (8, 4))
    layers = 0.5 * jax.random.normal(jax.random.key(1), (6, 4, 4))
    ways = WAYS[1:3] if few else WAYS

    @jax.jit
    def found(y0, layers):
        def loss(y0, layers, solver, gradient):
            weights = Depth(layers, "piecewise")
            end = solve(lambda t, y, w: jnp.tanh(y @ w), y0, weights, solver=solver, gradient=gradient).y1
            return jnp.sum(end**2)

        return [jax.grad(loss, (0, 1))(y0, layers, *way) for way in ways]

    plain = found(y0, layers)
    for kind in (AxisType.Explicit,) if few else (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,))
        rows, everywhere = (NamedSharding(mesh, P(*axes)) for axes in (("rows",), ()))
        sharded = found(jax.device_put(y0, rows), jax.device_put(layers, everywhere))
        for way, one, other in zip(ways, plain, sharded, strict=True):
            for alone, apart in zip(one, other, strict=True):
                np.testing.assert_allclose(alone, apart, rtol=1e-4, atol=1e-5, err_msg=str(way))
            assert not other[0].sharding.is_fully_replicated, way
            assert other[1].sharding.is_fully_replicated, way
    # the worst certificate of rows that lie on two devices is looked for without an index among them
    of_row = jax.grad(lambda y: solve(lambda t, y: -y, y, steps=4, gradient="discrete-adjoint").y1.sum())
    with jax.set_mesh(mesh):
        apart = jax.vmap(jax.jit(of_row))(jax.device_put(y0, rows))
    np.testing.assert_allclose(apart, jnp.full((8, 4), 0.75**4), rtol=1e-5)


KINDS = ("explicit", "shard_map", "auto", "single", "pmap", "eager shard_map", "shard_map without checks")


def apart() -> None:
    """Arrays on two devices that no mesh joins, and arrays that are no longer there, are refused in words."""
    here, there = (jax.device_put(ROWS, device) for device in jax.devices()[:2])
    chosen = ({"steps": 4, "gradient": "backprop"}, {"steps": 4, "gradient": "checkpoint"}, {"rtol": 1e-3})
    ways = (({"y0": here, "weights": there}, lambda t, y, w: -w * y), ({"y0": here}, lambda t, y: -there * y))
    for way, (choices, field) in itertools.product(chosen, ways):
        run = partial(solve, field, **choices, **way)
        try:
            jax.grad(lambda y, run=run: run(y0=y).y1.sum())(here)
            print(f"not refused: arrays on two devices, {way}")
        except InputError as error:
            if "lie on several devices" not in str(error):
                raise


@jax.custom_vjp
def summed(x):
    """A sum over devices whose backward pass is none, as in layers whose weights are divided."""
    return lax.psum(x, "parts")


summed.defvjp(lambda x: (summed(x), None), lambda _, g: (g,))


def divided_weights() -> None:
    """Fields that are a `jax.shard_map` themselves, over weights of which each device has a part."""
    mesh = jax.make_mesh((2,), ("parts",), axis_types=(AxisType.Auto,))
    weights = jnp.asarray(np.linspace(-1, 1, 4).reshape(2, 2), jnp.float32)

    def field(t, y, w, add=summed):
        def part(y, w):
            return jnp.tanh(add(y @ w))

        over = partial(jax.shard_map, mesh=mesh, in_specs=(P(None, "parts"), P("parts")), out_specs=P())
        return over(part, check_vma=add is not summed)(y, w)

    def gradient(of, method):
        choices = {"rtol": 1e-4} if method == "continuous-adjoint" else {"steps": 12, "solver": "heun"}
        return jax.jit(jax.grad(lambda w: (solve(of, ROWS, w, **choices, gradient=method).y1 ** 2).sum()))(weights)

    by_jax = partial(field, add=lambda x: lax.psum(x, "parts"))
    for method, of in itertools.product(("discrete-adjoint:iterations=3", "continuous-adjoint"), (field, by_jax)):
        np.testing.assert_allclose(gradient(of, method), gradient(of, "backprop"), rtol=2e-2)


def main(few: bool) -> None:
    """Compares: a few combinations, or all."""
    apart()
    divided_weights()
    spread_rows(few)
    kinds, methods, ways = (
        (KINDS[:2], ("backprop", "discrete-adjoint"), (False,)) if few else (KINDS, METHODS, (False, True))
    )
    for kind, method, closed, fixed in itertools.product(kinds, methods, ways, (False, True)):
        name = f"{kind}, {method}, {'closed over' if closed else 'weights'}, {'steps' if fixed else 'adaptive'}"
        chosen = {"gradient": method, "closed": closed, **({"steps": 4, "solver": "heun"} if fixed else {"rtol": 1e-5})}
        # few: explicit meshes have the discrete adjoint, and devices by themselves have it with equal steps only
        if few and (method == "backprop") == (fixed or kind == "explicit"):
            continue
        try:
            right = alone(tuple(chosen.items()))
            for one, other in zip(*map(jax.tree.leaves, (sharded(kind, **chosen), right)), strict=True):
                np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=2e-4)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    for kind, method, (name, also) in itertools.product(
        kinds, methods[:1] if few else methods, [("turns", {"turns": True}), *((e, {"event": e}) for e in EVENTS)]
    ):
        chosen = {"gradient": method, **also, "rtol": 1e-5}
        if few and (name == "time" or kind == "explicit"):
            continue
        try:
            if kind in ("auto", "explicit", "single"):
                right = alone(tuple(chosen.items()))
            else:  # each device has an event of its own
                run = jax.jit(gradients(lambda y, w, chosen=chosen: total(y, w, **chosen)))
                one, two = run(ROWS[:2], WEIGHT), run(ROWS[2:], WEIGHT)
                rows = jnp.concatenate([one[1][0], two[1][0]])
                right = one[0] + two[0], (rows, one[1][1] + two[1][1])
            for mine, other in zip(*map(jax.tree.leaves, (sharded(kind, **chosen), right)), strict=True):
                np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=5e-4, atol=1e-6)
        except Exception as error:
            print(f"{kind}, {method}, {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    try:  # what this function adds up over devices cannot be seen
        sharded("shard_map", refused=True, rtol=1e-5)
        print("not refused")
    except UnsupportedError:
        pass
    print("OK")


if __name__ == "__main__":
    main("few" in sys.argv)
