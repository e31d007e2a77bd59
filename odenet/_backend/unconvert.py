"""`odenet.unconvert`: a model with its own layers again."""

from __future__ import annotations

from typing import TypeVar

from odenet._backend.registry import backend, entry_for

Model = TypeVar("Model")


def unconvert(model: Model) -> Model:
    """A converted model with its own layers again: the same parameters, as they are trained by now.

    Args:
        model: one that `odenet_torch.convert` or `odenet_jax.convert` has converted, or parts of which were. It is
            changed in place, but for a model of equinox; one that was not converted is left as it is.

    Returns:
        The model; in the place of one of equinox, another one.

    Raises:
        ConversionError: a layer whose class was changed since it was converted, as by FSDP. UnsupportedError: a model
            of a backend that converts none.
    """
    return backend(entry_for([model]).name).unconvert(model)
