"""How good a model is, how sure a value is, and a page that shows both."""
