"""Chemistry in numbers: formulas, oxidation states, likeness of elements, the room that atoms take."""

from facetry.chemistry.formula import Formula, FormulaError, parse, read_formulas
from facetry.chemistry.oxidation import is_valid_composition
from facetry.chemistry.similarity import element_distances
from facetry.chemistry.volume import expected_volume

__all__ = [
    "Formula",
    "FormulaError",
    "element_distances",
    "expected_volume",
    "is_valid_composition",
    "parse",
    "read_formulas",
]
