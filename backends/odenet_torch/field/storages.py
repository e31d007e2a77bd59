"""The memory of a tensor: a sparse one has that of its indices and of its values, and none of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_COMPRESSED = {
    torch.sparse_csr: (Tensor.crow_indices, Tensor.col_indices),
    torch.sparse_bsr: (Tensor.crow_indices, Tensor.col_indices),
    torch.sparse_csc: (Tensor.ccol_indices, Tensor.row_indices),
    torch.sparse_bsc: (Tensor.ccol_indices, Tensor.row_indices),
}


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that hold a tensor's numbers, its values first: itself where it is dense; none where it is of
    a layout that does not show them, as that of oneDNN."""
    if tensor.layout is torch.strided:
        return (tensor,)
    plain = tensor.detach()
    if plain.layout is torch.sparse_coo:
        return plain._values(), plain._indices()
    if plain.layout in _COMPRESSED:
        return plain.values(), *(indices(plain) for indices in _COMPRESSED[plain.layout])
    return ()


def storages(tensor: Tensor) -> list[Any]:
    """Where a tensor's numbers lie; nothing for one that has no memory, as one of torch.func's transforms."""
    try:
        return [part.untyped_storage() for part in parts(tensor)]
    except RuntimeError:
        return []


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers, and of what says where they stand."""
    return tensor.nbytes if tensor.layout is torch.strided else sum(part.nbytes for part in parts(tensor))
