"""The formulas of iComFormer and eComFormer, line by line, one frame a crystal, in float64.

Slow and plain on purpose: the oracle of the fast layers. It reads the parameters of the model it checks.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import silu, softplus


def batch_norm(x, norm, training):
    if training:
        mean, variance = x.mean(0), x.var(0, unbiased=False)
    else:
        mean, variance = norm.running_mean, norm.running_var
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def message(module, *parts):
    return module.out(silu(module.mix(torch.cat(parts, 1))))


def node_layer(layer, x, f, center, neighbor, weight):
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    e = layer.edge(f)
    key = message(layer.key_message, k[center], k[neighbor], e)
    value = message(layer.value_message, v[center], v[neighbor], e)
    gate = torch.sigmoid(batch_norm(q[center] * key / math.sqrt(x.shape[1]), layer.gate_norm, layer.training))
    total = torch.zeros_like(x)
    for edge in range(len(center)):
        total[center[edge]] = total[center[edge]] + weight[edge] * gate[edge] * value[edge]
    return softplus(x + batch_norm(layer.concat(total), layer.norm, layer.training))


def edge_layer(layer, f, lengths, angles):
    """lengths (edges, 3, C): the embedded lattice vectors of the edge's crystal; angles (edges, 3, C)."""
    q, k, v = layer.query(f), layer.key(f), layer.value(f)
    keys, values = [], []
    for m in range(3):
        theta = layer.angle(angles[:, m])
        keys.append(message(layer.key_message, k, layer.lattice_key[m](lengths[:, m]), theta))
        values.append(message(layer.value_message, v, layer.lattice_value[m](lengths[:, m]), theta))
    key, value = torch.stack(keys, 1), torch.stack(values, 1)
    edges, _, channels = key.shape
    gate = batch_norm((q[:, None] * key / math.sqrt(channels)).flatten(0, 1), layer.gate_norm, layer.training)
    out = layer.concat(torch.sigmoid(gate).view(edges, 3, channels) * value).sum(1)
    return softplus(f + batch_norm(out, layer.norm, layer.training))


def gaussians(x, low, high, size):
    centers = torch.linspace(low, high, size, dtype=x.dtype)
    return torch.exp(-(size - 1) / (high - low) * (x[..., None] - centers) ** 2)


def embed_length(model, d):
    return softplus(model.length.linear(gaussians(-0.75 / d, -4, 0, 256)))


def readout(model, x, crystal, crystals):
    pooled = torch.stack([x[crystal == c].mean(0) for c in range(crystals)])
    return model.head.out(silu(model.head.hidden(pooled)))


def edge_weights(batch):
    graph = batch.graph
    return torch.ones(len(graph.center), dtype=torch.float64) if graph.weight is None else graph.weight


def icomformer(model, batch):
    graph, weight = batch.graph, edge_weights(batch)
    vectors = batch.edge_vectors()
    d = vectors.norm(dim=1)
    f, x = embed_length(model, d), model.atoms(batch.atomic_numbers)
    x = node_layer(model.layers[0], x, f, graph.center, graph.neighbor, weight)
    e = batch.frame_vectors()[batch.edge_crystal]
    cosines = torch.einsum("ea,ema->em", vectors, e) / (d[:, None] * e.norm(dim=2))
    angles = softplus(model.angle.linear(gaussians(cosines, -1, 1, 256)))
    f = edge_layer(model.edge_layer, f, embed_length(model, e.norm(dim=2)), angles)
    for layer in model.layers[1:]:
        x = node_layer(layer, x, f, graph.center, graph.neighbor, weight)
    return readout(model, x, batch.crystal_index, len(batch))


def tensor_weights(module, f):
    """Per-edge weights of a tensor product, made edge by edge as in the published code."""
    flat = module.out(softplus(module.hidden(f)))
    widths = [a * b for a, b in module.sizes]
    return [part.view(len(f), a, b) for part, (a, b) in zip(flat.split(widths, 1), module.sizes, strict=True)]


def mean_over_edges(rows, center, weight, atoms):
    total = torch.zeros((atoms, *rows.shape[1:]), dtype=rows.dtype)
    count = torch.zeros(atoms, dtype=rows.dtype)
    for edge in range(len(center)):
        total[center[edge]] = total[center[edge]] + weight[edge] * rows[edge]
        count[center[edge]] = count[center[edge]] + weight[edge]
    return total / count.view(-1, *[1] * (rows.dim() - 1))


def equivariant_update(update, x, f, y1, y2, center, neighbor, weight):
    atoms, n = len(x), update.scalars
    h = update.project(x)
    a0, a1, a2 = tensor_weights(update.first, f)
    s = torch.einsum("eu,euw->ew", h[neighbor], a0) / math.sqrt(n)
    v = torch.einsum("eu,euw,em->ewm", h[neighbor], a1, y1) / math.sqrt(n)
    t = torch.einsum("eu,euw,em->ewm", h[neighbor], a2, y2) / math.sqrt(n)
    s, v, t = (mean_over_edges(rows, center, weight, atoms) for rows in (s, v, t))
    s = s + h
    b0, b1, b2 = tensor_weights(update.second, f)
    o = torch.einsum("eu,euw->ew", s[neighbor], b0)
    o = o + torch.einsum("eum,em,euw->ew", v[neighbor], y1, b1) / math.sqrt(3)
    o = o + torch.einsum("eum,em,euw->ew", t[neighbor], y2, b2) / math.sqrt(5)
    o = mean_over_edges(o / math.sqrt(n + 16), center, weight, atoms)
    out = softplus(update.out(softplus(batch_norm(o, update.norm, update.training))))
    return out + update.skip(x), (s, v, t)


def harmonics(direction):
    x, y, z = direction.unbind(1)
    y1 = math.sqrt(3) * torch.stack([x, y, z], 1)
    y2 = torch.stack(
        [
            math.sqrt(15) * x * z,
            math.sqrt(15) * x * y,
            math.sqrt(5) * (y**2 - (x**2 + z**2) / 2),
            math.sqrt(15) * y * z,
            math.sqrt(15) / 2 * (z**2 - x**2),
        ],
        1,
    )
    return y1, y2


def ecomformer(model, batch):
    graph, weight = batch.graph, edge_weights(batch)
    vectors = batch.edge_vectors()
    d = vectors.norm(dim=1)
    f, x = embed_length(model, d), model.atoms(batch.atomic_numbers)
    x = node_layer(model.layers[0], x, f, graph.center, graph.neighbor, weight)
    y1, y2 = harmonics(vectors / d[:, None])
    x, _ = equivariant_update(model.update, x, f, y1, y2, graph.center, graph.neighbor, weight)
    for layer in model.layers[1:]:
        x = node_layer(layer, x, f, graph.center, graph.neighbor, weight)
    return readout(model, x, batch.crystal_index, len(batch))
