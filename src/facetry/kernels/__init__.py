"""Fast twins of plain functions, and what else serves speed alone."""
