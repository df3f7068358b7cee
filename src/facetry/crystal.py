"""A crystal: lattice, fractional coordinates, atomic numbers. Frozen, checked once, never tidied up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from facetry.elements import ELECTRONEGATIVITIES, MASSES, MAX_ATOMIC_NUMBER, SYMBOLS

if TYPE_CHECKING:
    import ase
    import pymatgen.core

__all__ = ["Crystal", "CrystalError", "as_crystal", "check_lattice", "flatness"]

SHORTEST, LONGEST = 1e-3, 1e6  # Å; of lattice vectors. Beyond, squares and volumes lose their digits
FARTHEST = 1e6  # cells; a coordinate further out has lost its place in the cell

# Volume over |a||b||c| below which the three vectors span no cell a file of rounded numbers could mean.
_FLAT = 1e-6
_GRAMS_PER_DALTON_TIMES_CUBIC_ANGSTROM = 1.66053906660  # CODATA 2018: 1 Da / Å^3 in g/cm^3


class _cached:
    """A property computed once. functools' twin takes a lock each time, which costs more than the work."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, crystal: Any, owner: type | None = None) -> Any:
        if crystal is None:
            return self
        value = crystal.__dict__[self.name] = self.function(crystal)
        return value


class CrystalError(ValueError):
    """What was given is no crystal; the text names the crystal, what came and what was expected."""


class Crystal:
    """A periodic arrangement of atoms.

    Args:
        lattice: rows a, b, c in Å; any orientation, either handedness.
        frac_coords: position of every site as fractions of a, b, c; inside the cell or outside it.
        atomic_numbers: element of every site, 1 to 118.
        occupancies: None where every site is full. Otherwise one entry per site: a number (the share of
            cells in which the site is filled) or a dict {atomic number: share} for several species on
            one site. A site's atomic number becomes that of its majority species.
        name: where it came from; every error message carries it.
        notes: what a reader had to assume, one sentence each.

    Arrays are float64 (atomic numbers int64) and read-only. Nothing is reduced, wrapped or re-oriented.
    Raises CrystalError for wrong shapes, numbers that are not finite or beyond all crystals, unknown
    elements, a flat lattice.
    """

    lattice: Float[np.ndarray, "3 3"]
    frac_coords: Float[np.ndarray, "atoms 3"]
    atomic_numbers: Int[np.ndarray, "atoms"]
    occupancies: tuple[dict[int, float], ...] | None
    name: str
    notes: tuple[str, ...]

    def __init__(
        self,
        lattice: ArrayLike,
        frac_coords: ArrayLike,
        atomic_numbers: ArrayLike,
        occupancies: Sequence[float | int | Mapping[int | str, float | int]] | np.ndarray | None = None,
        name: str = "",
        *,
        notes: Sequence[str] = (),
    ) -> None:
        name = str(name)
        lattice = _array(lattice, "lattice", name)
        frac_coords = _array(frac_coords, "frac_coords", name)
        if lattice.shape != (3, 3):
            _fail(name, f"lattice must be 3 x 3 (rows a, b, c in Å), got shape {lattice.shape}")
        check_lattice(lattice, name)
        if frac_coords.size == 0:
            _fail(name, "a crystal needs at least one site, got none")
        if frac_coords.ndim != 2 or frac_coords.shape[1] != 3:
            _fail(name, f"frac_coords must be n x 3, got shape {frac_coords.shape}")
        if not np.abs(frac_coords).max() <= FARTHEST:
            bad = int(np.flatnonzero(~(np.abs(frac_coords) <= FARTHEST).all(axis=1))[0])
            place = frac_coords[bad].tolist()
            if not np.isfinite(place).all():
                _fail(name, f"site {bad} has a coordinate that is not finite: {place}")
            _fail(name, f"site {bad} is more than {FARTHEST:g} cells away: {place}; wrap it into the cell")
        numbers = _atomic_numbers(atomic_numbers, len(frac_coords), name)
        if occupancies is not None:
            occupancies, numbers = _occupancies(occupancies, numbers, name)
        for array in (lattice, frac_coords, numbers):
            array.flags.writeable = False
        self.__dict__.update(
            lattice=lattice,
            frac_coords=frac_coords,
            atomic_numbers=numbers,
            occupancies=occupancies,
            name=name,
            notes=tuple(map(str, notes)),
        )

    def __setattr__(self, key: str, value: object) -> None:
        raise AttributeError(f"Crystal is frozen: cannot set {key}; use crystal.replace({key}=...)")

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"Crystal is frozen: cannot delete {key}")

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in _FIELDS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # copies arrive writeable; the constructor locks them again

    def replace(self, **changes: Any) -> Crystal:
        """A copy with some constructor arguments changed."""
        if changes.keys() <= {"name", "notes"}:  # nothing to check again; the arrays are read-only
            copy = object.__new__(Crystal)
            copy.__dict__.update({key: self.__dict__[key] for key in _FIELDS})
            if "name" in changes:
                copy.__dict__["name"] = str(changes["name"])
            if "notes" in changes:
                copy.__dict__["notes"] = tuple(map(str, changes["notes"]))
            return copy
        return Crystal(**{**self.__getstate__(), **changes})

    # --- plain facts ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Crystal{name} {self.formula}, {len(self)} sites, {self.volume:.4g} Å^3>"

    def __eq__(self, other: object) -> bool:
        """Equal arrays, bit for bit, and equal occupancies; names and notes do not count."""
        if not isinstance(other, Crystal):
            return NotImplemented
        return (
            np.array_equal(self.lattice, other.lattice)
            and np.array_equal(self.frac_coords, other.frac_coords)
            and np.array_equal(self.atomic_numbers, other.atomic_numbers)
            and self.occupancies == other.occupancies
        )

    def __hash__(self) -> int:
        # + 0.0 turns -0.0 into 0.0: equal arrays must give equal hashes
        arrays = (self.lattice + 0.0, self.frac_coords + 0.0, self.atomic_numbers)
        return hash(tuple(array.tobytes() for array in arrays))

    @property
    def is_ordered(self) -> bool:
        """True where every site is fully occupied by one element."""
        return self.occupancies is None

    @property
    def symbols(self) -> list[str]:
        """Element symbol of every site (of its majority species)."""
        return [SYMBOLS[z] for z in self.atomic_numbers.tolist()]

    @_cached
    def cart_coords(self) -> Float[np.ndarray, "atoms 3"]:
        """Positions in Å."""
        cart = self.frac_coords @ self.lattice
        cart.flags.writeable = False
        return cart

    @_cached
    def volume(self) -> float:
        """Volume of the cell in Å^3, positive for either handedness."""
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = self.lattice.tolist()
        return abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))

    @_cached
    def lengths(self) -> Float[np.ndarray, "3"]:
        """|a|, |b|, |c| in Å."""
        return np.sqrt((self.lattice**2).sum(axis=1))

    @_cached
    def angles(self) -> Float[np.ndarray, "3"]:
        """alpha, beta, gamma in degrees."""
        # atan2 of |u x v| and u.v keeps full precision near 0 and 180 degrees, where arccos loses half
        first, second = self.lattice[[1, 2, 0]], self.lattice[[2, 0, 1]]
        cross = np.sqrt((np.cross(first, second) ** 2).sum(axis=1))
        return np.degrees(np.arctan2(cross, (first * second).sum(axis=1)))

    @_cached
    def composition(self) -> dict[int, float]:
        """Atoms of each element in the cell: {atomic number: count}, whole numbers where all is ordered."""
        if self.occupancies is None:
            return {z: float(n) for z, n in sorted(Counter(self.atomic_numbers.tolist()).items())}
        total: dict[int, float] = {}
        for site in self.occupancies:
            for number, share in site.items():
                total[number] = total.get(number, 0.0) + share
        return total

    @_cached
    def formula(self) -> str:
        """Reduced formula, electropositive elements first: "SrTiO3", "Li0.5CoO2".

        Amounts that are not whole are given per cell, to four digits.
        """
        amounts = self.composition
        order = sorted(amounts, key=lambda z: (ELECTRONEGATIVITIES[z] or 9.0, z))
        whole = [round(amounts[z]) for z in order]
        if all(n > 0 and abs(amounts[z] - n) < 1e-3 for z, n in zip(order, whole, strict=True)):
            divisor = math.gcd(*whole)
            counts = [f"{n // divisor}" for n in whole]
        else:
            counts = [f"{amounts[z]:.4g}" for z in order]
        return "".join(SYMBOLS[z] + ("" if n == "1" else n) for z, n in zip(order, counts, strict=True))

    @property
    def density(self) -> float:
        """Mass density in g/cm^3, from standard atomic weights and occupancies."""
        mass = sum(MASSES[z] * n for z, n in self.composition.items())
        return mass / self.volume * _GRAMS_PER_DALTON_TIMES_CUBIC_ANGSTROM

    # --- other cells ---------------------------------------------------------------------------

    def supercell(self, matrix: int | Sequence[int] | ArrayLike) -> Crystal:
        """The same crystal in the cell whose vectors are `matrix @ lattice`.

        Args:
            matrix: 3 x 3 integers with a determinant that is not zero; one or three integers mean a
                diagonal matrix. A negative determinant turns the handedness of the lattice vectors, not
                the crystal.

        Sites of one original cell stay together, in their order. Raises CrystalError for anything else.
        """
        given = np.asarray(matrix)
        if given.shape == ():
            given = np.full(3, given)
        if given.shape == (3,):
            given = np.diag(given)
        whole = np.rint(given.astype(float)).astype(np.int64) if given.shape == (3, 3) else None
        if whole is None or not np.array_equal(whole, given):
            _fail(self.name, f"supercell needs 1, 3 or 3 x 3 integers, got {given.tolist()}")
        adjugate = np.stack(
            [np.cross(whole[1], whole[2]), np.cross(whole[2], whole[0]), np.cross(whole[0], whole[1])], axis=1
        )
        determinant = int(whole[0] @ adjugate[:, 0])
        if determinant == 0:
            _fail(self.name, f"supercell matrix has determinant 0: {whole.tolist()}")
        # every integer point t of the bounding box with t @ inverse in [0, 1), decided in integers
        corners = np.array(list(np.ndindex(2, 2, 2))) @ whole
        box = [np.arange(low, high + 1) for low, high in zip(corners.min(0), corners.max(0), strict=True)]
        points = np.stack(np.meshgrid(*box, indexing="ij"), axis=-1).reshape(-1, 3)
        scaled = points @ adjugate * (1 if determinant > 0 else -1)
        points = points[((scaled >= 0) & (scaled < abs(determinant))).all(axis=1)]
        frac = (points[:, None, :] + self.frac_coords).reshape(-1, 3) @ (adjugate / determinant)
        return self.replace(
            lattice=whole @ self.lattice,
            frac_coords=frac,
            atomic_numbers=np.tile(self.atomic_numbers, len(points)),
            occupancies=None if self.occupancies is None else self.occupancies * len(points),
        )

    # --- other programs ------------------------------------------------------------------------

    @classmethod
    def from_pymatgen(cls, structure: pymatgen.core.Structure, name: str = "") -> Crystal:
        """From a pymatgen Structure; charges, isotopes and site properties are left behind.

        Raises CrystalError for dummy species.
        """
        sites: list[dict[int, float]] = []
        for index, site in enumerate(structure):
            shares: dict[int, float] = {}
            for species, share in site.species.items():
                number = int(species.Z) if type(species).__name__ != "DummySpecies" else 0
                if not 1 <= number <= MAX_ATOMIC_NUMBER:
                    _fail(name, f"site {index} holds {species}, which is no element; replace or remove it")
                shares[number] = shares.get(number, 0.0) + float(share)
            sites.append(shares)
        name = name or str((getattr(structure, "properties", None) or {}).get("name", ""))
        majority = [max(shares, key=shares.__getitem__) for shares in sites]
        return cls(structure.lattice.matrix, structure.frac_coords, majority, sites, name)

    def to_pymatgen(self) -> pymatgen.core.Structure:
        """A pymatgen Structure with the same lattice vectors and coordinates, nothing wrapped."""
        try:
            from pymatgen.core import Lattice, Structure
        except ImportError as error:
            raise ImportError(
                "to_pymatgen needs pymatgen: `pip install pymatgen-core` (after an upgrade of an old "
                "pymatgen: `pip install --force-reinstall --no-deps pymatgen-core`)"
            ) from error
        species: list[Any] = (
            self.symbols
            if self.occupancies is None
            else [{SYMBOLS[z]: share for z, share in site.items()} for site in self.occupancies]
        )
        properties = {"name": self.name} if self.name else None
        return Structure(Lattice(self.lattice), species, self.frac_coords, properties=properties)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms, name: str = "") -> Crystal:
        """From ASE Atoms with a full cell; occupancies that ASE read from a CIF are kept.

        The cell is taken as periodic in all three directions; where `pbc` says otherwise a note is left.
        """
        cell = np.array(atoms.cell, dtype=float)
        if not flatness(cell) > _FLAT:
            _fail(name, "Atoms has no three-dimensional cell; set one with set_cell or center(vacuum=...)")
        frac = np.linalg.solve(cell.T, np.array(atoms.positions, dtype=float).T).T
        shares = atoms.info.get("occupancy")
        kinds = atoms.arrays.get("spacegroup_kinds")
        occupancies = None
        if isinstance(shares, dict) and kinds is not None:
            from facetry.elements import atomic_number

            occupancies = [
                {atomic_number(symbol): float(share) for symbol, share in shares[str(kind)].items()}
                for kind in kinds.tolist()
            ]
        pbc = [bool(flag) for flag in atoms.pbc]
        notes = [] if all(pbc) else [f"Atoms had pbc={pbc}; read as periodic in all three directions"]
        name = name or str(atoms.info.get("name", ""))
        return cls(cell, frac, atoms.numbers, occupancies, name, notes=notes)

    def to_ase(self) -> ase.Atoms:
        """ASE Atoms, periodic in three directions. Raises CrystalError for partial occupancy."""
        from ase import Atoms

        if self.occupancies is not None:
            _fail(self.name, "ASE Atoms cannot hold partial occupancy; use to_pymatgen, CIF or JSON")
        info = {"name": self.name} if self.name else None
        return Atoms(
            numbers=self.atomic_numbers, positions=self.cart_coords, cell=self.lattice, pbc=True, info=info
        )

    def write(self, path: str | PathLike[str]) -> None:
        """Write to a file; the name says the format: .cif, .vasp/POSCAR/CONTCAR, .extxyz/.xyz, .json.

        A path ending in .gz is compressed. An existing file is replaced only once the new one is complete.
        See `facetry.io.write` for what each format keeps.
        """
        from facetry.io import write

        write(self, path)

    def to_text(self, format: str) -> str:
        """The crystal as "cif", "poscar", "extxyz" or "json" text."""
        from facetry.io import to_text

        return to_text(self, format)

    @classmethod
    def from_text(cls, text: str, format: str, name: str = "") -> Crystal:
        """From "cif", "poscar", "extxyz" or "json" text that holds exactly one crystal."""
        from facetry.io import from_text

        return from_text(text, format, name)


_FIELDS = ("lattice", "frac_coords", "atomic_numbers", "occupancies", "name", "notes")


def as_crystal(structure: Any, name: str = "") -> Crystal:
    """A Crystal from a Crystal, a pymatgen Structure (or Site collection with a lattice) or ASE Atoms.

    Told apart by what they carry, so neither package is imported. Raises TypeError for anything else.
    """
    if isinstance(structure, Crystal):
        return structure.replace(name=name) if name else structure
    if all(hasattr(structure, known) for known in ("lattice", "frac_coords", "species_and_occu")):
        return Crystal.from_pymatgen(structure, name)
    if all(hasattr(structure, known) for known in ("cell", "positions", "numbers")):
        return Crystal.from_ase(structure, name)
    raise TypeError(
        f"expected a facetry Crystal, a pymatgen Structure or ASE Atoms, got {type(structure).__name__}; "
        "read files with facetry.read(path)"
    )


def check_lattice(lattice: Float[np.ndarray, "3 3"], name: str = "") -> None:
    """Raises CrystalError for rows that are not finite, too short, too long (Å) or in one plane."""
    extent = np.abs(lattice).max(axis=1)
    if not (extent.max() <= LONGEST and extent.min() >= SHORTEST):
        if not np.isfinite(lattice).all():
            _fail(name, "lattice holds a number that is not finite")
        worst = extent.max() if extent.max() > LONGEST else extent.min()
        _fail(
            name,
            f"expected lattice vectors between {SHORTEST:g} and {LONGEST:g} Å, got one of about {worst:.2g}; "
            "check its unit and scale, and whether it is there at all",
        )
    flat = flatness(lattice)
    if not flat > _FLAT:
        _fail(
            name,
            f"lattice is flat: volume over |a||b||c| is {flat:.1e}, at least {_FLAT:.0e} is needed; "
            "check the cell lengths and angles",
        )


def flatness(lattice: Float[np.ndarray, "3 3"]) -> float:
    """Volume over the product of the lengths: 1 for a rectangular cell, 0 for a flat one."""
    # products of plain floats: ten times faster than numpy on nine numbers
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = lattice.tolist()
    volume = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    lengths = math.hypot(ax, ay, az) * math.hypot(bx, by, bz) * math.hypot(cx, cy, cz)
    return abs(volume) / lengths if lengths > 0 and math.isfinite(lengths) else 0.0


def _fail(name: str, reason: str) -> None:
    raise CrystalError(f"{name}: {reason}" if name else reason)


def _array(values: ArrayLike, what: str, name: str) -> np.ndarray:
    try:
        return np.asarray(values).astype(np.float64)  # always a copy: the caller's array stays writeable
    except (TypeError, ValueError) as error:
        raise CrystalError(f"{name}: {what} must be numbers: {error}".removeprefix(": ")) from None


def _atomic_numbers(values: ArrayLike, sites: int, name: str) -> np.ndarray:
    given = np.asarray(values)
    if given.shape != (sites,):
        _fail(name, f"{sites} sites need {sites} atomic numbers, got shape {given.shape}")
    whole = given.dtype.kind in "iu" or (
        given.dtype.kind == "f" and np.array_equal(given, np.rint(given)) and np.abs(given).max() < 2**31
    )
    if not whole:
        _fail(name, f"atomic_numbers must be integers 1 to {MAX_ATOMIC_NUMBER}, got {given[:3].tolist()}")
    numbers = given.astype(np.int64)
    few = numbers.tolist() if sites < 64 else None  # Python's own min and max are quicker on short lists
    low, high = (min(few), max(few)) if few else (numbers.min(), numbers.max())
    if low < 1 or high > MAX_ATOMIC_NUMBER:
        bad = int(np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))[0])
        _fail(name, f"site {bad} has atomic number {numbers[bad]}; elements go from 1 to {MAX_ATOMIC_NUMBER}")
    return numbers


def _species(key: int | str | np.integer, index: int, name: str) -> int:
    """An atomic number, or a symbol."""
    if isinstance(key, str):
        if key in SYMBOLS[1:]:
            return SYMBOLS.index(key)
        _fail(name, f"site {index} has occupancies of {key!r}, which is no element")
    return int(key)


def _occupancies(
    values: Sequence[float | int | Mapping[int | str, float | int]] | np.ndarray,
    numbers: np.ndarray,
    name: str,
) -> tuple[tuple[dict[int, float], ...] | None, np.ndarray]:
    """Occupancies as dicts (None where all sites are full) and the majority species of every site."""
    if len(values) != len(numbers):
        _fail(name, f"{len(numbers)} sites need {len(numbers)} occupancies, got {len(values)}")
    sites: list[dict[int, float]] = []
    majority: list[int] = []
    full = True
    for index, (value, number) in enumerate(zip(values, numbers.tolist(), strict=True)):
        if isinstance(value, Mapping):
            site = {_species(z, index, name): float(share) for z, share in value.items()}
        else:
            site = {number: float(value)}
        total = sum(site.values())
        if not site or not all(share > 0 for share in site.values()) or not total <= 1 + 1e-6:
            _fail(name, f"site {index} has occupancies {site}; each must be above 0 and their sum at most 1")
        if not all(1 <= z <= MAX_ATOMIC_NUMBER for z in site):
            _fail(name, f"site {index} has occupancies {site}; elements go from 1 to {MAX_ATOMIC_NUMBER}")
        if number not in site:
            _fail(name, f"site {index} has atomic number {number}, which is not among its species {site}")
        # a tie is settled for the species that was named
        majority.append(max(site, key=lambda z: (site[z], z == number)))
        full = full and len(site) == 1 and total >= 1 - 1e-9
        sites.append(site)
    return (None if full else tuple(sites)), np.array(majority, dtype=np.int64)
