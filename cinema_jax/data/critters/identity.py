"""Who a critter is: discrete attributes that can be named, and proportions that make it an individual."""

import colorsys
import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

Color = tuple[int, int, int]
Number = float | int

# Ten colours people tell apart at a glance. Each identity wears its own slightly different shade of them.
COLORS: dict[str, Color] = {
    "red": (221, 52, 48),
    "orange": (250, 140, 28),
    "yellow": (252, 217, 58),
    "green": (72, 172, 74),
    "blue": (48, 110, 222),
    "purple": (140, 78, 196),
    "pink": (248, 140, 186),
    "brown": (128, 78, 46),
    "white": (246, 244, 238),
    "black": (58, 56, 68),
}
SPECIES = ("bird", "cat", "rabbit", "bear", "snail", "fish", "octopus", "beetle", "elephant", "giraffe")
PATTERNS = ("plain", "striped", "spotted", "patched")
HATS = ("none", "hat", "cap", "crown", "cone")
EYES = ("round", "big", "dot", "lashes")
HORNED = ("bird", "cat", "bear", "fish", "octopus", "elephant")  # species that may grow horns when they wear no hat
SPLITS = ("train", "validation", "test")
# An accent must stand out from the colour beside it: these pairs are too close at 24 pixels.
CLOSE: dict[str, tuple[str, ...]] = {
    "red": ("brown", "orange", "pink", "purple"),
    "orange": ("brown", "yellow"),
    "white": ("yellow", "pink"),
    "purple": ("blue", "black", "brown"),
    "black": ("blue", "brown"),
    "green": ("brown",),
}


@dataclass(frozen=True)
class Identity:
    """One critter. Equal seeds are equal critters; `draw_identity` makes them."""

    seed: int
    species: str  # one of SPECIES
    color: str  # key of COLORS: the body
    accent: str  # key of COLORS: the pattern and small parts; equal to `color` for plain critters
    pattern: str  # one of PATTERNS
    hat: str  # one of HATS
    hat_color: str  # key of COLORS, or "none"
    horns: bool
    eyes: str  # one of EYES; seen but never named
    # Proportions and shades in [-1, 1], 0 is the average of the species; seen but never named.
    girth: float
    legs: float
    head: float
    ears: float
    shade: float
    accent_shade: float
    pattern_offset: float

    @property
    def noun(self) -> str:
        return self.species

    @property
    def key(self) -> str:
        """The named attributes in one stable string; two critters with one key are described by the same words."""
        return "-".join(self.attributes().values()).replace(" ", "_")

    @property
    def split(self) -> str:
        """The split that owns this body (species, colours and pattern, whatever the hat): 80 / 10 / 10 %."""
        return body_split(self.species, self.color, self.accent, self.pattern)

    def attributes(self) -> dict[str, str]:
        """What a viewer should recognise, for scoring."""
        return {
            "species": self.species,
            "color": self.color,
            "accent": self.accent,
            "pattern": self.pattern,
            "hat": self.hat,
            "hat_color": self.hat_color,
            "horns": "horns" if self.horns else "none",
        }

    def describe(self) -> str:
        """For instance "striped blue and yellow bird with a red hat", without an article.

        Always nine words, so that each word of a caption has its own kind of meaning: a small aligner learns that soon.
        """
        hat = f"{article(self.hat_color)} {self.hat_color} {self.hat}"
        top = hat if self.hat != "none" else "a horned head" if self.horns else "a bare head"
        return f"{self.pattern} {self.color} and {self.accent} {self.species} with {top}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def close(a: str, b: str) -> bool:
    """Whether two colours are too much alike to stand side by side."""
    return a in CLOSE.get(b, ()) or b in CLOSE.get(a, ())


def stable_hash(text: str) -> int:
    """64 bits that are the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@cache
def body_split(species: str, color: str, accent: str, pattern: str) -> str:
    share = stable_hash(f"{species}-{color}-{accent}-{pattern}") % 10
    return "validation" if share == 8 else "test" if share == 9 else "train"


@cache
def bodies(split: str, species: str) -> tuple[tuple[str, str, str], ...]:
    """All (color, accent, pattern) of a species that belong to a split, in a fixed order."""
    found = []
    for color in COLORS:
        for pattern in PATTERNS:
            for accent in COLORS:
                if (accent == color) != (pattern == "plain") or close(color, accent):
                    continue
                if body_split(species, color, accent, pattern) == split:
                    found.append((color, accent, pattern))
    return tuple(found)


def draw_identity(seed: int, split: str = "train", species: str | None = None) -> Identity:
    """The critter of a seed: a pure function of its arguments.

    Raises:
        ValueError: `split` is none of SPLITS.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; accepted: {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    species = species or SPECIES[rng.integers(len(SPECIES))]
    choices = bodies(split, species)
    # Plain bodies are few (one per colour): give every pattern its fair share before choosing colours.
    patterns = sorted({pattern for _, _, pattern in choices})
    wanted = patterns[rng.integers(len(patterns))]
    choices = tuple(choice for choice in choices if choice[2] == wanted)
    color, accent, pattern = choices[rng.integers(len(choices))]
    hat, hat_color, horns = "none", "none", False
    if rng.random() < 0.6:
        hat = HATS[1 + rng.integers(len(HATS) - 1)]
        free = [name for name in COLORS if name != color]
        hat_color = free[rng.integers(len(free))]
    elif species in HORNED:
        horns = bool(rng.random() < 0.4)
    eyes = EYES[rng.integers(len(EYES))]
    proportions = [round(float(value), 3) for value in rng.uniform(-1, 1, size=7)]
    return Identity(seed, species, color, accent, pattern, hat, hat_color, horns, eyes, *proportions)


def count_identities() -> int:
    """How many critters differ in something that can be named."""
    hats = 1 + (len(HATS) - 1) * (len(COLORS) - 1)
    return sum(len(bodies(split, species)) * (hats + (species in HORNED)) for split in SPLITS for species in SPECIES)


def shaded(name: str, shade: float) -> Color:
    """The named colour, moved a little in hue and lightness by `shade` in [-1, 1]."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in COLORS[name]))
    spread = 0.0 if name in ("white", "black") else 0.012
    rgb = colorsys.hls_to_rgb((hue + spread * shade) % 1.0, min(0.97, lightness + 0.025 * shade), saturation)
    return tuple(round(255 * channel) for channel in rgb)


@lru_cache(maxsize=65536)
def mix(a: Color, b: Color, share: float) -> Color:
    """`a` with `share` of it replaced by `b`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
