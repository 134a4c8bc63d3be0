"""Critters, the embedded dataset: subjects drawn by code, in scenes told in plain words."""

from cinema_jax.data.critters.grammar import vocabulary
from cinema_jax.data.critters.identity import Identity, count_identities, draw_identity
from cinema_jax.data.critters.scene import Scene, Tracks
from cinema_jax.data.critters.source import Critters, reference

__all__ = ["Critters", "Identity", "Scene", "Tracks", "count_identities", "draw_identity", "reference", "vocabulary"]
