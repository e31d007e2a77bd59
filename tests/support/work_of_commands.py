"""By module, the functions that do the work of a command once its options are accepted, for tests of the options."""

WORK = {
    "odenet._jobs.solve.command": ("solve_in_equal_steps", "solve_to_tolerances"),
    "odenet._jobs.compare.command": ("complete",),
    "odenet._jobs.benchmark": ("complete",),
    "odenet._jobs.check.command": ("checks",),
    "odenet._jobs.train.job": ("train",),
    "odenet._jobs.train.seeds": ("train_seeds",),
    "odenet._jobs.reproduce.command": ("reproduce",),
}
