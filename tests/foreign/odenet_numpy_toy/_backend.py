"""The verbs of the NumPy backend."""

import contextlib
import dataclasses

import numpy as np

from odenet import DtypeError, InputError, StateError
from odenet.kit import (
    Backend,
    Depth,
    Gradients,
    Solution,
    Stats,
    add,
    increment,
    positions,
    tree_flatten,
    tree_leaves,
)

_TINY = 1e-30


class NumpyBackend(Backend):
    """odenet's verbs on NumPy. Those for networks are left out: the entry says that there are none."""

    framework = "numpy"
    dtypes = ("float64", "float32", "complex128", "complex64")

    def solve(self, problem):
        """See `Backend`."""
        grid, tableau, depth = problem.grid, problem.solver.tableau, problem.weights
        leaves, unflatten = tree_flatten(problem.y0)
        y = tuple(np.asarray(leaf) for leaf in leaves)
        if not all(np.issubdtype(leaf.dtype, np.inexact) for leaf in y):
            raise DtypeError(f"y0 of {', '.join(str(leaf.dtype) for leaf in y)}", ", ".join(self.dtypes))
        places = positions(tableau)
        states = [y]
        for n in range(grid.steps):

            def stage(i, at, n=n):
                arguments = [grid.time(n, places[i]), unflatten(at)]
                if depth is not None:
                    layer, start, span = depth.place(n, grid.steps)
                    arguments.append(depth.between(layer, start + span * places[i]))
                slope = tuple(np.asarray(k) for k in tree_leaves(problem.field(*arguments)))
                if [k.shape for k in slope] != [leaf.shape for leaf in at]:
                    raise StateError("a slope of another shape than the state", "a tree like y of the same shapes")
                return slope

            y = add(y, increment(tableau, stage, y, grid.h))
            states.append(y)
        kept = [np.stack(column) for column in zip(*(states[n] for n in grid.saved), strict=True)]
        evaluations = grid.steps * problem.solver.stages
        stats = Stats("numpy-toy", problem.solver.label, problem.gradient.label, grid.steps, evaluations)
        return Solution(np.asarray(grid.times), unflatten(kept), stats)

    def value_and_grad(self, loss, problem):
        """See `Backend`."""
        from odenet_numpy_toy import backend

        return backend.way(problem.gradient).load()(self, loss, problem)

    def to_numpy(self, leaf):
        """See `Backend`."""
        return np.asarray(leaf)

    @contextlib.contextmanager
    def prepare(self, dtype, device):
        """See `Backend`."""
        self.require_place(dtype, device)
        yield

    def devices(self):
        """See `Backend`."""
        return ("cpu",)


def complex_step(numpy_backend, loss, problem):
    """Loss, gradients and solution: one solve for each number in y0 and the weights."""
    depth = problem.weights
    leaves, unflatten = tree_flatten((problem.y0, None if depth is None else depth.tree))
    leaves = [np.asarray(leaf) for leaf in leaves]
    if any(np.iscomplexobj(leaf) for leaf in leaves):
        raise InputError("a complex state or weight", "real ones: the complex step needs the imaginary part")

    def value(y0, tree):
        weights = None if depth is None else Depth(tree, depth.kind, depth.stacked)
        solution = numpy_backend.solve(dataclasses.replace(problem, y0=y0, weights=weights))
        return loss(solution), solution

    gradients = [np.zeros(leaf.shape) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        for place in np.ndindex(leaf.shape):
            moved = np.array(leaf, complex)
            moved[place] += 1j * _TINY
            gradients[i][place] = value(*unflatten([*leaves[:i], moved, *leaves[i + 1 :]]))[0].imag / _TINY
    plain, solution = value(*unflatten(leaves))
    return plain, Gradients(*unflatten(gradients)), solution
