"""JSON of pymatgen (`Structure.as_dict`) and of ASE (`ase.io.write("x.json")`); we write pymatgen's.

Only plain JSON is read: no class named in the text is looked up or imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from facetry.crystal import Crystal
from facetry.elements import SYMBOLS
from facetry.io.elements_of import NoElement, element_of_type
from facetry.io.errors import FormatError
from facetry.io.sites import build_crystal, fractional

__all__ = ["read_json", "write_json"]


def read_json(
    text: str, *, merge_within: float | int | None = None
) -> Iterator[tuple[str, Crystal | FormatError]]:
    """Where it stands ("" for the text itself) and crystal, for every structure in the text.

    A structure may stand alone, in a list, or in a dictionary of names; the crystal's own name is the
    "name" among pymatgen's properties, if any.

    Raises FormatError where the text is no JSON or holds no structure.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"no valid JSON: {error}") from None
    found = 0
    for name, read, node in _structures(tree, "", 0):
        found += 1
        try:
            yield name, read(node, merge_within)
        except FormatError as error:
            yield name, error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            yield name, FormatError(f"a structure is incomplete or garbled ({type(error).__name__}: {error})")
    if not found:
        raise FormatError("no structure in the JSON; expected pymatgen's Structure.as_dict() or ASE's format")


def write_json(crystal: Crystal) -> str:
    """The dictionary that pymatgen's Structure.from_dict reads, every digit kept, occupancies too."""
    species = (
        [[{"element": symbol, "occu": 1}] for symbol in crystal.symbols]
        if crystal.occupancies is None
        else [[{"element": SYMBOLS[z], "occu": share} for z, share in s.items()] for s in crystal.occupancies]
    )
    lengths, angles = crystal.lengths.tolist(), crystal.angles.tolist()
    sites = [
        {"species": kinds, "abc": abc, "xyz": xyz, "label": symbol, "properties": {}}
        for kinds, abc, xyz, symbol in zip(
            species, crystal.frac_coords.tolist(), crystal.cart_coords.tolist(), crystal.symbols, strict=True
        )
    ]
    return json.dumps(
        {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": 0,
            "lattice": {
                "matrix": crystal.lattice.tolist(),
                "pbc": [True, True, True],
                **dict(zip(("a", "b", "c"), lengths, strict=True)),
                **dict(zip(("alpha", "beta", "gamma"), angles, strict=True)),
                "volume": crystal.volume,
            },
            "properties": {"name": crystal.name} if crystal.name else {},
            "sites": sites,
        }
    )


def _structures(node: Any, name: str, depth: int) -> Iterator[tuple[str, Any, Any]]:
    """Whatever looks like a structure in a tree of lists and dictionaries."""
    if depth > 6:
        return
    if isinstance(node, str) and node.lstrip()[:1] == "{":  # a dictionary written into a string
        try:
            yield from _structures(json.loads(node), name, depth + 1)
        except (ValueError, RecursionError):
            return
    elif isinstance(node, list):
        for index, item in enumerate(node):
            if isinstance(item, dict | list | str):
                yield from _structures(item, f"{name}[{index}]" if name else str(index), depth + 1)
    elif isinstance(node, dict):
        if "lattice" in node and "sites" in node:
            yield name, _from_pymatgen, node
        elif "cell" in node and "positions" in node and "numbers" in node:
            yield name, _from_ase, node
        else:
            for key, item in node.items():
                if isinstance(item, dict | list):
                    yield from _structures(item, f"{name}.{key}" if name else str(key), depth + 1)


def _from_pymatgen(node: dict[str, Any], merge_within: float | int | None) -> Crystal:
    properties = node.get("properties")
    name = properties.get("name", "") if isinstance(properties, dict) else ""
    lattice = np.array(node["lattice"]["matrix"], dtype=float)
    if lattice.shape != (3, 3):
        raise FormatError(f"lattice must be 3 x 3, got shape {lattice.shape}")
    frac, numbers, shares = [], [], []
    for index, site in enumerate(node["sites"]):
        mixed: dict[int, float] = {}
        for kind in site["species"]:
            text = str(kind.get("element") or kind.get("name") or kind.get("symbol"))
            try:
                number = element_of_type(text)[0]
            except NoElement:
                raise FormatError(f"site {index} holds {text!r}, which is no element") from None
            mixed[number] = mixed.get(number, 0.0) + float(kind.get("occu", 1.0))
        for number, share in mixed.items():
            frac.append(site["abc"])
            numbers.append(number)
            shares.append(share)
    if not frac:
        raise FormatError("the structure has no sites")
    occupancy = np.array(shares)
    if not ((occupancy > 0) & (occupancy <= 1 + 1e-6)).all():
        raise FormatError(
            f"occupancies must be above 0 and at most 1, got {occupancy.min()} to {occupancy.max()}"
        )
    return build_crystal(
        lattice,
        np.array(frac, dtype=float),
        np.array(numbers),
        str(name),
        occupancy=None if (occupancy == 1.0).all() else occupancy,
        merge_within=merge_within,
    )


def _from_ase(node: dict[str, Any], merge_within: float | int | None) -> Crystal:
    cell = node["cell"]
    cell = _array(cell["array"] if isinstance(cell, dict) and "array" in cell else cell)
    cart, numbers = _array(node["positions"]), _array(node["numbers"])
    if cell.shape != (3, 3) or cart.shape != (len(numbers), 3):
        raise FormatError(f"cell must be 3 x 3 and positions n x 3, got {cell.shape} and {cart.shape}")
    notes = []
    if "pbc" in node and not all(_array(node["pbc"]).ravel().tolist()):
        notes.append("not periodic in all directions in the file; read as periodic in all three")
    return build_crystal(cell, fractional(cell, cart), numbers, "", notes=notes, merge_within=merge_within)


def _array(value: Any) -> np.ndarray:
    """A nested list, or ASE's {"__ndarray__": [shape, type, flat list]}."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, _, flat = value["__ndarray__"]
        return np.array(flat, dtype=float).reshape(shape)
    return np.array(value, dtype=float)
