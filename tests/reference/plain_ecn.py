"""ECN as it is written down: a signal on eight cells for every edge of the supercell, float64, loops."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import silu

from facetry.geometry.groups import own_colours
from facetry.graph.description import cell_index
from facetry.models.ecn import GROUPS


def supercell_edges(batch):
    """(centre atom, centre cell, neighbour atom, neighbour cell, Å) of all edges, with self-loops."""
    graph = batch.graph
    d, delta = batch.edge_vectors().norm(dim=1).tolist(), cell_index(graph.image).tolist()
    pairs = list(zip(graph.center.tolist(), graph.neighbor.tolist(), delta, d, strict=True))
    pairs += [(p, p, 0, 0.0) for p in range(len(batch.frac_coords))]
    return [(p, c, q, c ^ t, length) for p, q, t, length in pairs for c in range(8)]


CELLS = torch.arange(8)


def message(module, col, v, c_i, c_j):
    """Two-layer function on eight slots: in at c_j, out at c_i."""
    slots = silu(module.inner[col[c_j ^ CELLS]] @ v + module.inner_bias)  # c, channels
    out = torch.einsum("cfi,ci->f", module.outer[col[CELLS ^ c_i]], slots)
    return silu(out + module.outer_bias)


def gated(module, m):
    return torch.sigmoid(module.gate.weight[0] @ m + module.gate.bias) * m


def orbit_mean(weight, table):
    """P-1's weights with those of each orbit replaced by their mean."""
    table = torch.as_tensor(table)
    return torch.stack([weight[table == table[d]].mean(0) for d in range(8)])


class _Averaged:
    def __init__(self, module, table):
        self.inner, self.outer = orbit_mean(module.inner, table), orbit_mean(module.outer, table)
        self.inner_bias, self.outer_bias, self.gate = module.inner_bias, module.outer_bias, module.gate


def layer(layer_, h, edges, embedded, col, table=None):
    """One layer on nodes h[p, c]."""
    branches = {True: layer_.same, False: layer_.every}
    if table is not None:
        branches = {k: _Averaged(m, table) for k, m in branches.items()}
    total = torch.zeros_like(h)
    for (p, c, q, b, _), e in zip(edges, embedded, strict=True):
        v = torch.cat([h[p, c], h[q, b], e])
        m = gated(branches[False], message(branches[False], col, v, c, b))
        if p == q:
            m = m + gated(branches[True], message(branches[True], col, v, c, b))
        total[p, c] = total[p, c] + m
    return h + layer_.out(silu(layer_.hidden(torch.cat([total, h], 2))))


def forward(model, crystal):
    """The network's output for one crystal."""
    batch = model.graph([crystal])
    edges = supercell_edges(batch)
    d = torch.tensor([e[4] for e in edges], dtype=torch.float64)
    centers = torch.linspace(0, 6, 20, dtype=torch.float64)
    embedded = model.edges.linear(torch.exp(-((d[:, None] - centers) ** 2) / 0.6**2))
    h = features(model, batch)
    table = own_colours(batch.lattice)[0].tolist() if model.group == "bravais" else None
    for layer_ in model.layers:
        h = layer(layer_, h, edges, embedded, torch.tensor(GROUPS[model.group]), table)
    u = model.last(silu(model.last_hidden(h))).mean((0, 1))
    return model.head.out(silu(model.head.hidden(u)))


def features(model, batch):
    """One-hot element and cell, then a Linear."""
    z = batch.atomic_numbers.numpy()
    x = np.zeros((len(z), 8, 103 + 8))
    x[np.arange(len(z)), :, z - 1] = 1
    x[:, np.arange(8), 103 + np.arange(8)] = 1
    if not model.nodes.cells:
        x = x[:, :, :103]
    return model.nodes.linear(torch.from_numpy(x))
