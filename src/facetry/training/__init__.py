"""Training: a recipe in, a run folder out. Nothing heavy is imported until a name is used."""

from importlib import import_module

_WHERE = {
    "train": "run",
    "train_recipe": "run",
    "resume": "run",
    "Run": "run",
    "TrainingError": "recipe",
    "load": "checkpoint",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "ModelError": "checkpoint",
    "Recipe": "recipe",
    "RecipeError": "recipe",
    "TrainingOptions": "recipe",
    "apply_overrides": "recipe",
    "load_recipe": "recipe",
    "recipe_names": "recipe",
}

__all__ = [*_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"facetry.training has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"facetry.training.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
