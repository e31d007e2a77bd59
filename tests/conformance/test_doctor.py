"""The doctor on models of both frameworks: true errors, an untouched model, and the right diagnosis."""

from __future__ import annotations

import copy
from typing import Any

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import odenet
import odenet_jax
import odenet_torch
from odenet import DiscreteAdjoint, InputError, NetSpec

WIDTH, BATCH = 6, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((BATCH, WIDTH))
SMOOTH = np.cos(np.arange(64) / 16)[:, None, None] * RNG.standard_normal((WIDTH, WIDTH)) + np.eye(WIDTH)


class Tanh(nn.Module):
    """`tanh(A x)`."""

    def __init__(self, a: np.ndarray) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Any) -> Any:
        return torch.tanh(x @ self.a.T)


class JaxTanh(eqx.Module):
    """The same."""

    a: Any

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(x @ self.a.T)


class JaxModel(eqx.Module):
    """A stack between two linear maps."""

    stem: Any
    stack: Any
    head: Any
    rows: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Any) -> Any:
        stack = jax.vmap(self.stack) if self.rows else self.stack
        return stack(x @ self.stem.T) @ self.head.T


def model(backend: str, layers: Any, rows: bool = False, **choices: Any) -> Any:
    """stem, residual stack of these matrices, head: the same numbers in both frameworks."""
    rng, layers = np.random.default_rng(1), list(layers)  # kept, so that no id is used twice
    stem, head = rng.standard_normal((WIDTH, WIDTH)) / 2, rng.standard_normal((2, WIDTH)) / 2
    if backend == "jax":
        made: dict[int, Any] = {}
        blocks = [made.setdefault(id(a), JaxTanh(jnp.asarray(a))) for a in layers]
        return JaxModel(jnp.asarray(stem), odenet_jax.ResidualStack(blocks, **choices), jnp.asarray(head), rows)
    made = {}
    blocks = [made.setdefault(id(a), Tanh(a)) for a in layers]
    ends = [nn.Linear(WIDTH, size, bias=False).double() for size in (WIDTH, 2)]
    for end, value in zip(ends, (stem, head), strict=True):
        end.weight.data = torch.tensor(value)
    return nn.Sequential(ends[0], odenet_torch.ResidualStack(blocks, **choices), ends[1])


def stack_of(model: Any) -> Any:
    """The residual stack in `model(...)`."""
    return model[1] if isinstance(model, nn.Module) else model.stack


def test_the_error_is_that_of_a_network_built_with_the_method(backend: str) -> None:
    """Two ways to one number: the doctor on a backprop network, and the network that the method was built into."""
    spec = NetSpec("mlp", 6, 4, 4, (4,), 3, activation="tanh")
    batch = RNG.standard_normal((3, 4)), np.array([0, 2, 1])
    loaded, weights = odenet.backend(backend), spec.init(0)
    choices: dict[str, Any] = {"solver": odenet.solver("euler"), "dtype": "float64"}
    method = DiscreteAdjoint(correct=False)
    exact, found = (
        loaded.evaluate(loaded.build(spec, weights, gradient=each, **choices), *batch)
        for each in (odenet.Backprop(), method)
    )
    examined = odenet.check_gradients(
        loaded.build(spec, weights, gradient=odenet.Backprop(), **choices), batch, gradients=method
    ).examinations[0]
    for name, value in exact.gradients.items():
        expected = cases.relative(found.gradients[name], value)
        assert examined.by_weight[name] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    third = [np.concatenate([g[f"block.{n}"][3].ravel() for n in NAMES]) for g in (found.gradients, exact.gradients)]
    assert examined.by_layer["3"] == pytest.approx(cases.relative(*third), rel=1e-6)
    assert examined.certificate == pytest.approx(found.certificate, rel=1e-6)
    assert examined.estimate == examined.certificate


NAMES = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")


def test_the_backends_agree_on_a_user_s_model() -> None:
    """Errors by layer, the certificate, the smoothness, the contraction and so the verdict."""
    found = {}
    for name in cases.BACKENDS:
        with odenet.backend(name).prepare("float64", "cpu"):
            methods = ["discrete-adjoint", "discrete-adjoint:iterations=2"]
            found[name] = odenet.check_gradients(model(name, SMOOTH[:8]), X, gradients=methods)
    one, other = found.values()
    assert one.contraction == pytest.approx(other.contraction, rel=1e-4)
    assert one.smoothness == pytest.approx(other.smoothness, rel=1e-12)
    for mine, theirs in zip(one.examinations, other.examinations, strict=True):
        assert list(mine.by_layer)[-1] == "outside"
        assert list(mine.by_layer.values()) == pytest.approx(list(theirs.by_layer.values()), rel=1e-6)
        assert mine.certificate == pytest.approx(theirs.certificate, rel=1e-6)
    assert one.verdict == other.verdict


def test_a_model_that_is_not_contractive_is_sent_to_checkpoint(backend: str) -> None:
    """A plain ResNet: steps of 1, large weights."""
    layers = 3 * np.random.default_rng(2).standard_normal((8, WIDTH, WIDTH))
    methods = ["backprop", "checkpoint", "discrete-adjoint", "discrete-adjoint:iterations=2"]
    found = odenet.check_gradients(model(backend, layers, t1=8.0), X, gradients=methods)
    assert found.of("discrete-adjoint").gradient_error > 0.1
    assert found.of("checkpoint").gradient_error < 1e-14
    assert found.recommended.label == "checkpoint"
    assert "not contractive" in found.verdict


def test_a_broken_method_is_detected(thorough: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the extrapolation with a wrong sign: nothing fails, and the gradient is wrong."""
    extrapolated = "discrete-adjoint:predictor=extrapolate"
    whole, layers = model(thorough, SMOOTH[:32]), [str(n) for n in range(32)]
    right = odenet.check_gradients(whole, X, gradients=extrapolated).examinations[0]
    monkeypatch.setattr(DiscreteAdjoint, "continued", (2.0, 1.0))
    found = odenet.check_gradients(whole, X, gradients=["backprop", extrapolated], tolerance=3 * right.gradient_error)
    wrong = found.examinations[1]
    assert wrong.gradient_error > 3 * right.gradient_error
    assert (
        max(wrong.by_layer, key=lambda label: wrong.by_layer[label]).removeprefix("1.").removeprefix("stack.") in layers
    )
    assert found.recommended.label == "backprop"


def test_tied_blocks_share_their_gradient_and_its_error(backend: str) -> None:
    a, b = SMOOTH[0], SMOOTH[20]
    found = odenet.check_gradients(model(backend, [a, b, a, a]), X, gradients="discrete-adjoint:correct=no")
    first, second, third, fourth, _ = found.examinations[0].by_layer.values()
    assert first == third == fourth != second
    assert found.steps == 4


def test_heun_and_its_reversible_network(backend: str) -> None:
    """`reversible` is exact on the network that it needs, and the model has its own solver again."""
    whole = model(backend, SMOOTH[:5], solver="heun")
    found = odenet.check_gradients(whole, X, gradients=["reversible"])
    (reversible,) = found.examinations
    assert reversible.label == "reversible on reversible:heun"
    assert reversible.gradient_error < 1e-13
    assert reversible.certificate < 1e-13
    assert len(reversible.by_layer) == 6
    assert stack_of(whole).solver.label == "heun"


@pytest.mark.parametrize("start", ["smooth", "independent"])
def test_the_estimate_is_of_the_size_of_the_error(start: str) -> None:
    """benchmarks/results/certificate.md has more of these. In torch: certificates are the same in JAX."""
    for name in ("euler", "heun", "rk4"):
        exact = cases.network_gradient("torch", name, "backprop", 16, start)[0]
        for method in ("discrete-adjoint", "discrete-adjoint:correct=no", "discrete-adjoint:iterations=2"):
            found, stats = cases.network_gradient("torch", name, method, 16, start)
            ratio = cases.relative(found, exact) / stats.gradient_error_estimate
            assert (0.05 if "no" in method else 0.2) < ratio < 3, (name, method)


def test_rows_of_a_vmap_have_the_mean_certificate_and_not_the_sum() -> None:
    with odenet.backend("jax").prepare("float64", "cpu"):
        whole, rows = (
            odenet.check_gradients(model("jax", SMOOTH[:8], rows=each), X, gradients="discrete-adjoint").examinations[0]
            for each in (False, True)
        )
    assert rows.gradient_error == pytest.approx(whole.gradient_error, rel=1e-6)
    assert 0.5 < rows.certificate / whole.certificate < 3
    assert rows.cost == whole.cost


def test_the_jax_model_is_left_as_it_was() -> None:
    with odenet.backend("jax").prepare("float64", "cpu"):
        whole = model("jax", SMOOTH[:4], gradient="continuous-adjoint")
        before = jax.tree.map(np.asarray, whole)
        odenet.check_gradients(whole, X, gradients=["discrete-adjoint", "reversible"])
        assert eqx.tree_equal(jax.tree.map(np.asarray, whole), before)
        assert whole.stack.gradient == odenet.ContinuousAdjoint()


class Noisy(nn.Module):
    """Dropout and batch normalisation around a matrix."""

    def __init__(self, a: np.ndarray) -> None:
        super().__init__()
        self.inner = nn.Sequential(Tanh(a), nn.Dropout(0.5), nn.BatchNorm1d(WIDTH, dtype=torch.float64))

    def forward(self, x: Any) -> Any:
        return self.inner(x)


def noisy(**choices: Any) -> Any:
    """In training mode, on a stack with a head of its own dropout."""
    stack = odenet_torch.ResidualStack([Noisy(a) for a in SMOOTH[:8]], t1=0.1, **choices)
    return nn.Sequential(stack, nn.Dropout(0.3))


def test_the_torch_model_is_left_as_it_was() -> None:
    """Parameters, their .grad, buffers, choices, stats, training flags and the random state."""
    whole, x = noisy(gradient="continuous-adjoint"), torch.tensor(X)
    whole(x).sum().backward()
    whole[1].eval()
    gradients = [p.grad for p in whole.parameters()]
    before = copy.deepcopy((whole.state_dict(), gradients))
    buffers, stats, state = list(whole.buffers()), whole[0].stats, torch.get_rng_state()
    with torch.no_grad():
        found = odenet.check_gradients(whole, x)
    assert all(each.trouble is None for each in found.examinations)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    assert all(p.grad is g for p, g in zip(whole.parameters(), gradients, strict=True))
    assert all(torch.equal(g, value) for g, value in zip(gradients, before[1], strict=True))
    assert all(one is other for one, other in zip(whole.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert (whole.training, whole[0].training, whole[1].training) == (True, True, False)
    assert (whole[0].gradient, whole[0].solver.label) == (odenet.ContinuousAdjoint(), "euler")
    assert whole[0].stats is stats


def test_the_torch_model_is_left_as_it_was_after_a_failure() -> None:
    whole = model("torch", SMOOTH[:4], gradient="checkpoint")

    def loss(outputs: Any) -> Any:
        raise RuntimeError("out of memory, say")

    with pytest.raises(RuntimeError, match="say"):
        odenet.check_gradients(whole, X, loss=loss)
    assert (whole[1].gradient, whole[1].stats) == (odenet.Checkpoint(), None)


def test_every_method_sees_the_same_dropout_masks() -> None:
    """With masks of their own, methods would be off by the masks, and be as far from backprop as from each other."""
    torch.manual_seed(0)  # 2 of 400 sets of masks leave a feature without variance, where 40 iterations diverge
    found = odenet.check_gradients(noisy(), X, gradients=["backprop", "checkpoint", "discrete-adjoint:iterations=40"])
    assert [each.gradient_error for each in found.examinations[:2]] == [0.0, 0.0]
    assert found.examinations[2].gradient_error < 1e-12


def test_a_solve_that_is_called_twice_has_twice_the_cost_and_its_worst_certificate() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = odenet_torch.ResidualStack([Tanh(a) for a in SMOOTH[:4]])

        def forward(self, x: Any) -> Any:
            return self.stack(30 * self.stack(x))

    whole = Twice()
    (found,) = odenet.check_gradients(whole, X, gradients="discrete-adjoint").examinations
    assert found.cost.f_forward == 8
    certificates = []
    handle = whole.stack.register_forward_hook(lambda module, i, o: certificates.append(module.stats))
    whole.stack.gradient = DiscreteAdjoint()
    whole(torch.tensor(X)).sum().backward()
    handle.remove()
    assert found.certificate == pytest.approx(max(stats.certificate for stats in certificates), rel=0.5)


def test_layers_of_a_converted_model_are_found() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    )
    x = torch.randn(2, 3, 8)
    converted = odenet_torch.convert(encoder, example=x)
    found = odenet.check_gradients(converted, x, gradients=["backprop", "discrete-adjoint"])
    assert list(found.examinations[0].by_layer) == [f"layers.0.odenet_run.{n}" for n in range(2)]
    assert found.examinations[0].gradient_error == 0
    assert found.examinations[1].trouble is None


def test_losses_by_default_and_by_the_user(backend: str) -> None:
    """A target of the outputs' shape, class numbers, nothing, and a function: four gradients of one model."""
    loaded, whole, method = odenet.backend(backend), model(backend, SMOOTH[:4]), odenet.Backprop()
    values = RNG.standard_normal((BATCH, 2))
    outputs = loaded.to_numpy(whole(torch.tensor(X) if backend == "torch" else jnp.asarray(X)))
    assert loaded.examine(whole, X, None, method).loss == pytest.approx(0.5 * (outputs**2).mean())
    assert loaded.examine(whole, (X, values), None, method).loss == pytest.approx(
        0.5 * ((outputs - values) ** 2).mean()
    )
    classes = np.array([0, 1, 1, 0, 1])
    shifted = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    expected = -shifted[np.arange(BATCH), classes].mean()
    assert loaded.examine(whole, (X, classes), None, method).loss == pytest.approx(expected)
    assert loaded.examine(whole, (X, values), lambda out, target: (out * target).sum(), method).loss == pytest.approx(
        (outputs * values).sum()
    )


def test_what_cannot_be_examined_is_said(backend: str) -> None:
    whole = model(backend, SMOOTH[:4])
    plain = nn.Linear(2, 2) if backend == "torch" else eqx.nn.Linear(2, 2, key=jax.random.key(0))
    for arguments, choices, match in (
        ((plain, X), {}, "without a solve in it"),
        ((whole, (X, np.ones(3))), {}, "without a loss"),
        ((whole, X), {"loss": lambda outputs: outputs}, "real scalar"),
    ):
        with pytest.raises(InputError, match=match):
            odenet.check_gradients(*arguments, **choices)


def test_half_the_time_in_half_precision_is_no_obstacle(backend: str) -> None:
    """bfloat16 parameters: backprop repeats itself, and the number type is said."""
    whole = model(backend, SMOOTH[:4])
    if backend == "torch":
        whole, x = whole.bfloat16(), torch.tensor(X).bfloat16()
    else:
        whole = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole)
        x = jnp.asarray(X, jnp.bfloat16)
    found = odenet.check_gradients(whole, x, gradients=["backprop", "discrete-adjoint"])
    assert found.dtype == "bfloat16"
    assert found.of("backprop").gradient_error == 0
    assert 0 < found.of("discrete-adjoint").gradient_error < 0.5
