"""What is known of a module stands on the module: it goes with it, and neither copies nor files have it."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from odenet_torch import ResidualStack, convert
from odenet_torch.field.knowledge import KEY, Knowledge, knowledge
from odenet_torch.field.surroundings import reach


class Widening(nn.Module):
    """Changes the number of channels: a layer that cannot be undone."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(a, b), nn.Tanh())

    def forward(self, x: Any) -> Any:
        return self.inner(x)


def trained(gradient: str) -> nn.Module:
    torch.manual_seed(0)
    net = ResidualStack([Widening(4, 4) for _ in range(3)], gradient=gradient)
    for _ in range(3):
        net(torch.randn(2, 4)).sum().backward()
    return net


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_layers_that_cannot_be_undone_are_let_go_with_their_example(gradient: str) -> None:
    net = nn.Sequential(Widening(4, 6), Widening(6, 4), Widening(4, 6))
    x = torch.randn(2, 4)
    convert(net, example=x, gradient=gradient)
    net(torch.randn(2, 4)).sum().backward()
    gone = [weakref.ref(x), *map(weakref.ref, net)]
    del x
    gc.collect()
    assert gone[0]() is None
    del net
    gc.collect()
    assert not any(ref() is not None for ref in gone)


def test_copies_and_files_know_nothing() -> None:
    net = trained("checkpoint")
    block = net.blocks[0]
    assert type(vars(block)[KEY]) is Knowledge
    assert knowledge(block).settled
    twin = copy.copy(block)
    assert knowledge(twin) is not knowledge(block)
    assert not knowledge(twin).settled
    assert knowledge(block).settled  # copying took nothing from it
    assert vars(copy.deepcopy(block))[KEY] is None
    assert not vars(pickle.loads(pickle.dumps(block)))[KEY]
    assert not knowledge(copy.deepcopy(block)).settled
    assert all(KEY not in name for name in block.state_dict())


def test_a_plain_module_that_was_trained_is_read_without_odenet(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    stack = ResidualStack([net, nn.Sequential(nn.Linear(4, 4), nn.Tanh())], gradient="checkpoint")
    stack(torch.randn(2, 4)).sum().backward()
    assert KEY in vars(net)
    file = tmp_path / "net.pt"
    torch.save(net, file)
    load = f"torch.load({str(file)!r}, weights_only=False)(torch.ones(1, 4))"
    code = f"import sys, torch; {load}; assert 'odenet' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={})


def test_what_is_known_is_found_again_and_is_nothing_that_is_looked_at() -> None:
    net = trained("checkpoint")
    block = net.blocks[1]
    now = reach(block)
    assert reach(block) is now
    assert not any(KEY in contents for contents in now.contents)
    block.scale = 2.0
    assert reach(block) is not now


def test_functions_methods_and_what_takes_no_attribute() -> None:
    def function(t: Any, y: Any) -> Any:
        return -y

    assert reach(function) is reach(function)
    assert function.__dict__.keys() == {KEY}
    block = Widening(4, 4)
    assert knowledge(block.forward) is None
    assert knowledge(torch.tanh) is None
    assert knowledge(Widening) is None
    assert KEY not in vars(Widening.forward)
    assert reach(torch.tanh) is not None
