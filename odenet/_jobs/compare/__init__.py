"""The main job: solvers x gradient methods x backends x depths, on one network and one batch of real data.

grid.py says which cells, measure.py runs them, results.py keeps them on disk, report.py shows them.
"""
