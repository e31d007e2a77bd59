"""An optimiser of torch's in the place of gradient descent with momentum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenet import InputError, UnsupportedError
from odenet.kit import Imported

_STRUCTURE = "structure"  # the array of a state that says, as JSON, what the others are
_PLAIN = (bool, int, float, str, type(None))


class ChosenOptimizer:
    """An optimiser that a user chose, with what it remembers as arrays.

    Args:
        choice: what to call with the weights: a class of optimisers, or a function that makes one.
        weights: what it changes, by name.
        factors: of its rate, by name.

    Raises:
        InputError: what was chosen makes no optimiser of torch's, or one without a rate.
    """

    def __init__(self, choice: Imported, weights: Mapping[str, Tensor], factors: Mapping[str, float]) -> None:
        self.choice, self.weights = choice, list(weights.values())
        if choice.origins & {"optax", "jax"}:
            raise _foreign(choice)
        every = sorted(set(factors.values()))
        groups = [{"params": [w for name, w in weights.items() if factors[name] == factor]} for factor in every]
        optimizer = choice(groups)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise _foreign(choice)
        if not all(isinstance(group.get("lr"), int | float | Tensor) for group in optimizer.param_groups):
            raise InputError(
                f"{choice.text}, an optimiser without a rate lr in its groups", "one whose groups have lr to multiply"
            )
        self.optimizer = optimizer
        self.rates = [group["lr"] * factor for group, factor in zip(optimizer.param_groups, every, strict=True)]
        own = type(optimizer)
        base = torch.optim.Optimizer
        self.plain = own.state_dict is base.state_dict and own.load_state_dict is base.load_state_dict
        self.aside = self._aside()
        self.tried = False

    def step(self, gradients: tuple[Tensor | None, ...], lr: float) -> None:
        """Change the weights by their gradients, with `lr` times the optimiser's own rate.

        Raises:
            UnsupportedError: it fails without a closure, draws random numbers or changes its own rate.
        """
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        rates = [rate * lr for rate in self.rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        before = None if self.tried else self._random()
        try:
            self.optimizer.step()
        except Exception as error:  # code of somebody else's, which may fail in any way
            raise self._unsupported(f"cannot take a step ({type(error).__name__}: {error})") from error
        finally:
            for weight in self.weights:
                weight.grad = None
        if before is not None and any(not torch.equal(a, b) for a, b in zip(before, self._random(), strict=True)):
            raise self._unsupported("draws random numbers, so that a resumed run would give other results")
        self.tried = True
        if any(group["lr"] is not rate for group, rate in zip(self.optimizer.param_groups, rates, strict=True)):
            raise self._unsupported("changes its own lr, which the schedule of the run sets")

    def state(self) -> dict[str, np.ndarray]:
        """Copies of what it remembers: tensors by number, and as JSON how they and plain numbers belong together.

        Raises:
            UnsupportedError: it remembers what is neither, or something outside of its `state_dict`.
        """
        if self.plain and self._aside() != self.aside:
            raise self._unsupported("remembers something outside of its state_dict")
        arrays: dict[str, np.ndarray] = {}
        text = json.dumps(self._packed(self.optimizer.state_dict(), arrays))
        return {_STRUCTURE: np.frombuffer(text.encode(), np.uint8).copy(), **arrays}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave.

        Raises:
            InputError: it is of another optimiser.
        """
        try:
            tree = self._unpacked(json.loads(state[_STRUCTURE].tobytes().decode()), state)
            self.optimizer.load_state_dict(tree)
        except Exception as error:  # each optimiser has its own ways to refuse
            raise InputError(
                f"a state of training that {self.choice.text} cannot go on from ({type(error).__name__}: {error})",
                "one of the same optimiser with the same options",
            ) from error
        if self.plain:  # torch has rounded it to the weights' number type, and moved it to their device
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            for index, remembered in tree["state"].items():
                self.optimizer.state[weights[index]] = remembered

    def _aside(self) -> dict[str, Any]:
        """The optimiser's own attributes, as far as they can be compared."""
        attributes = {}
        for name, value in vars(self.optimizer).items():
            if name.startswith("_") or name in ("state", "param_groups", "defaults"):
                continue
            arrays: dict[str, np.ndarray] = {}
            try:
                attributes[name] = json.dumps(self._packed(value, arrays)), [a.tobytes() for a in arrays.values()]
            except UnsupportedError:
                continue
        return attributes

    def _random(self) -> list[Tensor]:
        device = self.weights[0].device
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    def _packed(self, value: Any, arrays: dict[str, np.ndarray]) -> Any:
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
            whole = value.detach().cpu().contiguous()
            number = str(len(arrays))
            # NumPy has no bfloat16: every number is kept as its bytes
            arrays[number] = whole.reshape(-1).view(torch.uint8).numpy().copy()
            kind = str(whole.dtype).removeprefix("torch.")
            return {"tensor": number, "shape": list(whole.shape), "dtype": kind, "cpu": value.device.type == "cpu"}
        if isinstance(value, _PLAIN):
            return {"plain": value}
        if isinstance(value, Mapping):
            return {"pairs": [[self._packed(key, arrays), self._packed(one, arrays)] for key, one in value.items()]}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self._packed(one, arrays) for one in value]}
        raise self._unsupported(f"remembers a {type(value).__name__}")

    def _unpacked(self, packed: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
        if "tensor" in packed:
            data = torch.from_numpy(np.array(arrays[packed["tensor"]]))
            tensor = data.view(getattr(torch, packed["dtype"])).reshape(packed["shape"])
            return tensor.to("cpu" if packed["cpu"] else self.weights[0].device)
        if "plain" in packed:
            return packed["plain"]
        if "pairs" in packed:
            return {self._unpacked(key, arrays): self._unpacked(item, arrays) for key, item in packed["pairs"]}
        kind = tuple if "tuple" in packed else list
        return kind(self._unpacked(item, arrays) for item in packed[kind.__name__])

    def _unsupported(self, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"the optimiser {self.choice.text} {why}",
            "one that takes a step from gradients alone, and whose state_dict is all that it remembers",
            "take another, such as torch.optim:AdamW",
        )


def _foreign(choice: Imported) -> InputError:
    return InputError(
        f"{choice.text} is no optimiser of torch",
        "a class of torch.optim, one that is derived from torch.optim.Optimizer, or a function that makes one",
        "take torch.optim:AdamW,lr=1e-3 or another of torch.optim, or --backend jax for one of optax",
    )
