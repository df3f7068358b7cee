"""Mixed and partly vacant sites: which models take them, and what to say where they do not."""

from __future__ import annotations

from torch import nn

from facetry.crystal import Crystal


def accepts_disorder(model: nn.Module) -> bool:
    """Whether a model says that its sites may be mixed or partly vacant."""
    return bool(getattr(model, "accepts_disorder", False))


def disorder(crystal: Crystal) -> str:
    """What is disordered in a crystal: "disordered (2 of 8 sites partly occupied)"."""
    shares = [sum(site.values()) for site in crystal.occupancies or ()]
    mixed = sum(len(site) > 1 for site in crystal.occupancies or ())
    partial = sum(share < 1 - 1e-6 for share in shares)
    parts = [f"{partial} of {len(crystal)} sites partly occupied"] if partial else []
    parts += [f"{mixed} of {len(crystal)} sites shared by several elements"] if mixed else []
    return f"disordered ({', '.join(parts)})"


def needs_order(crystal: Crystal) -> str:
    """Why a model for ordered crystals leaves this one out."""
    return f"{disorder(crystal)}, and this model needs an ordered crystal; pick one ordering first"
