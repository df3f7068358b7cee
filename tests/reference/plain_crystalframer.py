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


def box_images(crystal, i: int, sigma: float, reach: float):
    """Sender and vector of every image in the published box of an atom and head, the atom itself first."""
    lattice, frac = torch.tensor(np.array(crystal.lattice)), torch.tensor(np.array(crystal.frac_coords))
    star = torch.linalg.inv(lattice).T
    bound = [max(2, int(np.ceil((reach * sigma + 0.01) * float(h.norm())))) for h in star]
    n = torch.cartesian_prod(*[torch.arange(-b, b + 1) for b in bound]).double()
    v = ((frac - frac[i])[None] + n[:, None]) @ lattice
    v, j = v.flatten(0, 1), torch.arange(len(frac)).repeat(len(n))
    order = v.norm(dim=1).argsort(stable=True)
    return j[order], v[order]


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


def fourier_logarithms(crystal, i: int, variance: torch.Tensor, cutoff: float | None, floor: float):
    """α_ij of the paper for receiver i with its σ², over all wave vectors within a sphere."""
    lattice = torch.tensor(np.array(crystal.lattice))
    position = torch.tensor(np.array(crystal.frac_coords)) @ lattice
    bound = [2 if cutoff is None else int(cutoff * float(a.norm()) / (2 * torch.pi) + 1) for a in lattice]
    m = torch.cartesian_prod(*[torch.arange(-b, b + 1) for b in bound]).double()
    g = 2 * torch.pi * m @ torch.linalg.inv(lattice).T
    if cutoff is not None:  # else the published box
        g = g[g.norm(dim=1) <= cutoff]
    waves = ((position - position[i]) @ g.T).cos()
    total = waves @ torch.exp(-variance * (g**2).sum(1) / 2)
    total = total.clamp(min=floor) if cutoff is None else total + floor
    return total.log() + 1.5 * torch.log(2 * torch.pi * variance) - torch.linalg.det(lattice).abs().log()


def entmax(logit: torch.Tensor, window: float = 0.1) -> torch.Tensor:
    """max(0, (ℓ - t)/window)² that sum to one: the k largest take part, for the k that fits its own t."""
    z, order = (logit / window).sort(descending=True)
    for k in range(1, len(z) + 1):
        top = z[:k]
        rest = (1 - ((top - top.mean()) ** 2).sum()) / k
        if not rest > 0:
            continue
        t = top.mean() - rest.sqrt()
        if z[k - 1] > t and (k == len(z) or z[k] <= t):
            return torch.zeros_like(z).index_add(0, order[:k], (top - t) ** 2)
    raise AssertionError("no threshold")


def continuous_frames(direction: torch.Tensor, logit: torch.Tensor):
    """Every frame with a weight above zero; gradients flow through the weights too."""
    outside = torch.arange(len(logit)) > 0
    first = entmax(logit.masked_fill(~outside, -1e9))
    found = []
    for e in first.nonzero()[:, 0]:
        c = (direction @ direction[e]).abs()
        c = torch.where(c < 0.1, c**2 / 0.2 + 0.05, c)
        fits = outside & (c < 0.9999)
        second = entmax((logit + torch.where(fits, 0.9999 - c, 1).log()).masked_fill(~fits, -1e9))
        for g in second.nonzero()[:, 0]:
            e2 = direction[g] - (direction[g] @ direction[e]) * direction[e]
            axes = torch.stack([direction[e], e2 / e2.norm()])
            axes = torch.cat([axes, torch.linalg.cross(axes[0], axes[1])[None]])
            found.append((axes, first[e] * second[g]))
    return found


def pca_frames(moment: torch.Tensor):
    """The four right-handed choices of signs; an axis with a moment like another's is zero."""
    values, vectors = np.linalg.eigh(moment.detach().numpy())
    axes = vectors.T * np.linalg.det(vectors)
    alone = [
        min(abs(values[m] - values[n]) for n in range(3) if n != m) > 1e-7 * values.sum() for m in range(3)
    ]
    axes = torch.tensor(axes * np.array(alone)[:, None])
    signs = ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])
    return [(axes * torch.tensor(s, dtype=torch.float64)[:, None], 0.25) for s in signs]


def lattice_frames(lattice: np.ndarray):
    """All triples of shortest translations, by search among many (the cell must be primitive)."""
    n = np.array(list(np.ndindex(9, 9, 9))) - 4
    n = n[(n != 0).any(1)]
    v = n @ lattice
    length = np.linalg.norm(v, axis=1)
    found = []
    for a in np.flatnonzero(length <= length.min() + 1e-4):
        skew = np.linalg.norm(np.cross(v, v[a]), axis=1) > 1e-5 * length * length[a]
        shortest = length[skew].min()
        for b in np.flatnonzero(skew & (length <= shortest + 1e-4) & (v @ v[a] >= -1e-6)):
            normal = np.cross(v[a], v[b])
            out = np.abs(v @ normal) > 1e-5 * length * np.linalg.norm(normal)
            shortest = length[out].min()
            for c in np.flatnonzero(out & (length <= shortest + 1e-4) & (v @ v[a] >= -1e-6)):
                rows = v[[a, b, c]] * np.sign(normal @ v[c])
                found.append(torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True)))
    return [(axes, 1 / len(found)) for axes in found]


def frames_of(kind: str, crystal, r: torch.Tensor, direction: torch.Tensor, logit: torch.Tensor):
    """The frames of one atom and head, of any kind."""
    if kind == "max":
        return max_frames(direction, logit)
    if kind == "continuous":
        return continuous_frames(direction, logit)
    if kind == "static":
        return max_frames(direction, -r.square().sum(1))
    if kind == "weighted_pca":
        return pca_frames(torch.einsum("e,ea,eb->ab", torch.softmax(logit.detach(), 0), r, r))
    if kind == "lattice":
        return lattice_frames(np.array(crystal.lattice))
    assert kind == "pca"
    position = np.array(crystal.frac_coords) @ np.array(crystal.lattice)
    position = torch.tensor(position - position.mean(0))
    return pca_frames(position.T @ position / len(position))


def forward(model, crystal, seen: dict | None = None) -> torch.Tensor:
    """The outputs of a model on one crystal in the cell as given, which must be primitive.

    `seen` receives, for (layer, atom, head), senders, vectors, weights and frames.
    """
    first = model.blocks[0].attention
    kind = None if first.frames is None else model.options["frames"]
    published = model.options["construction"] == "published"
    around = images(crystal, model.graph.cutoff, not published and model.graph.spanning)
    waves = None if published else FOURIER_CUTOFF
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
            heads = []
            for h in range(a.heads):
                z = ((q[i, h] * a.score[h]).sum() - a.mean) / a.deviation
                rho = (1 - B) * torch.nn.functional.elu(z * BETA / (1 - B)) + 1
                if h >= a.real_heads:
                    alpha = fourier_logarithms(crystal, i, rho * FOURIER_R0**2, waves, FLOOR)
                    alpha = alpha + occupancy.log()
                    heads.append(torch.softmax(k[:, h] @ q[i, h] / q.shape[2] ** 0.5 + alpha, 0) @ v[:, h])
                    continue
                if published:
                    sigma = float(R0 / rho.detach().sqrt())
                    j, r = box_images(crystal, i, sigma, model.options["reach"])
                d = r.norm(dim=1)
                direction = torch.cat([torch.zeros(1, 3, dtype=r.dtype), r[1:] / d[1:, None]])
                logit = (k[j, h] @ q[i, h]) / q.shape[2] ** 0.5 - d**2 * rho / R0**2 / 2
                logit = logit + occupancy[j].log()
                p = torch.softmax(logit, 0)
                value = v[j, h]
                if a.distance is not None:
                    bases = torch.exp(-((d[:, None] - mu) ** 2) / (2 * 0.21875**2))
                    value = value + a.distance_scale * bases @ a.distance[h].T
                frames = [] if kind is None else frames_of(kind, crystal, r, direction, logit)
                if seen is not None:
                    seen[layer, i, h] = (j, r, p, frames)
                if a.frames is not None:
                    outside = torch.ones(len(d), 1, dtype=r.dtype)
                    outside[0] = 0
                    for axes, weight in frames:
                        for m in axes.any(1).nonzero()[:, 0]:  # a zero axis does not exist
                            psi = angular(direction @ axes[m], a.angles.size, a.angles.width)
                            value = value + a.angles.scale * weight * outside * (psi @ a.angular[m, h].T)
                heads.append(p @ value)
            rows.append(torch.cat(heads))
        x = x + a.out(torch.stack(rows))
        x = x + block.narrow(torch.relu(block.wide(x)))
    return model.out(torch.relu(model.hidden(occupancy @ x / occupancy.sum())))
