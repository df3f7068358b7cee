"""Which element a site holds, from its type symbol or its label, with the chemical formula as referee."""

from __future__ import annotations

import re
from functools import lru_cache

from facetry.elements import SYMBOLS
from facetry.elements import atomic_number as _atomic_number

__all__ = ["Formula", "NoElement", "element_of_label", "element_of_type", "parse_formula"]

Formula = dict[str, float]

# Groups that crystallographers write as one "atom": the heavy atom that sits there, and what it means.
_GROUPS = {
    "wa": ("O", "water"),
    "wat": ("O", "water"),
    "water": ("O", "water"),
    "h2o": ("O", "water"),
    "oh2": ("O", "water"),
    "ow": ("O", ""),
    "hw": ("H", ""),
    "dw": ("D", ""),
    "oh": ("O", "hydroxide"),
    "o-h": ("O", "hydroxide"),
    "nh4": ("N", "ammonium"),
    "nh3": ("N", "ammonia"),
}


class NoElement(ValueError):
    """The text names no element; `str()` says so in one clause."""


@lru_cache(maxsize=4096)
def element_of_type(text: str) -> tuple[int, str]:
    """Atomic number of a type symbol ("Fe3+", "O2-", "D", "FE1", "Wa") and the group it stood for.

    Raises NoElement for anything else.
    """
    plain = text.strip("'\" \t")
    group = _GROUPS.get(re.sub(r"[\d.]*[+-]?$", "", plain).lower()) or _GROUPS.get(plain.lower())
    match = re.fullmatch(r"([A-Za-z]{1,2})(?:[\d.]*[+-]?|[+-][\d.]*|_.*|\(.*\))", plain)
    if match:
        number = _symbol(match.group(1))
        if number and not (group and number == 0):
            return number, ""
    if group:
        return _atomic_number(group[0]), group[1]
    if match := re.fullmatch(r"([A-Z][a-z]?)val", plain):  # valence scattering factors
        number = _symbol(match.group(1))
        if number:
            return number, ""
    raise NoElement(f"{text!r} is no element")


def element_of_label(text: str, formula: frozenset[str]) -> tuple[int, str]:
    """Atomic number for a site label ("SiT1", "O(2)", "Wat5", "CA1") and the group it stood for.

    `formula` holds the symbols of the chemical formula, empty where the file gives none. Raises NoElement
    where nothing fits, or where two readings fit and the formula does not settle it.
    """
    plain = text.strip().strip("'\"")
    letters = re.match(r"[A-Za-z]*", plain).group(0)
    if not letters:
        raise NoElement(f"label {text!r} names no element")
    head = re.match(r"(?i)(o-h|nh4|nh3|h2o|oh2|water|wat|wa|oh|ow|hw|dw)(?![a-z])", plain)
    two = letters[:2].capitalize() if len(letters) > 1 and _symbol(letters[:2]) else ""
    one = letters[0].upper() if _symbol(letters[0]) else ""
    if two and SYMBOLS.index(two) > 103 and two not in formula:
        two = ""  # nobody's crystal holds nihonium: NH4 is ammonium
    if one in ("D", "T") and formula and one not in formula and not (one == "D" and "H" in formula):
        one = ""
    if one == "T" and "T" not in formula:
        one = ""  # T1, T2 are tetrahedral sites, their element is not said
    if head and two not in formula:
        symbol, meaning = _GROUPS[head.group(1).lower()]
        if not formula or symbol in formula or (symbol == "D" and "H" in formula):
            return _atomic_number(symbol), meaning
    if two and one and two != one:
        in_two, in_one = two in formula, one in formula
        if in_one != in_two:
            return _atomic_number(two if in_two else one), ""
        if letters[1].isupper():
            raise NoElement(f"label {text!r} can mean {two} or {one}: add a column _atom_site_type_symbol")
        return _atomic_number(two), ""
    if two or one:
        if letters[:3].lower() == "vac" or letters.lower() in ("du", "dum", "dummy"):
            raise NoElement(f"label {text!r} names no element")
        return _atomic_number(two or one), ""
    raise NoElement(f"label {text!r} names no element")


def _symbol(text: str) -> int:
    """Atomic number, 0 for what is no element."""
    text = text.capitalize()
    if text in ("D", "T"):
        return 1
    return SYMBOLS.index(text, 1) if text in SYMBOLS[1:] else 0


@lru_cache(maxsize=512)
def parse_formula(text: str) -> tuple[tuple[str, float], ...]:
    """Amounts in a formula such as "C3 D3 O7 Sr" or "(Sr0.7 Y0.3) Co O2.62"; empty where it is unclear."""
    amounts: Formula = {}
    stack: list[Formula] = [{}]
    tokens = re.findall(r"[A-Z][a-z]?|\d*\.?\d+|\d+\.|[()\[\]]|\S", text)
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        following = tokens[position] if position < len(tokens) else ""
        amount = 1.0
        if (token in ")]" or token[0].isalpha()) and re.fullmatch(r"\d*\.?\d+|\d+\.", following):
            amount = float(following)
            position += 1
        if token in "([":
            stack.append({})
        elif token in ")]" and len(stack) > 1:
            for symbol, count in stack.pop().items():
                stack[-1][symbol] = stack[-1].get(symbol, 0.0) + count * amount
        elif _symbol(token) and token[0].isupper():
            stack[-1][token] = stack[-1].get(token, 0.0) + amount
        else:
            return ()
    if len(stack) == 1:
        amounts = stack[0]
    return tuple(amounts.items())
