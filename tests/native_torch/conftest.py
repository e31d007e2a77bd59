"""One thread: tensors here are tiny, and threads that wait for each other are slow on a busy machine."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def graphs():
    """The graphs that were compiled, and the choice of a backend that notes them."""
    torch._dynamo.reset()
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    yield seen, {"backend": backend}
    torch._dynamo.reset()


@pytest.fixture
def double():
    """float64 where no number type is given."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
