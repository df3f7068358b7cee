"""Crystalformer and CrystalFramer as the papers write them: a loop over atoms, every pair tensor in full.

Own enumeration of images, own frames, one value and one ψ for every image. Slow; float64; small crystals.
"""

from __future__ import annotations

import numpy as np
import torch

R0, B, BETA, TAU = 1.4, 0.5, 0.1, 1e-8
FOURIER_R0, FLOOR = 2.2, 1e-6
FOURIER_CUTOFF = (2 * np.log(1e9)) ** 0.5 / (FOURIER_R0 * B**0.5)


def images(crystal, cutoff: float, spanning: bool):
    """Per atom: sender and vector of every image within the sphere, the atom itself first."""
    lattice = torch.tensor(np.array(crystal.lattice))
    frac = torch.tensor(np.array(crystal.frac_coords))
    if spanning and any(flat(v) for _, v in images(crystal, cutoff, False)):
        n = torch.cartesian_prod(*[torch.arange(-4, 5)] * 3).double()
        v = n @ lattice
        v = v[v.norm(dim=1) > 1e-6]
        v = v[v.norm(dim=1).argsort(stable=True)]
        cos = (v @ v[0]).abs() / v.norm(dim=1) / v[0].norm()
        cutoff = max(cutoff, float(v[cos < 0.999][0].norm()) + 1e-3)
    longest = float((frac.max(0).values - frac.min(0).values + 1).max())
    bound = [int(cutoff * float(h.norm()) + longest + 2) for h in torch.linalg.inv(lattice).T]
    n = torch.cartesian_prod(*[torch.arange(-b, b + 1) for b in bound]).double()
    found = []
    for i in range(len(frac)):
        v = (frac[None, :, :] - frac[i] + n[:, None, :]) @ lattice
        j = torch.arange(len(frac)).expand(len(n), -1)
        inside = v.norm(dim=2) < cutoff
        v, j = v[inside], j[inside]
        order = v.norm(dim=1).argsort(stable=True)
        found.append((j[order], v[order]))
        assert v[order[0]].norm() < 1e-9
    return found


def flat(vectors: torch.Tensor) -> bool:
    """Whether all neighbours of an atom (row 0) lie on one line, or there are none."""
    if len(vectors) < 2:
        return True
    unit = vectors[1:] / vectors[1:].norm(dim=1, keepdim=True)
    return bool(((unit @ unit[0]).abs() >= 0.999).all())


def angular(c: torch.Tensor, size: int, width: float) -> torch.Tensor:
    mu = torch.linspace(-1, 1, size, dtype=torch.float64)
    return torch.exp(-((c[:, None] - mu) ** 2) / (2 * (width * 2 / (size - 1)) ** 2))


def max_frames(direction: torch.Tensor, logit: torch.Tensor):
    """All tied frames of one atom and head with their weights; the atom itself is row 0."""
    logit = logit.detach().clone()
    logit[0] = -torch.inf
    found = []
    first = [e for e in range(len(logit)) if logit[e] >= logit.max() - TAU]
    for e in first:
        cos = (direction @ direction[e]).detach().abs()
        adjusted = logit + torch.log((1 - cos).clamp(min=1e-5))
        adjusted[cos >= 0.9999] = -torch.inf
        second = [g for g in range(len(logit)) if adjusted[g] >= adjusted.max() - TAU]
        for g in second:
            e1 = direction[e]
            e2 = direction[g] - (direction[g] @ e1) * e1
            e2 = e2 / e2.norm()
            e3 = torch.linalg.cross(e1, e2)
            found.append((torch.stack([e1, e2, e3]), 1 / (len(first) * len(second))))
    return found


def fourier_logarithms(crystal, i: int, variance: torch.Tensor, cutoff: float, floor: float):
    """α_ij of the paper for receiver i with its σ², over all wave vectors within a sphere."""
    lattice = torch.tensor(np.array(crystal.lattice))
    position = torch.tensor(np.array(crystal.frac_coords)) @ lattice
    bound = [int(cutoff * float(a.norm()) / (2 * torch.pi) + 1) for a in lattice]
    m = torch.cartesian_prod(*[torch.arange(-b, b + 1) for b in bound]).double()
    g = 2 * torch.pi * m @ torch.linalg.inv(lattice).T
    g = g[g.norm(dim=1) <= cutoff]
    waves = ((position - position[i]) @ g.T).cos()
    total = waves @ torch.exp(-variance * (g**2).sum(1) / 2) + floor
    return total.log() + 1.5 * torch.log(2 * torch.pi * variance) - torch.linalg.det(lattice).abs().log()


def forward(model, crystal, seen: dict | None = None) -> torch.Tensor:
    """The outputs of a model with max frames or none on one crystal in the cell as given.

    `seen` receives, for (layer, atom, head), senders, vectors, weights and frames.
    """
    first = model.blocks[0].attention
    around = images(crystal, model.graph.cutoff, first.frames is not None)
    sites = crystal.occupancies or [{z: 1.0} for z in crystal.atomic_numbers.tolist()]
    x = torch.stack([sum(share * model.elements[z - 1] for z, share in site.items()) for site in sites])
    occupancy = torch.tensor([sum(site.values()) for site in sites], dtype=torch.float64)
    mu = torch.arange(1, 65, dtype=torch.float64) * 0.21875
    for layer, block in enumerate(model.blocks):
        a = block.attention
        shape = (len(x), a.heads, -1)
        q, k, v = a.query(x).view(shape), a.key(x).view(shape), a.value(x).view(shape)
        rows = []
        for i, (j, r) in enumerate(around):
            d = r.norm(dim=1)
            direction = torch.cat([torch.zeros(1, 3, dtype=r.dtype), r[1:] / d[1:, None]])
            heads = []
            for h in range(a.heads):
                z = ((q[i, h] * a.score[h]).sum() - a.mean) / a.deviation
                rho = (1 - B) * torch.nn.functional.elu(z * BETA / (1 - B)) + 1
                if h >= a.real_heads:
                    alpha = fourier_logarithms(crystal, i, rho * FOURIER_R0**2, FOURIER_CUTOFF, FLOOR)
                    alpha = alpha + occupancy.log()
                    heads.append(torch.softmax(k[:, h] @ q[i, h] / q.shape[2] ** 0.5 + alpha, 0) @ v[:, h])
                    continue
                logit = (k[j, h] @ q[i, h]) / q.shape[2] ** 0.5 - d**2 * rho / R0**2 / 2
                logit = logit + occupancy[j].log()
                p = torch.softmax(logit, 0)
                value = v[j, h]
                if a.distance is not None:
                    bases = torch.exp(-((d[:, None] - mu) ** 2) / (2 * 0.21875**2))
                    value = value + a.distance_scale * bases @ a.distance[h].T
                frames = [] if a.frames is None else max_frames(direction, logit)
                if seen is not None:
                    seen[layer, i, h] = (j, r, p, frames)
                if a.frames is not None:
                    outside = torch.ones(len(d), 1, dtype=r.dtype)
                    outside[0] = 0
                    for axes, weight in frames:
                        for m in range(3):
                            psi = angular(direction @ axes[m], a.angles.size, a.angles.width)
                            value = value + a.angles.scale * weight * outside * (psi @ a.angular[m, h].T)
                heads.append(p @ value)
            rows.append(torch.cat(heads))
        x = x + a.out(torch.stack(rows))
        x = x + block.narrow(torch.relu(block.wide(x)))
    return model.out(torch.relu(model.hidden(occupancy @ x / occupancy.sum())))
