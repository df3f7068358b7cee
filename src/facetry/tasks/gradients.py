"""Forces and stress: how a predicted value changes when atoms move or the cell is strained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from facetry.crystal import Crystal
from facetry.geometry.lattice import apply_strain, cart_to_frac
from facetry.models.base import PropertyModel, evaluating


@dataclass(frozen=True)
class Gradient:
    """Of one crystal: `value` and its slopes, in the unit of the target, per Å and per Å³."""

    value: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: Float[np.ndarray, "3 3"]


def gradients(model: PropertyModel, crystals: Sequence[Crystal], target: int = 0) -> list[Gradient]:
    """Forces -∂y/∂x on the sites as given and stress (∂y/∂strain)/volume, positive under tension, of each
    crystal's value y: the energy of the cell, say. Where y is an energy per atom, multiply both by the
    number of sites.

    The neighbour list and the frames that the model chooses are held, so the slopes are those of y wherever
    no atom enters the sphere and no frame changes hands; a wide sphere (`reach=5` and more) makes the first
    immaterial. Axes of `frames="weighted_pca"` turn with every displacement and are held too: there the
    slopes are approximate and the stress is not symmetric. `target` counts the regression targets of the
    model. Raises ValueError for targets that are classes.
    """
    mean, std, column = 0.0, 1.0, target
    if model.card is not None:
        chosen = model.card.targets[target]
        if chosen.task != "regression":
            raise ValueError(f"gradients: expected a regression target, came {chosen.name} ({chosen.task})")
        mean, std = chosen.mean, chosen.std
        column = sum(t.columns for t in model.card.targets[:target])
    with evaluating(model) as device, torch.enable_grad():
        batch = model.graph(crystals).to(device)
        moved = torch.zeros_like(batch.frac_coords, requires_grad=True)
        strain = torch.zeros_like(batch.lattice, requires_grad=True)
        frac_coords = batch.frac_coords + cart_to_frac(moved, batch.lattice, batch.crystal_index)
        lattice = apply_strain(batch.lattice, strain)
        outputs = model(replace(batch, frac_coords=frac_coords, lattice=lattice))[:, column]
        by_position, by_strain = torch.autograd.grad(outputs.sum(), (moved, strain))
    values = outputs.detach().cpu().double() * std + mean
    copies = torch.ones_like(batch.num_atoms)
    if batch.atom_map is not None and batch.num_input_atoms is not None:
        # all copies of an atom move together in the primitive cell; each one alone has its share
        copies = torch.div(batch.num_input_atoms, batch.num_atoms, rounding_mode="floor")
        by_position = (by_position / copies[batch.crystal_index][:, None])[batch.atom_map]
    stress = by_strain * std / (torch.linalg.det(batch.lattice).abs() * copies)[:, None, None]
    forces = (-by_position * std).cpu().double().numpy()
    parts = np.split(forces, np.cumsum([len(c) for c in crystals])[:-1])
    return [
        Gradient(float(value), part, matrix)
        for value, part, matrix in zip(values, parts, stress.cpu().double().numpy(), strict=True)
    ]
