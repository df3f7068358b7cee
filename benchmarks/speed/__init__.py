"""How fast facetry is: a script a question. `python -m benchmarks.speed` runs them all."""
