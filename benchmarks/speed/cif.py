"""CIF text of a five-atom crystal to a Crystal, beside gemmi alone, ASE and pymatgen."""

from __future__ import annotations

import io
import warnings

from benchmarks.speed.common import best, perov5, record


def main() -> None:
    import ase.io
    import gemmi
    from pymatgen.core import Structure

    from facetry.io.cif import read_cif

    texts = [c.to_text("cif") for c in perov5(200)]
    few = texts[:20]

    def each(function, chosen):
        return lambda: [function(t) for t in chosen]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = best(each(lambda t: next(read_cif(t)), texts)) / len(texts)
        parse = best(each(lambda t: gemmi.cif.read_string(t), texts)) / len(texts)
        ase_ = best(each(lambda t: ase.io.read(io.StringIO(t), format="cif"), few), 3) / len(few)
        pymatgen = best(each(lambda t: Structure.from_str(t, fmt="cif"), few), 3) / len(few)
    record(
        "cif",
        [
            {"what": "CIF text to Crystal, 5 atoms", "value": ours * 1e3, "unit": "ms", "budget": 0.1},
            {"what": "gemmi, parsing the text only", "value": parse * 1e3, "unit": "ms"},
            {"what": "ASE", "value": ase_ * 1e3, "unit": "ms"},
            {"what": "pymatgen", "value": pymatgen * 1e3, "unit": "ms"},
        ],
    )


if __name__ == "__main__":
    main()
