"""What jobs over cells share: `odenet compare`, `odenet benchmark work-precision` and, of this, `odenet reproduce`.

A plan spans cells (plan.py), each cell gives a row (row.py), rows are kept on disk as they come (results.py), and a run
measures the cells that are left until all are done or Ctrl-C (run.py), which progress.py tells.
"""
