"""`python -m facetry` is the same as the `facetry` command."""

from facetry.cli import main

if __name__ == "__main__":
    main()
