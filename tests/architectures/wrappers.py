"""What wraps a model in training works on a converted one: Trainer, peft, accelerate, Lightning.

Run by `make test-architectures`, whose environment has these packages; the name keeps it out of the other test runs.
Each trains the plain model and the converted one for some steps, on the same batches; their weights stay together.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from odenet_torch import convert, unconvert

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of these packages
    pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:bits=16", "discrete-adjoint:iterations=25"]),
]
IDS = torch.arange(48).view(8, 6) * 7 % 40


def language_model() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=4,
        n_head=2,
        vocab_size=40,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=None,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config)


def converted(model: nn.Module, gradient: str) -> nn.Module:
    return convert(copy.deepcopy(model), example={"input_ids": IDS, "use_cache": False}, gradient=gradient)


def require_together(plain: nn.Module, model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """The way that the weights went is the same to some per cent, and it is one."""
    one, other = plain.state_dict(), model.state_dict()
    assert one.keys() == other.keys() == before.keys()
    moved = sum(float((one[k] - before[k]).double().square().sum()) for k in one if one[k].is_floating_point())
    apart = sum(float((one[k] - other[k]).double().square().sum()) for k in one if one[k].is_floating_point())
    assert moved > 0
    assert apart <= 0.05**2 * moved, (apart, moved)


def batch() -> dict[str, Any]:
    return {"input_ids": IDS, "labels": IDS}


def test_transformers_trainer(gradient, tmp_path):
    import transformers

    plain = language_model()
    model, before = converted(plain, gradient), copy.deepcopy(plain.state_dict())
    data = [{"input_ids": row, "labels": row} for row in IDS]
    for each, name in ((plain, "plain"), (model, "model")):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / name),
            max_steps=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            report_to=[],
            save_steps=4,
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        transformers.Trainer(each, arguments, train_dataset=data).train()
    require_together(plain, model, before)
    assert (tmp_path / "model" / "checkpoint-4").is_dir()
    saved = type(plain).from_pretrained(str(tmp_path / "model" / "checkpoint-4"))
    for key, value in saved.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("before_lora", [True, False])
def test_low_rank_adapters(gradient, before_lora):
    import peft

    plain = language_model()
    ends = []
    for convert_it in (False, True):
        torch.manual_seed(3)
        model: Any = copy.deepcopy(plain)
        config = peft.LoraConfig(r=2, lora_alpha=1, target_modules=["c_attn", "c_proj"], lora_dropout=0.1)
        if convert_it and before_lora:
            model = converted(model, gradient)
        torch.manual_seed(4)
        model = peft.get_peft_model(model, config)
        if convert_it and not before_lora:
            convert(model.base_model.model, example={"input_ids": IDS, "use_cache": False}, gradient=gradient)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
        start = copy.deepcopy(model.state_dict())
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(**batch()).loss.backward()
            optimizer.step()
        ends.append((model, start))
    (one, start), (other, _) = ends
    require_together(one, other, start)
    assert all((p.grad is not None) == p.requires_grad for p in other.parameters())
    merged = unconvert(other).merge_and_unload()
    one = one.merge_and_unload()
    torch.testing.assert_close(merged.eval()(IDS).logits, one.eval()(IDS).logits, rtol=0.05, atol=0.05)


def test_accelerate(gradient):
    from accelerate import Accelerator

    plain = language_model()
    model, before = converted(plain, gradient), copy.deepcopy(plain.state_dict())
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for each in (plain, model):
        torch.manual_seed(0)
        loader = DataLoader(list(IDS), batch_size=2)
        wrapped, optimizer, batches = accelerator.prepare(each, torch.optim.Adam(each.parameters(), 1e-3), loader)
        for ids in batches:
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(input_ids=ids, labels=ids).loss)
                accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    require_together(plain, model, before)


def test_lightning(gradient, tmp_path):
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, labels=ids).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    plain = language_model()
    model, before = converted(plain, gradient), copy.deepcopy(plain.state_dict())
    for each in (plain, model):
        torch.manual_seed(0)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Training(each), DataLoader(list(IDS), batch_size=4))
    require_together(plain, model, before)
