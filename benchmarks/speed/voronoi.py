"""Voronoi bonds of real crystals: time beside pymatgen's IsayevNN on the 2 x 2 x 2 supercell, and whether the
bonds are the same. `--compare 200` compares so many crystals of MP-20 (minutes: pymatgen takes seconds for
each)."""

from __future__ import annotations

import argparse

from benchmarks.speed.common import best, record

LARGEST = 8  # atoms of a crystal that is compared


def main() -> None:
    import torch
    from tests.graph.test_cells import bonds, pymatgen_bonds

    from facetry.data import dataset
    from facetry.graph import GraphError
    from facetry.graph.cells import Voronoi

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", type=int, default=0, help="crystals to compare with pymatgen")
    count = parser.parse_args().compare
    torch.set_num_threads(1)
    crystals = dataset("mp20").val.crystals
    every = Voronoi(valid=False)

    def sound(crystal) -> bool:
        try:
            return len(every([crystal]).frac_coords) > 0
        except GraphError:
            return False

    chosen = [c for c in crystals.select(range(280)) if sound(c)][:256]
    six = next(c for c in chosen if len(c) == 6 and len(every([c]).frac_coords) == 6)
    batch = every([six])
    alone = best(lambda: every([six]))
    several = best(lambda: every([six] * 64), 3) / 64
    theirs = best(lambda: pymatgen_bonds(batch, 0), 1)
    rows = [
        {"what": "Voronoi graph, 48 atoms in the supercell, alone", "value": alone * 1e3, "unit": "ms",
         "budget": 30},
        {"what": "the same in a batch of 64", "value": several * 1e3, "unit": "ms"},
        {"what": "the same by pymatgen", "value": theirs * 1e3, "unit": "ms"},
        {"what": "pymatgen over ours, alone", "value": theirs / alone, "unit": "×"},
        {"what": "pymatgen over ours, in a batch", "value": theirs / several, "unit": "×"},
        {"what": "Voronoi graph in a batch, MP-20", "value": best(lambda: every(chosen), 2) / 256 * 1e3,
         "unit": "ms"},
    ]  # fmt: skip
    if count:
        same, different = 0, []
        for crystal in crystals:
            if len(crystal) > LARGEST or not sound(crystal):
                continue
            batch = every([crystal])
            if bonds(batch, 0) == pymatgen_bonds(batch, 0):
                same += 1
            else:
                different.append(crystal.name)
            if same + len(different) >= count:
                break
        print("different:", ", ".join(different) or "none")
        rows.append({"what": f"crystals of {count} with the bonds of pymatgen", "value": same, "unit": ""})
    record("voronoi", rows)


if __name__ == "__main__":
    main()
