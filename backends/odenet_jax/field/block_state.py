"""The state of blocks of equinox that were made one by one, as that of blocks that were made together.

Each block of a model has names of its own ("markers") for its entries of the model's state. Here all blocks of a stack
get those of the first one, and their states are leaves with an axis of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from odenet import InputError


def holds_state(block: Any) -> bool:
    """Whether some layer of equinox in it keeps a state beside its arrays."""
    return bool(_indices(block))


def marked_as(block: Any, like: Any) -> Any:
    """A block with the markers of another one of its structure."""
    markers = iter(_indices(like))
    return jax.tree.map(lambda leaf: next(markers, leaf) if _is_index(leaf) else leaf, block, is_leaf=_is_index)


def gathered(blocks: Sequence[Any], state: eqx.nn.State) -> eqx.nn.State:
    """The entries of the blocks in a state, by the markers of the first, leaves with a leading axis of blocks.

    Raises:
        InputError: blocks that share an entry, or entries of different shapes.
    """
    markers = [id(index.marker) for block in blocks for index in _once(block)]
    if len(set(markers)) != len(markers):
        raise InputError(
            "blocks that share an entry of their state", "blocks with a state of their own each", "make each by itself"
        )
    rows = []
    for block in blocks:
        row = state.substate(blocks[0])
        for own, of_first in zip(_once(block), _once(blocks[0]), strict=True):
            row = row.set(of_first, state.get(own))
        rows.append(row)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def put_back(blocks: Sequence[Any], state: eqx.nn.State, rows: eqx.nn.State) -> eqx.nn.State:
    """A state with the entries of the blocks replaced by these, which are as `gathered` returns them."""
    for i, block in enumerate(blocks):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        for own, of_first in zip(_once(block), _once(blocks[0]), strict=True):
            # not `set`, which would refuse what was stacked where the entry began as a number: its type is weak
            state = eqx.tree_at(lambda state, own=own: state.get(own), state, row.get(of_first))
    return state


def _is_index(node: Any) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _indices(block: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(block, is_leaf=_is_index) if _is_index(leaf)]


def _once(block: Any) -> list[Any]:
    """The markers of a block, each once: two layers in it may share one."""
    return list({index.marker: index for index in _indices(block)}.values())
