import sys

import numpy as np
import pytest

from odenet import FileError, InputError
from odenet._jobs.data import batch, digits
from odenet._jobs.data.digits import _load


def test_all_digits_have_mean_zero_and_variance_one():
    inputs, labels = digits()
    assert inputs.shape == (1797, 1, 8, 8)
    assert inputs.dtype == np.float64
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64
    assert abs(inputs.mean()) < 1e-12
    assert abs(inputs.var() - 1) < 1e-12
    assert set(labels) == set(range(10))


def test_what_a_caller_does_to_the_digits_stays_with_him():
    digits()[0][:] = 0
    assert digits()[0].var() > 0.5


@pytest.mark.parametrize("size", [1, 7, 10, 16, 100, 333])
def test_a_batch_is_as_balanced_as_it_can_be(size):
    inputs, labels = batch(size, seed=3)
    counts = np.bincount(labels, minlength=10)
    assert inputs.shape == (size, 1, 8, 8)
    assert counts.max() - counts.min() <= 1
    assert len(np.unique(inputs.reshape(size, -1), axis=0)) == size  # no image twice


def test_the_largest_batch_is_every_image_once():
    inputs, labels = batch(1797)
    images, all_labels = digits()
    assert sorted(map(bytes, inputs)) == sorted(map(bytes, images))
    assert sorted(labels) == sorted(all_labels)


def test_a_batch_depends_on_its_seed_alone():
    assert (batch(20, seed=1)[0] == batch(20, seed=1)[0]).all()
    assert (batch(20, seed=1)[0] != batch(20, seed=2)[0]).any()
    assert (batch(50, seed=1)[0][:20] == batch(20, seed=1)[0]).all()


@pytest.mark.parametrize(
    ("size", "seed", "words"),
    [
        (1798, 0, "there are no more images"),
        (0, 0, "size=0"),
        (-3, 0, "size=-3"),
        (2.5, 0, "size=2.5"),
        (True, 0, "size=True"),
        (4, -1, "seed=-1"),
        (4, "x", "seed='x'"),
    ],
)
def test_a_batch_that_cannot_be_had(size, seed, words):
    with pytest.raises(InputError, match=words):
        batch(size, seed)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    _load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(FileError, match=r"scikit-learn.*pip install 'odenet\[data\]'"):
        digits()
