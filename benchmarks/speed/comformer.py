"""Training step and inference of ComFormer on Perov-5, k = 25, batches of 64, published sizes.

The same weights on the same graph are timed in three arrangements: ours; the formula as it is written
(concatenate, then multiply, per edge; a weight matrix per edge for the tensor products), which is how the
published code works; and ours averaged over all lattice frames, which is what predictions use.
"""

from __future__ import annotations

import math

from benchmarks.speed.common import THREADS, best, perov5, record

CRYSTALS = 64


def written(model, batch):
    """The formula as written, vectorised over edges: no projection before gathering."""
    import torch
    from torch.nn.functional import silu, softplus

    graph = batch.graph
    i, j, atoms = graph.center, graph.neighbor, len(batch.frac_coords)
    vectors = batch.edge_vectors()
    d = vectors.norm(dim=1)
    dtype = model.dtype

    def message(module, *parts):
        return module.out(silu(module.mix(torch.cat(parts, 1))))

    def node(layer, x, f):
        q, k, v, e = layer.query(x), layer.key(x), layer.value(x), layer.edge(f)
        key, value = message(layer.key_message, k[i], k[j], e), message(layer.value_message, v[i], v[j], e)
        gate = torch.sigmoid(layer.gate_norm(q[i] * key / math.sqrt(x.shape[1])))
        total = torch.zeros_like(x).index_add(0, i, gate * value)
        return softplus(x + layer.norm(layer.concat(total)))

    def edge(layer, f, lengths, angles):
        q, k, v = layer.query(f), layer.key(f), layer.value(f)
        rows = range(3)
        theta = [layer.angle(angles[:, m]) for m in rows]
        key = [message(layer.key_message, k, layer.lattice_key[m](lengths[:, m]), theta[m]) for m in rows]
        value = [
            message(layer.value_message, v, layer.lattice_value[m](lengths[:, m]), theta[m]) for m in rows
        ]
        gate = torch.cat([q * row / math.sqrt(f.shape[1]) for row in key])
        out = layer.concat(torch.sigmoid(layer.gate_norm(gate)) * torch.cat(value))
        return softplus(f + layer.norm(out.view(3, len(f), -1).sum(0)))

    def product(module, f):
        flat = module.out(softplus(module.hidden(f)))
        widths = [a * b for a, b in module.sizes]
        return [p.view(len(f), a, b) for p, (a, b) in zip(flat.split(widths, 1), module.sizes, strict=True)]

    def equivariant(update, x, f, y):
        n = update.scalars
        h = update.project(x)
        degree = torch.bincount(i, minlength=atoms).to(dtype)[:, None]
        y1, y2 = y[:, :3], y[:, 3:]
        a0, a1, a2 = product(update.first, f)
        rows = [
            torch.einsum("eu,euw->ew", h[j], a0),
            torch.einsum("eu,euw,em->ewm", h[j], a1, y1).flatten(1),
            torch.einsum("eu,euw,em->ewm", h[j], a2, y2).flatten(1),
        ]
        s, v, t = (
            torch.zeros((atoms, r.shape[1]), dtype=dtype).index_add(0, i, r) / degree / math.sqrt(n)
            for r in rows
        )
        s, v, t = s + h, v.view(atoms, 8, 3), t.view(atoms, 8, 5)
        b0, b1, b2 = product(update.second, f)
        o = torch.einsum("eu,euw->ew", s[j], b0)
        o = o + torch.einsum("eu,euw->ew", torch.einsum("eum,em->eu", v[j], y1) / math.sqrt(3), b1)
        o = o + torch.einsum("eu,euw->ew", torch.einsum("eum,em->eu", t[j], y2) / math.sqrt(5), b2)
        o = torch.zeros((atoms, n), dtype=dtype).index_add(0, i, o) / degree / math.sqrt(n + 16)
        return softplus(update.out(softplus(update.norm(o)))) + update.skip(x)

    f, x = model.lengths(d), model.atoms(batch.atomic_numbers)
    x = node(model.layers[0], x, f)
    if model.name == "icomformer":
        e = batch.frame_vectors()[batch.edge_crystal]
        cosines = torch.einsum("ea,ema->em", vectors, e) / (d[:, None] * e.norm(dim=2))
        angles = model.angle(cosines.flatten()).view(len(d), 3, -1)
        lengths = model.lengths(e.norm(dim=2).flatten()).view(len(d), 3, -1)
        f = edge(model.edge_layer, f, lengths, angles)
    else:
        from facetry.nn.convolution import spherical_harmonics

        x = equivariant(model.update, x, f, spherical_harmonics(vectors / d[:, None]).to(dtype))
    for layer in model.layers[1:]:
        x = node(layer, x, f)
    pooled = torch.zeros((len(batch), x.shape[1]), dtype=dtype).index_add(0, batch.crystal_index, x)
    return model.head(pooled / batch.num_atoms[:, None].to(dtype))


def main() -> None:
    import torch

    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import MODELS

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    crystals = perov5(CRYSTALS)
    rows = []
    for name, options, label, train_budget, eval_budget in [
        ("icomformer", {}, "iComFormer (4 layers, 256 channels)", 14, 4),
        ("ecomformer", {"scalars": 64}, "eComFormer (half width)", 10, None),
        ("ecomformer", {}, "eComFormer (full width)", None, None),
    ]:
        torch.manual_seed(0)
        model = MODELS[name](**options)
        batch = model.graph(crystals)
        single = model.training_batch(batch, torch.Generator().manual_seed(0))

        def step(forward, model=model, single=single):
            model.zero_grad(set_to_none=True)
            (forward(single) - 1).square().mean().backward()

        model.eval()
        with torch.no_grad():
            difference = float((model(single) - written(model, single)).abs().max())
        assert difference < 1e-4, f"the two arrangements differ by {difference}"
        with torch.no_grad():
            ours = best(lambda m=model, b=single: m(b), 12)
            plain = best(lambda m=model, b=single: written(m, b), 3)
            average = best(lambda m=model, b=batch: m(b), 3)
        model.train()
        ours_step = best(lambda m=model: step(m), 8)
        plain_step = best(lambda m=model: step(lambda b: written(m, b)), 2)
        scale = 1e3 / CRYSTALS
        rows += [
            {
                "what": f"{label}, training step",
                "value": ours_step * scale,
                "unit": "ms",
                "budget": train_budget,
            },
            {"what": f"{label}, training step as written", "value": plain_step * scale, "unit": "ms"},
            {
                "what": f"{label}, inference, one frame",
                "value": ours * scale,
                "unit": "ms",
                "budget": eval_budget,
            },
            {"what": f"{label}, inference as written", "value": plain * scale, "unit": "ms"},
        ]
        if name == "icomformer":
            frames = len(batch.frames.crystal) / CRYSTALS
            rows.append(
                {
                    "what": f"{label}, inference, average over {frames:.1f} frames",
                    "value": average * scale,
                    "unit": "ms",
                }
            )
    record("comformer", rows)


if __name__ == "__main__":
    main()
