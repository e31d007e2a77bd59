# %% [markdown]
# # A ViT of timm, converted and fine-tuned
#
# `odenet_torch.convert` finds the residual layers of a model that somebody else wrote, and trains them without stored
# activations. The model computes the same function as before; the images are the handwritten digits of scikit-learn.

# %%
import copy
import gc

import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

from odenet_torch import convert

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
plain = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, num_classes=10, depth=8, embed_dim=48, num_heads=3
)
order = torch.randperm(len(labels))
seen, unseen = order[:1344], order[1344:]


def train(network, epochs, lr):
    """Adam over the images seen; returns the loss of each step."""
    optimizer, losses = torch.optim.AdamW(network.train().parameters(), lr=lr), []
    for _ in range(epochs):
        for start in range(0, len(seen), 64):
            chosen = seen[start : start + 64]
            loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def accuracy(network):
    """Part of the images that were not seen that is classified right."""
    with torch.no_grad():
        return (network.eval()(images[unseen]).argmax(1) == labels[unseen]).float().mean().item()


losses = train(plain, 4, 2e-3)
print(f"the plain model, trained for a short time: {100 * accuracy(plain):.0f} %")

# %% [markdown]
# Convert the model.

# %%
model = convert(copy.deepcopy(plain), "blocks", example=images[:2], gradient="checkpoint")
with torch.no_grad():
    apart = (model.eval()(images[:16]) - plain.eval()(images[:16])).abs().max().item()
print(f"{model.blocks[0].odenet_run}; outputs differ by {apart:.0e}")
assert apart < 1e-5

# %% [markdown]
# One step: the same gradient, and what is kept for it.


# %%
def storages():
    """Of all tensors that Python sees."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


kept, gradients = {}, {}
for name, network in (("plain", plain), ("converted", model)):
    network.train()
    network.zero_grad()
    before, saved = storages(), {}

    def pack(tensor, saved=saved):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(network(images[:64]), labels[:64])
    waiting = {**saved, **storages()}
    kept[name] = sum(size for place, size in waiting.items() if place not in before) / 2**20
    loss.backward()
    gradients[name] = torch.cat([p.grad.flatten() for p in network.parameters()])
error = ((gradients["converted"] - gradients["plain"]).norm() / gradients["plain"].norm()).item()
print(f"kept: {kept['plain']:.1f} MiB plain, {kept['converted']:.1f} MiB converted; gradients differ by {error:.0e}")
assert error < 1e-4
assert kept["converted"] < kept["plain"] / 3

# %% [markdown]
# Fine-tune the converted model.

# %%
before = accuracy(model)
losses += train(model, 4, 1e-3)
after = accuracy(model)
print(f"{100 * before:.0f} % of {len(unseen)} unseen digits are classified right before, {100 * after:.0f} % after")
assert after > max(0.85, before)

# %%
plt.plot(losses)
plt.axvline(len(losses) / 2, linestyle=":", label="converted")
plt.xlabel("step of training")
plt.ylabel("cross-entropy")
plt.legend()
plt.show()
