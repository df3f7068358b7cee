"""What an energy is trained against: structures that its own chains make of a composition, or noise to undo.

A formula stands for cells of any number of formula units: S(k) is k times the reduced composition, and
contrastive divergence compares a crystal with a chain for S(k), P(k) = 2^-k (arXiv 2502.02026, Eq. 15 to 17).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.lattice import volume
from facetry.geometry.ragged import group_index, items_in, offsets, ranks
from facetry.graph.batch import Batch
from facetry.graph.builders import Builder
from facetry.models.base import EnergyModel
from facetry.samplers import Annealing, Chains, random_start
from facetry.samplers.streams import atom_normals, normals, uniforms
from facetry.training.recipe import GenerateOptions

_COUNT, _KIND, _FRESH = 9, 10, 11  # purposes of random numbers
_DENSITY_BOUND = 4.0  # kept chains this many times denser or thinner than expected start afresh


@dataclass(frozen=True)
class Compositions:
    """Reduced formulas of crystals, atoms sorted by element, and how many formula units each crystal has."""

    atomic_numbers: Int[Tensor, " atoms"]
    num_atoms: Int[Tensor, " crystals"]
    units: Int[Tensor, " crystals"]

    @staticmethod
    def of(batch: Batch) -> Compositions:
        """Ti2O4 is TiO2 with two units."""
        owner, z = batch.crystal_index, batch.atomic_numbers.long()
        count = torch.zeros((len(batch), 128), dtype=torch.int64, device=z.device)
        count.index_put_((owner, z), torch.ones_like(z), accumulate=True)
        units = count[:, 0]
        for column in range(1, 128):
            units = torch.gcd(units, count[:, column])
        order = torch.argsort(owner * 128 + z, stable=True)
        rank = ranks(batch.num_atoms)
        # of every k equal atoms in a row the first
        first = order[rank % units[owner] == 0]
        return Compositions(z[first], torch.div(batch.num_atoms, units, rounding_mode="floor"), units)

    def select(self, rows: Int[Tensor, " chosen"]) -> Compositions:
        """Of the chosen crystals."""
        atoms = items_in(rows, self.num_atoms)
        return Compositions(self.atomic_numbers[atoms], self.num_atoms[rows], self.units[rows])

    def to(self, device: torch.device) -> Compositions:
        """On another device."""
        return Compositions(self.atomic_numbers.to(device), self.num_atoms.to(device), self.units.to(device))

    def times(
        self, units: Int[Tensor, " crystals"]
    ) -> tuple[Int[Tensor, " atoms"], Int[Tensor, " crystals"]]:
        """Atoms of so many formula units each, and their number."""
        num_atoms = self.num_atoms * units
        owner = group_index(num_atoms)
        rank = ranks(num_atoms)
        start = offsets(self.num_atoms)[:-1]
        return self.atomic_numbers[start[owner] + rank % self.num_atoms[owner]], num_atoms


def geometric(uniform: Float[Tensor, " crystals"]) -> Int[Tensor, " crystals"]:
    """k = 1, 2, ... with P(k) = 2^-k, from uniform numbers."""
    return 1 + torch.floor(torch.log(uniform) / torch.log(torch.tensor(0.5))).long()


def formula_units(
    composition: Compositions, options: GenerateOptions, seed: int, chain: Int[Tensor, " crystals"], step: int
) -> Int[Tensor, " crystals"]:
    """How many formula units each chain has: geometric, those of the crystal, or either with equal chances;
    never more than `most_atoms` allows."""
    drawn = geometric(uniforms(seed, chain, step, _COUNT, 1)[:, 0])
    if options.multiplicity == "data":
        drawn = composition.units
    elif options.multiplicity == "mixed":
        own = uniforms(seed, chain, step, _KIND, 1)[:, 0] < 0.5
        drawn = torch.where(own, composition.units, drawn)
    most = torch.div(options.most_atoms, composition.num_atoms, rounding_mode="floor").clamp(min=1)
    return torch.minimum(drawn, most)


def plan(options: GenerateOptions, density: float) -> Annealing:
    """The annealing that a recipe describes."""
    return Annealing(
        steps=options.chain_steps,
        hot=options.hot,
        cold=options.cold,
        per_atom=options.per_atom,
        volume_power=options.volume_power,
        reference_sign=options.reference_sign,
        scheme=options.scheme,
        density=density,
    )


class Buffer:
    """The last state of the chain of every training crystal, to go on from; rows without one have 0 atoms."""

    def __init__(self, rows: int, most_atoms: int) -> None:
        self.lattice = torch.zeros((rows, 3, 3), dtype=torch.float64)
        self.frac_coords = torch.zeros((rows, most_atoms, 3), dtype=torch.float64)
        self.units = torch.zeros(rows, dtype=torch.int64)

    def store(self, rows: Int[Tensor, " chosen"], states: Batch, units: Int[Tensor, " chosen"]) -> None:
        """Keep these states."""
        inside = ranks(states.num_atoms)
        self.lattice[rows], self.units[rows] = states.lattice.cpu(), units.cpu()
        self.frac_coords[rows[states.crystal_index.cpu()], inside.cpu()] = states.frac_coords.cpu()

    def tensors(self) -> dict[str, Tensor]:
        """For resume points."""
        return {"lattice": self.lattice, "frac_coords": self.frac_coords, "units": self.units}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """From a resume point."""
        self.lattice, self.frac_coords = tensors["lattice"].clone(), tensors["frac_coords"].clone()
        self.units = tensors["units"].clone()


def negatives(
    model: EnergyModel,
    composition: Compositions,
    rows: Int[Tensor, " chosen"],
    options: GenerateOptions,
    seed: int,
    step: int,
    buffer: Buffer | None,
    density: float = 0.05,
) -> Batch:
    """Where the chains of these training crystals end, with the weights of this moment; without a graph.

    Without a buffer every chain starts anywhere and is annealed. With one, most go on at the last temperature
    from where they were, `refresh` of them start anew.
    """
    device = composition.num_atoms.device
    chain = rows + 1  # numbers of chains follow the crystals, whatever batch they are in
    units = formula_units(composition, options, seed, chain, step)
    old = torch.zeros(len(rows), dtype=torch.bool, device=device)
    if buffer is not None:
        kept = buffer.units[rows.cpu()].to(device)
        number = composition.num_atoms * kept
        size = volume(buffer.lattice[rows.cpu()]).abs().to(device) * density / number.clamp(min=1)
        sound = (size > 1 / _DENSITY_BOUND) & (size < _DENSITY_BOUND)
        again = uniforms(seed, chain, step, _FRESH, 1)[:, 0] >= options.refresh
        old = (kept > 0) & sound & again
        units = torch.where(old, kept, units)
    parts, places = [], []
    for chosen, from_buffer in ((~old, False), (old, True)):
        which = torch.nonzero(chosen)[:, 0]
        if not len(which):
            continue
        atoms, num_atoms = composition.select(which).times(units[which])
        schedule = plan(options, density)
        if from_buffer:
            assert buffer is not None
            lattice = buffer.lattice[rows[which].cpu()].to(device)
            inside = ranks(num_atoms).cpu()
            owner = group_index(num_atoms)
            frac = buffer.frac_coords[rows[which][owner].cpu(), inside].to(device)
            schedule = replace(schedule, steps=options.buffer_steps, hot=options.cold)
        else:
            lattice, frac = random_start(seed + step, chain[which], num_atoms, density)
        chains = Chains(
            model.landscape(atoms, num_atoms),
            lattice,
            frac,
            seed=seed + 7919 * (step + 1),
            chain=chain[which],
            plan=schedule,
        )
        state = chains.run()
        parts.append(Batch(state.lattice, state.frac_coords, atoms, num_atoms))
        places.append(which)
    found = Batch.collate(parts).select(torch.argsort(torch.cat(places)))
    if buffer is not None:
        buffer.store(rows.cpu(), found, units)
    return found


def noised(
    batch: Batch, options: GenerateOptions, seed: int, chain: Int[Tensor, " crystals"], step: int
) -> tuple[Batch, Float[Tensor, "atoms 3"], Float[Tensor, "crystals 3 3"], Float[Tensor, " crystals"]]:
    """Crystals with noise, what each atom was moved by in Å (but for the mean), the strain, and σ in Å.

    σ is log-uniform between the options' bounds; the strain moves neighbours by about σ / 2.
    """
    owner = batch.crystal_index
    share = uniforms(seed, chain, step, 12, 1)[:, 0]
    sigma = options.noise_low * (options.noise_high / options.noise_low) ** share
    move = sigma[owner, None] * atom_normals(seed, chain, batch.num_atoms, step, 13)
    mean = torch.zeros((len(batch), 3), dtype=move.dtype, device=move.device).index_add_(0, owner, move)
    move = move - (mean / batch.num_atoms[:, None])[owner]
    spacing = (volume(batch.lattice).abs() / batch.num_atoms).pow(1 / 3)
    strain = normals(seed, chain, step, 14, 9).view(-1, 3, 3) * (sigma / (2 * spacing))[:, None, None]
    strain = (strain + strain.transpose(1, 2)) / 2
    lattice = batch.lattice @ torch.matrix_exp(strain)
    back = torch.linalg.inv(lattice)
    frac = batch.frac_coords + torch.einsum("na,nab->nb", move, back[owner])
    return replace(batch, lattice=lattice, frac_coords=frac, graph=None), move, strain, sigma


def denoising_loss(
    model: EnergyModel,
    builder: Builder,
    batch: Batch,
    options: GenerateOptions,
    seed: int,
    chain: Int[Tensor, " crystals"],
    step: int,
) -> Float[Tensor, " crystals"]:
    """How far the slopes of n E are from those of harmonic wells around the crystals, |Δ|² / 2 in Å².

    At temperature T such wells hold atoms within √T Å, so noise of σ Å is what a chain meets at T = σ² per
    atom: denoising score matching (Vincent 2011) with one energy for all σ. A strain A is worth
    n d² |A|² / 2, d = (V / n)^(1/3), the distance by which it moves neighbours.
    """
    given, move, strain, sigma = noised(batch, options, seed, chain, step)
    given = builder.build(given, [""] * len(given))
    owner, numbers = given.crystal_index, given.num_atoms
    at = model.evaluate(given)
    by_position, by_strain = at.by_position * numbers[owner, None], at.by_strain * numbers[:, None, None]
    apart = (by_position - move).square().sum(1) / (3 * sigma[owner].square())
    positions = torch.zeros_like(sigma).index_add(0, owner, apart) / numbers
    worth = numbers * (volume(given.lattice).abs() / numbers).pow(2 / 3)
    spacing = (volume(given.lattice).abs() / numbers).pow(1 / 3)
    scale = sigma / (2 * spacing)
    by_strain = (by_strain + by_strain.transpose(1, 2)) / 2
    cells = (by_strain / worth[:, None, None] - strain).square().sum((1, 2)) / (6 * scale.square())
    return positions + cells
