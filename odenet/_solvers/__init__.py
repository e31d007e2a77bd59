"""Solvers as data: tableaus, the families of methods, one step, step-size control and interpolation."""
