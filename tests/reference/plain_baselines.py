"""CGCNN, MEGNet and SchNet as their papers write them: one crystal, one edge at a time, float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import softplus

from facetry.crystal import Crystal


def ssp(x):
    return softplus(x) - math.log(2.0)


def neighbours(crystal: Crystal, cutoff: float) -> list[list[tuple[float, int]]]:
    """(distance, neighbour) of every image within the cutoff, for each atom, by trying all images."""
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.lattice), axis=0)
    spread = np.ptp(crystal.frac_coords, axis=0)
    most = np.ceil(cutoff / heights + spread).astype(int)
    images = np.array(list(np.ndindex(*(2 * most + 1)))) - most
    found = []
    for x in crystal.frac_coords:
        d = np.linalg.norm((crystal.frac_coords[None] + images[:, None] - x) @ crystal.lattice, axis=2)
        found.append(
            sorted((float(d[i, j]), j) for i, j in zip(*np.nonzero((d < cutoff) & (d > 1e-8)), strict=True))
        )
    return found


def with_whole_shell(listed: list[tuple[float, int]], k: int) -> list[tuple[float, int]]:
    """The k nearest and all that are as far as the last of them."""
    return [pair for pair in listed if len(listed) <= k or pair[0] <= listed[k - 1][0] + 1e-3]


def gaussians(d: float, high: float, size: int, exponent) -> torch.Tensor:
    centres = torch.linspace(0, high, size, dtype=torch.float64)
    return torch.exp(-exponent * (d - centres) ** 2)


def normed(norm, x):
    """Batch normalisation in evaluation."""
    return (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias


def cgcnn(model, crystal: Crystal, k: int = 12, cutoff: float = 8.0) -> torch.Tensor:
    bonds = [with_whole_shell(listed, k) for listed in neighbours(crystal, cutoff)]
    h = model.atoms.linear(model.atoms.table[torch.tensor(crystal.atomic_numbers)])
    for layer in model.layers:
        new = []
        for i, listed in enumerate(bonds):
            total = torch.zeros_like(h[i])
            for d, j in listed:
                z = torch.cat([h[i], h[j], gaussians(d, 8.0, 41, 1 / 0.2**2)])
                gate, core = normed(layer.edge_norm, layer.mix(z)).chunk(2)
                total = total + torch.sigmoid(gate) * softplus(core)
            new.append(softplus(h[i] + normed(layer.norm, total)))
        h = torch.stack(new)
    return model.out(softplus(model.hidden[0](softplus(h.mean(0)))))


def perceptron(module, x):
    for layer in module.layers:
        x = ssp(layer(x))
    return x


def set2set(module, rows: torch.Tensor) -> torch.Tensor:
    """Vinyals 2016, with the LSTM written out."""
    d = rows.shape[1]
    q = c = torch.zeros(d, dtype=rows.dtype)
    star = torch.zeros(2 * d, dtype=rows.dtype)
    cell = module.cell
    for _ in range(module.passes):
        gates = cell.weight_ih @ star + cell.bias_ih + cell.weight_hh @ q + cell.bias_hh
        i, f, g, o = gates.chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        q = torch.sigmoid(o) * torch.tanh(c)
        share = torch.softmax(rows @ q, 0)
        star = torch.cat([q, share @ rows])
    return star


def megnet(model, crystal: Crystal, cutoff: float = 4.0) -> torch.Tensor:
    bonds = [(i, j, d) for i, listed in enumerate(neighbours(crystal, cutoff)) for d, j in listed]
    rows = model.element_row[torch.tensor(crystal.atomic_numbers)]
    v = perceptron(model.atom_in, model.elements(rows))
    e = torch.stack([perceptron(model.edge_in, gaussians(d, 5.0, 100, 1 / 0.5**2)) for _, _, d in bonds])
    u = perceptron(model.state_in, torch.zeros(2, dtype=v.dtype))
    for number, block in enumerate(model.layers):
        v0, e0, u0 = v, e, u
        if number:
            v, e, u = (perceptron(layer, x) for layer, x in zip(block.dense, (v, e, u), strict=True))
        e = torch.stack(
            [perceptron(block.edge, torch.cat([v[i], v[j], e[n], u])) for n, (i, j, _) in enumerate(bonds)]
        )
        means = [e[[n for n, b in enumerate(bonds) if b[0] == i]].mean(0) for i in range(len(v))]
        v = torch.stack([perceptron(block.atom, torch.cat([m, x, u])) for m, x in zip(means, v, strict=True)])
        u = perceptron(block.state, torch.cat([e.mean(0), v.mean(0), u]))
        v, e, u = v0 + v, e0 + e, u0 + u
    pooled = torch.cat([set2set(model.pool_atoms, v), set2set(model.pool_edges, e), u])
    return model.out(perceptron(model.hidden, pooled))


def schnet(model, crystal: Crystal, cutoff: float = 5.0, smooth: bool = True) -> torch.Tensor:
    bonds = neighbours(crystal, cutoff)
    h = model.atoms.rows(torch.tensor(crystal.atomic_numbers))
    spacing = cutoff / 24
    for layer in model.layers:
        new = []
        for i, listed in enumerate(bonds):
            total, weight = torch.zeros_like(h[i]), 0.0
            for d, j in listed:
                g = gaussians(d, cutoff, 25, 1 / (2 * spacing**2))
                omega = 0.5 * (1 + math.cos(math.pi * d / cutoff)) if smooth else 1.0
                total = total + layer.project(h[j]) * layer.filter_out(ssp(layer.filter_in(g))) * omega
                weight += omega
            total = total / (math.sqrt(1 + weight**2) if smooth else weight)
            new.append(h[i] + layer.out(ssp(layer.hidden(total))))
        h = torch.stack(new)
    return model.out(ssp(model.hidden(h))).mean(0)
