"""Embeddings: learn them, compare them."""
