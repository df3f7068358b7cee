"""EMPNN as it is written down: columns for lattice vectors, a 3 x 3 matrix for every field of every triplet,
Linears of concatenations, loops over edges, float64."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.linalg import expm
from torch.nn.functional import silu

UNIT = torch.eye(3, dtype=torch.float64)


def nearest(crystal, k, gap=1e-6):
    """(centre, neighbour, image) of the k nearest with whole shells, from a box of images wide enough."""
    half = 4
    images = np.array(list(itertools.product(range(-half, half + 1), repeat=3)))
    edges = []
    for i in range(len(crystal)):
        rows = []
        for j in range(len(crystal)):
            d = np.linalg.norm(
                (crystal.frac_coords[j] + images - crystal.frac_coords[i]) @ crystal.lattice, axis=1
            )
            rows += [(r, j, tuple(t)) for r, t in zip(d, images.tolist(), strict=True) if r > 1e-3]
        rows.sort(key=lambda row: row[0])
        end = k
        while rows[end][0] - rows[end - 1][0] <= gap:
            end += 1
        edges += [(i, j, t) for _, j, t in rows[:end]]
    return edges


def edge_field(gradient, v):
    r = v.norm()
    return torch.outer(v, v) / r if gradient else torch.outer(v, v) / r**2


def triplet_fields(fields, v, w):
    """(fields, 3, 3)."""
    a, b = v / v.norm(), w / w.norm()
    found = []
    for name in fields.triplet:
        if name == "first":
            found.append(edge_field(fields.gradient, v))
        elif name == "second":
            found.append(edge_field(fields.gradient, w))
        elif name == "mixed":
            found.append((torch.outer(a, b) + torch.outer(b, a)) / 2)
        elif name == "cross":
            found.append(torch.outer(a, b))
        elif name == "back":
            found.append(torch.outer(b, a))
        elif name == "angle":
            c = a @ b
            s = (torch.linalg.cross(a, b).square().sum() + 1e-24).sqrt()
            p = b - c * a
            found.append(
                -s * (torch.outer(p, a) + torch.outer(a, p))
                + c * (torch.outer(p, p) / s - s * torch.outer(a, a))
            )
        else:
            n = torch.linalg.cross(v, w)
            area = (n.square().sum() + 1e-24).sqrt() / 2
            found.append(area * UNIT - torch.outer(n, n) / (4 * area))
    return torch.stack(found)


def gaussians(basis, r):
    return torch.exp(-((r - basis.centers) ** 2) / 0.1)


def head(module, row):
    return module.last(silu(module.second(silu(module.inner(row)))))


def messages(layer, h, edges, lengths):
    total, count = torch.zeros_like(h), torch.zeros(len(h), 1, dtype=h.dtype)
    for (i, j, _), r in zip(edges, lengths, strict=True):
        row = torch.cat([h[i], h[j], gaussians(layer.basis, r)])
        total[i] += layer.outer(silu(layer.inner(row)))
        count[i] += 1
    return layer.cell(total / count, h)


def relax(model, crystal):
    """Lattices (rows) and fractional coordinates from the input to the answer."""
    kappa, fields = model.weight_clamp, model.fields
    edges = nearest(crystal, model.graph.k)
    rho = torch.tensor(crystal.lattice.T.copy())
    x = torch.tensor(np.array(crystal.frac_coords))

    def geometry():
        e = torch.stack([x[j] - x[i] + torch.tensor(t, dtype=torch.float64) for i, j, t in edges])
        v = e @ rho.T
        return e, v, v.norm(dim=1)

    def clamped(w):
        return kappa * torch.tanh(w) if kappa else w

    e, v, r = geometry()
    pairs = [
        (a, b)
        for a, b in itertools.permutations(range(len(edges)), 2)
        if edges[a][0] == edges[b][0]
        and (torch.linalg.cross(v[a] / r[a], v[b] / r[b]).norm() > model.min_sin or not model.min_sin)
    ]
    h = model.atoms.rows(torch.tensor(crystal.atomic_numbers))
    for layer in model.layers:
        h = messages(layer, h, edges, r)
    lattices, positions = [rho.T], [x]
    for number in range(model.count):
        block = model.blocks[number % len(model.blocks)]
        e, v, r = geometry()
        h = messages(block.messages, h, edges, r)
        b = torch.zeros(3, 3, dtype=torch.float64)
        rows = [
            torch.cat([h[i], h[j], gaussians(block.edges.basis, r[a])])
            for a, (i, j, _) in enumerate(edges)
            if block.edges is not None
        ]
        for a, row in enumerate(rows):
            w = clamped(head(block.edges, row))
            b = b + w * edge_field(fields.gradient, v[a]) / len(edges)
        if block.pairs is not None:
            for a, c in pairs:
                (i, j, _), (_, k, _) = edges[a], edges[c]
                u, w = v[a] / r[a], v[c] / r[c]
                cosine, sine = u @ w, (torch.linalg.cross(u, w).square().sum() + 1e-24).sqrt()
                basis = block.pairs.basis
                row = torch.cat(
                    [*h[[i, j, k]], *(gaussians(basis, r[e]) for e in (a, c)), cosine[None], sine[None]]
                )
                weights = clamped(head(block.pairs, row))
                b = b + (weights[:, None, None] * triplet_fields(fields, v[a], v[c])).sum(0) / len(pairs)
        b = fields.scale * b
        if model.limit:
            norm = b.norm()
            b = b * model.limit * torch.tanh(norm / model.limit) / norm
        if block.moves is not None:
            move = torch.zeros_like(x)
            degree = torch.zeros(len(x), 1, dtype=x.dtype)
            for a, (i, j, _) in enumerate(edges):
                w = clamped(head(block.moves, torch.cat([h[i], h[j], gaussians(block.moves.basis, r[a])])))
                move[i] += w * e[a]
                degree[i] += 1
            move = move / degree
            x = x + move - move.mean(0)
        rho = (torch.from_numpy(expm(b.numpy())) if model.exact else UNIT + b) @ rho
        lattices.append(rho.T)
        positions.append(x)
    return lattices, positions


def element_wise_limit(b, limit):
    """The published clamp of the action, which depends on the axes."""
    return limit * torch.tanh(b / limit)
