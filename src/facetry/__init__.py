"""facetry: learn from crystals.

The verbs of the shell are functions here, under the same names. Nothing heavy is imported until a name is
used: `import facetry` itself needs neither torch nor any other library.
"""

from importlib import import_module

from facetry._version import __version__

_WHERE = {
    "Crystal": "facetry.crystal",
    "CrystalError": "facetry.crystal",
    "as_crystal": "facetry.crystal",
    "read": "facetry.io",
    "ReadError": "facetry.io",
    "dataset": "facetry.data",
    "train": "facetry.training",
    "load": "facetry.training",
    "predict": "facetry.tasks.predict",
    "Prediction": "facetry.tasks.predict",
    "certify": "facetry.tasks.certify",
    "audit": "facetry.tasks.audit",
    "Audit": "facetry.tasks.audit",
    "embed": "facetry.tasks.embed",
    "evaluate": "facetry.tasks.evaluate",
    "explain": "facetry.tasks.explain",
    "generate": "facetry.tasks.generate",
    "match": "facetry.tasks.match",
    "relax": "facetry.tasks.relax",
    "Relaxed": "facetry.tasks.relax",
    "Relaxer": "facetry.tasks.relax",
}
_SUBPACKAGES = ("data", "evaluation", "geometry", "graph", "models", "nn", "tasks", "training")

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    elif name in _SUBPACKAGES:
        value = import_module(f"facetry.{name}")
    else:
        raise AttributeError(f"facetry has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
