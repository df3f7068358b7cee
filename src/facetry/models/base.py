"""What every model of a job promises to loaders, tasks and files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from facetry.card import ModelCard
from facetry.graph.batch import Batch
from facetry.graph.builders import Builder
from facetry.nn.segment import segment_mean


@dataclass(frozen=True)
class Symmetry:
    """What a model's output does not change under; tests and certificates measure each of them.

    Lattices and positions that a model returns turn, mirror, shift, permute and change their basis with the
    crystal, and a supercell is returned as the supercell of what the cell becomes.
    """

    rotation: bool = True
    translation: bool = True
    permutation: bool = True
    lattice_basis: bool = True  # another basis of the same lattice, atoms moved by lattice vectors
    supercell: bool = True
    reflection: bool = True  # False: mirror images may be told apart


class Model(nn.Module):
    """What all jobs share. `model.graph(crystals)` makes the batch that `model(batch)` reads.

    `options` are the constructor's arguments: they rebuild the model from its file. `card` says what the
    outputs mean (None: untrained).
    """

    name: ClassVar[str]
    job: ClassVar[Literal["predict", "relax", "generate"]]
    accepts_disorder: ClassVar[bool] = False  # whether sites may be mixed or partly vacant
    options: dict[str, Any]
    graph: Builder

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        original = cls.__init__
        signature = inspect.signature(original)

        @functools.wraps(original)
        def remember(self: Model, *args: Any, **keywords: Any) -> None:
            bound = signature.bind(self, *args, **keywords)
            bound.apply_defaults()
            original(self, *args, **keywords)
            self.options = {k: v for k, v in bound.arguments.items() if k != "self"}

        cls.__init__ = remember  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        self.card: ModelCard | None = None
        self.domain_reference: Tensor | None = None

    @property
    def symmetry(self) -> Symmetry:
        """The declared symmetry of this model with its options."""
        return Symmetry()

    @property
    def continuous(self) -> bool:
        """Whether answers are declared continuous in positions and lattice, as long as the primitive cell
        stays what it is."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights; the geometry stays float64."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device


@contextmanager
def evaluating(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """The model in evaluation mode on a device; mode of every module and device are restored afterwards."""
    before = {module: module.training for module in model.modules()}
    home = device_of(model)
    try:
        model.eval()
        if device is not None:
            model.to(device)
        yield device_of(model)
    finally:
        if device is not None:
            model.to(home)
        for module, training in before.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


class PropertyModel(Model):
    """A crystal to numbers: standardised targets or logits. `card` says how they become physical values."""

    job = "predict"
    outputs: int

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        """One vector an atom of the batch, averaged over lattice frames where there are several."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        """One vector a crystal: what the head reads."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Float[Tensor, "crystals outputs"]:
        """Standardised targets or logits."""
        raise NotImplementedError

    def forward_with_embedding(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "crystals outputs"], Float[Tensor, "crystals channels"]]:
        """`forward` and `embed` at once; models override it where the two share their work."""
        return self(batch), self.embed(batch)

    def one_frame_graph(self) -> Builder:
        """The graph with a single lattice frame for each crystal, chosen by the crystal itself; for models
        that average over tied frames. Raises ValueError for the others."""
        raise ValueError(f"{self.name} does not average over lattice frames; leave one_frame away")

    def training_batch(self, batch: Batch, generator: torch.Generator) -> Batch:
        """What one training step sees of a batch; models with random choices make them here."""
        return batch


class PooledModel(PropertyModel):
    """A property model that reads one pooled vector a crystal, the mean over atoms unless it says another."""

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        return segment_mean(self.embed_atoms(batch), batch.crystal_index, len(batch))

    def outputs_of(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        """Standardised targets or logits of what `embed` gives."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Float[Tensor, "crystals outputs"]:
        return self.outputs_of(self.embed(batch))

    def forward_with_embedding(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "crystals outputs"], Float[Tensor, "crystals channels"]]:
        """Outputs and pooled vectors in one pass."""
        pooled = self.embed(batch)
        return self.outputs_of(pooled), pooled


@dataclass(frozen=True)
class Relaxation:
    """A crystal on its way: first the input, then what each deformation made of it, last the answer.

    Lattices are rows in Å. Atoms keep their order; fractional coordinates are not wrapped, so they can be
    followed. `parameters` (a, b, c in Å and angles in degrees) are there where a model predicts these rather
    than a lattice: losses then read them, since not all six numbers close a cell.
    """

    lattices: tuple[Float[Tensor, "crystals 3 3"], ...]
    frac_coords: tuple[Float[Tensor, "atoms 3"], ...]
    parameters: Float[Tensor, "crystals 6"] | None = None


class LatticeModel(Model):
    """A crystal with a wrong lattice to one with the right lattice, in the basis that was given."""

    job = "relax"
    mixed_precision: ClassVar[bool] = False
    """Training under autocast to bfloat16 leaves cells and fields as they are."""

    def forward(self, batch: Batch) -> Relaxation:
        """Lattices and fractional coordinates from the input to the answer."""
        raise NotImplementedError


@dataclass(frozen=True)
class Evaluation:
    """Energies and their slopes: by Cartesian positions (1/Å), and W = dE(C eᴬ, X eᴬ)/dA at A = 0."""

    energy: Float[Tensor, " crystals"]
    by_position: Float[Tensor, "atoms 3"]
    by_strain: Float[Tensor, "crystals 3 3"]


class Landscape:
    """Energies of crystals whose atoms are given, for the steps of a chain."""

    num_atoms: Int[Tensor, " crystals"]

    def __call__(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        use: Bool[Tensor, " crystals"] | None = None,
    ) -> Evaluation:
        """Energies and slopes; infinite energies where `use` is False or there is none."""
        raise NotImplementedError

    def forget(self, crystals: Bool[Tensor, " crystals"]) -> None:
        """These are described anew from now on: another cell of the same lattice, atoms wrapped."""


class EnergyModel(Model):
    """A crystal to one dimensionless number E: structures are drawn from exp(-E / T)."""

    job = "generate"
    density: float  # atoms/Å³, where chains start

    def evaluate(self, batch: Batch) -> Evaluation:
        """Energies and slopes of a batch with its graph, differentiable in the weights: for losses on slopes.

        Models whose geometry holds no weights override it to save the second derivatives of the geometry.
        """
        owner = batch.crystal_index
        shift = torch.zeros_like(batch.frac_coords, requires_grad=True)
        stretch = torch.zeros_like(batch.lattice, requires_grad=True)
        eye = torch.eye(3, dtype=stretch.dtype, device=stretch.device)
        back = torch.linalg.inv(batch.lattice)
        moved = replace(
            batch,
            frac_coords=batch.frac_coords + torch.einsum("na,nab->nb", shift, back[owner]),
            lattice=batch.lattice @ (eye + stretch),
        )
        energy = self(moved)
        return Evaluation(energy, *torch.autograd.grad(energy.sum(), (shift, stretch), create_graph=True))

    def landscape(
        self, atomic_numbers: Int[Tensor, " atoms"], num_atoms: Int[Tensor, " crystals"]
    ) -> Landscape:
        """Energies and slopes for these atoms with the weights of this moment."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Float[Tensor, " crystals"]:
        """Energies; differentiable in weights, lattices and coordinates."""
        raise NotImplementedError
