"""Networks as graphs: torch.export and torch.jit.trace have the same outputs, or it is said why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odenet import UnsupportedError
from odenet_torch import NeuralODE, ResidualStack, convert

METHODS = {
    "backprop": "euler",
    "checkpoint": "euler",
    "checkpoint:states=2": "euler",
    "discrete-adjoint": "euler",
    "continuous-adjoint": "euler",
    "reversible": "alf",
    "auto": "euler",
}


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) + t


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))

    def forward(self, x):
        return x + self.f(x)


def stack(gradient):
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5)) for _ in range(3)]
    return ResidualStack(blocks, solver=METHODS[gradient], gradient=gradient, along="piecewise")


NETWORKS = {
    **{f"stack, {gradient}": lambda gradient=gradient: stack(gradient) for gradient in METHODS},
    **{
        f"NeuralODE, {gradient}": lambda gradient=gradient: NeuralODE(Field(), steps=3, gradient=gradient)
        for gradient in ("checkpoint", "discrete-adjoint")
    },
    "converted": lambda: convert(
        nn.Sequential(*[Residual() for _ in range(3)]), example=torch.randn(2, 4), gradient="checkpoint"
    ),
}


def exported(net, x, strict=False):
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=strict)
    # as ONNX does next: an operation that asks for a value is in the graph until then
    return program.run_decompositions({}).module()


def traced(net, x):
    with torch.no_grad():
        return torch.jit.trace(net, x)


@pytest.mark.filterwarnings("ignore")  # torch says that both ways grow old, and that some constants are kept
@pytest.mark.parametrize("way", [exported, traced])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_has_the_outputs_of_the_network(name, way):
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    graph = way(net, torch.randn(3, 4))
    x = torch.randn(7, 4)  # of another size
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [exported, traced])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "continuous-adjoint"])
def test_steps_that_follow_a_tolerance_are_refused(gradient, way):
    net = NeuralODE(Field(), rtol=1e-3, atol=1e-3, gradient=gradient).eval()
    with pytest.raises(UnsupportedError, match="steps=N"):
        way(net, torch.randn(3, 4))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "ssprk3"])
def test_weights_between_layers_are_exported_and_refused_by_the_old_tracer(solver):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)]
    net = ResidualStack(blocks, solver=solver, along="linear", gradient="checkpoint").eval()
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(exported(net, torch.randn(3, 4))(x), net(x))
    if solver in ("rk4", "ssprk3"):  # which read between the layers
        with pytest.raises(UnsupportedError, match="dynamo=True"):
            traced(net, torch.randn(3, 4))
    else:
        with torch.no_grad():
            assert torch.equal(traced(net, torch.randn(3, 4))(x), net(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["stack, auto", "NeuralODE, discrete-adjoint", "converted"])
def test_an_export_by_dynamo_is_refused(name):
    """As is the default of torch 2.6 and 2.7, which wrap the error."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    with pytest.raises((UnsupportedError, torch._dynamo.exc.InternalTorchDynamoError), match="give strict=False"):
        exported(net, torch.randn(3, 4), strict=True)
    torch._dynamo.reset()
    with torch.no_grad():  # where a converted layer is its own code, which dynamo may look into
        assert torch.equal(torch.compile(net.eval(), backend="eager")(x := torch.randn(3, 4)), net(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_has_the_outputs_of_the_network(name, tmp_path):
    pytest.importorskip("onnxscript")  # of the environment of `make architectures`
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.onnx.export(net, (torch.randn(3, 4),), dynamo=True, dynamic_shapes=({0: batch},))
    assert program is not None
    program.save(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    x = torch.randn(7, 4)
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs), net(x), rtol=1e-5, atol=1e-6)
