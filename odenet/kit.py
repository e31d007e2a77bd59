"""All that the author of a backend, a gradient method or a solver needs, beside the public names of `odenet`.

- a backend: `BackendEntry`, `Way`, `Backend` and the records that its verbs take and return; one step (`increment`,
  `trial`), where its stages read (`positions`), the controller's `Arithmetic`; trees; `conformance`, which tests it;
- a gradient method: `Gradient`, `Cost`, `Method`, `Way`, `register_gradient`;
- a solver: `Tableau`, `Solver` (or a family of your own: `AnySolver`), `register_solver`.

How each is done is in the documentation: add a backend, add a gradient method, add a solver.
"""

__all__ = sorted(name for name in globals() if not name.startswith("_"))
