"""Named NumPy weights on disk: safetensors or npz, never a pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from odenet._errors import FileError
from odenet._files import write_atomically

if TYPE_CHECKING:
    import numpy as np

_SUFFIXES = "a name that ends in .safetensors or .npz"


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays, atomically, in the format of the path's suffix.

    Raises:
        FileError: another suffix, or a path that cannot be written.
    """
    import numpy as np

    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    if _suffix(path) == ".npz":
        return write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    from safetensors.numpy import save

    return write_atomically(path, lambda file: file.write(save(arrays)))


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read named arrays.

    Raises:
        FileError: no such file, another suffix, or not the format that the suffix names.
    """
    import numpy as np

    suffix = _suffix(path)
    try:
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        from safetensors.numpy import load_file

        return dict(load_file(path))
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}", _SUFFIXES) from error
    except ImportError as error:
        raise FileError(
            f"{path} needs safetensors, which is not installed", ".npz", "pip install safetensors"
        ) from error
    except Exception as error:  # each format has its own ways to be broken
        raise FileError(f"{path} is no {suffix} file of plain arrays ({error})", _SUFFIXES) from error


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise FileError(f"{path} ends in {suffix or 'nothing'}", _SUFFIXES)
    return suffix
