"""Weights on disk are read back bitwise the same, and nothing but arrays is ever read."""

from __future__ import annotations

import pickle
import stat
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from odenet import FileError, NetSpec, load_weights, save_weights

FORMATS = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
dtypes = st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.bool_])
contents = st.dictionaries(
    st.text("abc.012", min_size=1, max_size=8).filter(lambda name: name.strip(".")),
    arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)),
    min_size=1,
    max_size=4,
)


def same(one, other):
    """Names, shapes, number types and every bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
        assert array.tobytes() == other[name].tobytes()


@FORMATS
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(weights=contents)
def test_weights_come_back_bit_for_bit(tmp_path, suffix, weights):
    path = tmp_path / f"weights{suffix}"
    assert save_weights(path, weights) == path
    same(weights, load_weights(path))


@FORMATS
def test_strides_and_special_numbers_survive(tmp_path, suffix):
    weights = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "part": np.arange(10.0)[::3],
        "special": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        "empty": np.zeros((0, 3)),
        "single": np.float64(2.5),
        "file": np.ones(1),  # an argument of numpy's own has this name
    }
    same(weights, load_weights(save_weights(tmp_path / f"weights{suffix}", weights)))


@FORMATS
def test_the_weights_of_a_network_travel(tmp_path, suffix):
    spec = NetSpec(depth=2, width=4)
    path = save_weights(tmp_path / "deep" / "folder" / f"net{suffix.upper()}", spec.init(1))
    again = load_weights(str(path))
    spec.check(again)
    same(spec.init(1), again)


def test_a_pickle_inside_an_archive_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "trapped").touch, ()

    path = tmp_path / "weights.npz"
    np.savez(path, weight=np.array([Trap()], dtype=object))
    with pytest.raises(FileError, match=r"no \.npz file of plain arrays"):
        load_weights(path)
    (tmp_path / "weights.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileError, match=r"no \.npz file of plain arrays"):
        load_weights(path)
    assert not (tmp_path / "trapped").exists()


@FORMATS
def test_a_pickle_is_never_written(tmp_path, suffix):
    with pytest.raises(FileError, match="object"):
        save_weights(tmp_path / f"weights{suffix}", {"weight": np.array([object()], dtype=object)})
    assert list(tmp_path.iterdir()) == []


@FORMATS
@pytest.mark.parametrize("damage", ["empty", "noise", "half"])
def test_a_broken_file_is_named(tmp_path, suffix, damage):
    path = save_weights(tmp_path / f"weights{suffix}", {"weight": np.arange(100.0)})
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "noise": b"\x01noise" * 50, "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(FileError, match=rf"weights\{suffix} is no \{suffix} file of plain arrays"):
        load_weights(path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(FileError, match=r"no \.npz file of plain arrays"):
        load_weights(path)


def test_one_bare_array_is_no_archive(tmp_path):
    path = tmp_path / "weights.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(FileError, match=r"no \.npz file of plain arrays"):
        load_weights(path)


@FORMATS
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(FileError, match=f"there is no file .*gone{suffix}"):
        load_weights(tmp_path / f"gone{suffix}")


@pytest.mark.parametrize("name", ["weights.pt", "weights", "weights.npz.bak"])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(FileError, match=r"\.safetensors or \.npz"):
        save_weights(tmp_path / name, {"weight": np.ones(1)})
    with pytest.raises(FileError, match=r"\.safetensors or \.npz"):
        load_weights(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@FORMATS
def test_others_may_read_the_file_as_they_may_any_new_file(tmp_path, suffix):
    (tmp_path / "plain").touch()
    path = save_weights(tmp_path / f"weights{suffix}", {"weight": np.ones(1)})
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
