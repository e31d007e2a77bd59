"""The main job: solvers x gradient methods x backends x depths, on one network and one batch of real data."""
