"""The figures of Sander, Ablin and Peyre, "Do Residual Neural Networks discretize Neural Ordinary Differential
Equations?" (NeurIPS 2022, arXiv 2205.14612), reproduced: `odenet reproduce`.

    claims/         one file for each reproduction; a new file there is a new name of the command
    reproduction    what such a file says: cells, their measurement, a figure, verdicts
    verdict         a claim of the paper held against what was seen, by number
    results         points on disk, to go on from
    report          figures and verdicts as files and as one page
    command         the flags
"""
