"""Tasks: a model, crystals in, an answer in physical units out."""
