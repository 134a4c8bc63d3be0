"""Weights and checkpoints of other projects, in and out."""
