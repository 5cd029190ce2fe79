"""Robust in-train pruning of image classifiers in JAX."""
