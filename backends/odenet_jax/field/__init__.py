"""How f, its weights and its random state are called again exactly."""

from odenet_jax.field.miscompiled import warn_of_this

warn_of_this()
