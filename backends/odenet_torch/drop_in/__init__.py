"""torchdiffeq's calls over this library's steps: what `odenet_torch.odeint` and its companions are made of."""
