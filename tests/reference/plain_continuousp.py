"""ContinuouSP's energy as the paper writes it: one crystal, every image, float64."""

from __future__ import annotations

import itertools
import math

import torch
from torch.nn.functional import softplus


def energy(model, lattice, frac_coords, atomic_numbers, envelope=True):
    """E of one crystal; differentiable."""
    n = len(frac_coords)
    cart = frac_coords @ lattice
    volume = torch.linalg.det(lattice).abs()
    reach = 3 * (volume / n) ** (1 / 3)
    spread = (frac_coords.max(0).values - frac_coords.min(0).values).detach()
    heights = (1 / torch.linalg.inv(lattice).norm(dim=0)).detach()
    most = [math.ceil(float(reach / h) + float(s)) for h, s in zip(heights, spread, strict=True)]
    images = torch.tensor(list(itertools.product(*(range(-m, m + 1) for m in most))), dtype=lattice.dtype)
    vectors = cart[None, :, None] + (images @ lattice)[None, None] - cart[:, None, None]  # i, j, T
    squared = vectors.square().sum(-1)
    itself = torch.eye(n, dtype=torch.bool)[:, :, None] & (images == 0).all(1)
    inside = (squared < reach**2) & ~itself
    d = torch.where(inside, squared, 1.0).sqrt()
    omega = torch.where(inside, 1 + torch.cos(math.pi * d / reach) if envelope else torch.ones_like(d), 0.0)
    k = model.filter.size
    last, widths, x = {"broad": (20, 3, d), "sharp": (12, 1, d), "narrow": (1, 1, d / reach)}[
        model.filter.kind
    ]
    centers, width = torch.linspace(0, last, k, dtype=d.dtype), widths * last / (k - 1)
    phi = torch.exp(-0.5 * (x[..., None] - centers) ** 2 / width**2)
    h = torch.tanh(model.elements.weight[atomic_numbers - 1])
    for layer in model.layers:
        z = (layer.center(h)[:, None] + layer.neighbor(h)[None])[:, :, None] * layer.edge(phi)
        z1, z2 = z.chunk(2, dim=-1)
        message = (omega[..., None] * torch.sigmoid(z1) * z2).sum((1, 2))
        h = softplus(h + torch.tanh(message))
    x = h.mean(0)
    for layer in model.hidden:
        x = softplus(layer(x))
    return model.out(x)[0] + model.density_weight * torch.log(n / volume / model.density) ** 2
