"""odenet on NumPy: solves with equal steps, and gradients by the complex step."""

from odenet import Backprop
from odenet.kit import BackendEntry, Way

backend = BackendEntry(
    name="numpy-toy",
    framework="numpy",  # looked for, to say whether the backend is available
    install="pip install odenet-foreign",  # said where it is not
    implementation="odenet_numpy_toy._backend:NumpyBackend",  # imported when first used
    array_modules=(),  # solve() finds a backend by the arrays in y0; NumPy's are everybody's, so this one is named
    families=("runge-kutta",),  # it runs every explicit Runge-Kutta method with equal steps, and no other solver
    methods={Backprop: Way("odenet_numpy_toy._backend:complex_step")},  # the exact gradient, and no other
)
