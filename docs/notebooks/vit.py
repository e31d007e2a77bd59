# %% [markdown]
# # A ViT of timm, converted and fine-tuned
#
# `odenet_torch.convert` finds the residual layers of a model that somebody else wrote, and trains them without stored
# activations. The model computes what it computed before; the images are the handwritten digits of scikit-learn.

# %%
import copy

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
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, depth=8, embed_dim=48, num_heads=3
)
model = convert(copy.deepcopy(plain), "blocks", example=images[:2], gradient="checkpoint")
with torch.no_grad():
    apart = (model.eval()(images[:16]) - plain.eval()(images[:16])).abs().max().item()
print(f"{model.blocks[0].odenet_run}; outputs differ by {apart:.0e}")
assert apart < 1e-5

# %% [markdown]
# One step: the same gradient, and what is kept for it.

# %%
kept = {}
gradients = {}
for name, network in (("plain", plain), ("converted", model)):
    network.train()
    sizes = {}
    there = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor, sizes=sizes, there=there):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(network(images[:64]), labels[:64])
    kept[name] = sum(sizes.values()) / 2**20
    loss.backward()
    gradients[name] = torch.cat([p.grad.flatten() for p in network.parameters()])
error = ((gradients["converted"] - gradients["plain"]).norm() / gradients["plain"].norm()).item()
print(f"kept: {kept['plain']:.1f} MiB plain, {kept['converted']:.1f} MiB converted; gradients differ by {error:.0e}")
assert error < 1e-4
assert kept["converted"] < kept["plain"] / 3

# %% [markdown]
# Training, on three quarters of the digits.

# %%
order = torch.randperm(len(labels))
seen, unseen = order[:1344], order[1344:]
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
losses = []
for _ in range(4):
    for start in range(0, len(seen), 64):
        chosen = seen[start : start + 64]
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
with torch.no_grad():
    accuracy = (model.eval()(images[unseen]).argmax(1) == labels[unseen]).float().mean().item()
print(f"{100 * accuracy:.0f} % of {len(unseen)} unseen digits are classified right")
assert accuracy > 0.7

# %%
plt.plot(losses)
plt.xlabel("step of training")
plt.ylabel("cross-entropy")
plt.show()
