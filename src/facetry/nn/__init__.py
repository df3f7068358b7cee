"""Layers that can be used alone: bases, embeddings, attention, convolutions, readouts."""
