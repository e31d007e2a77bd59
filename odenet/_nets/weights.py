"""Named NumPy weights on disk: safetensors or npz, never a pickle."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from odenet._check import instance
from odenet._check import path as checked_path
from odenet._errors import FileError
from odenet._files import write_atomically

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 2**30  # bytes that a small file may unpack to
_RATIO = 20  # times its size that a larger one may
_SUFFIXES = "a name that ends in .safetensors or .npz"


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays, atomically, in the format of the path's suffix.

    Raises:
        InputError: no path, or no mapping.
        FileError: another suffix, arrays that the format cannot hold, or a path that cannot be written.
    """
    import numpy as np

    suffix = _suffix(path)
    instance("weights", weights, Mapping, "a mapping from names to arrays, as of a network's `read`")
    for name in weights:
        instance("name of a weight", name, str, "a text")
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    try:
        if suffix == ".npz":
            return write_atomically(path, lambda file: _write_npz(file, arrays))
        from safetensors.numpy import save

        content = save(arrays)
    except ImportError as error:
        raise _needs_safetensors(path) from error
    except FileError:
        raise
    except Exception as error:  # each format has its own ways to refuse a number type
        kinds = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
        raise FileError(f"weights of {kinds} cannot be written to {path} ({error})", "arrays of numbers") from error
    return write_atomically(path, lambda file: file.write(content))


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read named arrays.

    Raises:
        InputError: no path. FileError: no such file, another suffix, or not the format that the suffix names.
    """
    suffix = _suffix(path)
    try:
        if suffix == ".npz":
            with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                return _read_npz(archive, os.fstat(file.fileno()).st_size)
        from safetensors.numpy import load_file

        return dict(load_file(path))
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}", _SUFFIXES) from error
    except ImportError as error:
        raise _needs_safetensors(path) from error
    except Exception as error:  # each format has its own ways to be broken
        raise FileError(f"{path} is no {suffix} file of plain arrays ({error})", _SUFFIXES) from error


def _write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """`np.savez` for weights of any name (it takes `file=` and `allow_pickle=` for its own arguments)."""
    import numpy as np

    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _read_npz(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    """What `_write_npz` and `np.savez` write, a member an array. (NumPy's reader takes `a` and `a.npy` for one.)"""
    import numpy as np

    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_LARGEST, _RATIO * size):
        raise ValueError(f"its {size} bytes unpack to {unpacked}, of which at most {_LARGEST} are taken from so few")
    arrays: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in arrays:
            raise ValueError(f"it holds {member.filename}" + (" twice" if name in arrays else ", which is no array"))
        with archive.open(member) as entry:
            arrays[name] = np.lib.format.read_array(entry, allow_pickle=False)
    return arrays


def _needs_safetensors(path: object) -> FileError:
    return FileError(f"{path} needs safetensors, which is not installed", ".npz", "pip install safetensors")


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = checked_path("path", path).suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise FileError(f"{path} ends in {suffix or 'nothing'}", _SUFFIXES)
    return suffix
