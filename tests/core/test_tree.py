"""Trees of plain containers: taken apart and put together again, they are what they were."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet import _tree


class Pair(NamedTuple):
    """Two trees."""

    first: Any
    second: Any


def _nest(trees):
    keys = st.text(max_size=3) | st.integers(-5, 5)
    return st.one_of(
        st.lists(trees, max_size=3),
        st.lists(trees, max_size=3).map(tuple),
        st.builds(Pair, trees, trees),
        st.dictionaries(keys, trees, max_size=3),
    )


trees = st.recursive(st.none() | st.floats(allow_nan=False) | st.text(max_size=2), _nest, max_leaves=12)


@given(trees)
def test_a_tree_is_put_together_as_it_was(tree):
    found, unflatten = _tree.flatten(tree)
    again = unflatten(found)
    assert again == tree
    assert type(again) is type(tree)
    assert _tree.same_shape(tree, again)
    assert found == _tree.leaves(tree)


@given(trees)
def test_map_reaches_each_leaf_once_and_in_order(tree):
    seen = []
    mapped = _tree.map(lambda leaf: seen.append(leaf) or (leaf, "more"), tree)
    assert seen == _tree.leaves(tree)
    assert _tree.leaves(mapped)[::2] == seen


@given(trees)
def test_paths_go_in_the_order_of_the_leaves(tree):
    assert [leaf for _, leaf in _tree.paths(tree)] == _tree.leaves(tree)


@given(trees, st.permutations(range(3)))
def test_the_order_of_a_dict_does_not_matter(tree, order):
    keys = ["b", "a", "c"]
    one, other = ({key: (key, tree) for key in picked} for picked in (keys, [keys[i] for i in order]))
    assert _tree.leaves(one) == _tree.leaves(other)
    assert _tree.same_shape(one, other)


def test_several_trees_are_mapped_together():
    one, other = {"a": 1, "b": (2, None)}, {"b": (20, None), "a": 10}
    assert _tree.map(lambda x, y: x + y, one, other) == {"a": 11, "b": (22, None)}
    with pytest.raises(ValueError, match="zip"):
        _tree.map(lambda x, y: x + y, (1, 2), (1,))


def test_containers_keep_their_type():
    tree = OrderedDict(a=Pair([1.0], (2.0,)))
    again = _tree.map(lambda leaf: leaf, tree)
    assert type(again) is OrderedDict
    assert type(again["a"]) is Pair
    assert type(again["a"].first) is list


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, (1.0,)),
        ((1.0,), [1.0]),
        ({"a": 1}, {"b": 1}),
        ((1, 2), (1, 2, 3)),
        (Pair(1, 2), (1, 2)),
        (None, 1.0),
        ((1, (2, 3)), ((1, 2), 3)),
    ],
)
def test_other_containers_are_another_shape(one, other):
    assert not _tree.same_shape(one, other)
    assert not _tree.same_shape(other, one)


def test_paths_can_be_read():
    tree = {"blocks": [{"weight": 1, "bias": 2}], "none": None}
    assert list(_tree.paths(tree)) == [("blocks[0].bias", 2), ("blocks[0].weight", 1)]
    assert list(_tree.paths(3.0)) == [("(leaf)", 3.0)]


def test_a_framework_adds_a_rule_for_classes_of_its_own(monkeypatch):
    class Box:
        def __init__(self, inside):
            self.inside = inside

    monkeypatch.setattr(_tree, "RULES", [*_tree.RULES])
    assert _tree.leaves([box := Box(1)]) == [box]
    _tree.RULES.append(lambda node: ([node.inside], lambda inner: Box(inner[0])) if isinstance(node, Box) else None)
    assert _tree.leaves([Box(1), Box((2, 3))]) == [1, 2, 3]
    assert _tree.map(lambda leaf: leaf + 1, Box(1)).inside == 2
