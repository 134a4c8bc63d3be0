"""Scoring of descriptions in words against the identity they should describe."""

from cinema_jax.data.critters.grammar import words
from cinema_jax.data.critters.identity import COLORS, PATTERNS, Identity


def attribute_accuracy(identity: Identity, text: str) -> dict[str, bool]:
    """Which of species, colours and pattern the first description in `text` names right.

    The first colour before the noun is the body's, the second the accent's; one colour alone stands for both.
    """
    said = words(text)
    before = said[: said.index(identity.species)] if identity.species in said else said
    colors = [word for word in before if word in COLORS]
    patterns = [word for word in before if word in PATTERNS]
    return {
        "species": identity.species in said,
        "color": colors[:1] == [identity.color],
        "accent": (colors[1:2] or colors[:1]) == [identity.accent],
        "pattern": patterns[:1] == [identity.pattern],
    }
