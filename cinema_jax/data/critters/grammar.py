"""Words for scenes: detailed captions, prompts from precise to vague, and the naming of references."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cinema_jax.data.choices import names_all
from cinema_jax.data.critters.background import PLACES
from cinema_jax.data.critters.identity import COLORS, HATS, PATTERNS, SPECIES, article


@dataclass(frozen=True)
class Sentence:
    """How an action is told. {a} {b} {c} stand for the subjects in their roles, {side} for left or right, {thing} for
    what one hides behind."""

    telling: str
    vague: tuple[str, ...]


SENTENCES: dict[str, Sentence] = {
    # One subject.
    "walk": Sentence("{a} walks to the {side}", ("someone walks to the {side}", "a friend goes for a walk")),
    "run": Sentence("{a} runs to the {side}", ("someone runs to the {side}", "a friend is in a hurry")),
    "jump": Sentence("{a} jumps up", ("someone jumps up", "a friend makes a big jump")),
    "bounce": Sentence("{a} bounces up and down", ("someone bounces up and down", "a friend is happy")),
    "spin": Sentence("{a} spins around", ("someone spins around", "a friend makes a turn")),
    "dance": Sentence("{a} dances", ("someone dances", "a friend dances")),
    "hide": Sentence("{a} hides behind a {thing}", ("someone hides behind a {thing}", "a friend hides")),
    # Two.
    "chase": Sentence("{a} chases {b} to the {side}", ("one chases the other", "two friends play catch")),
    "jump over": Sentence("{a} jumps over {b}", ("one jumps over the other", "two friends play")),
    "hide behind": Sentence("{a} hides behind {b}", ("one hides behind the other", "two friends play hide and seek")),
    "meet": Sentence("{a} and {b} meet", ("two friends meet", "they meet")),
    "walk around": Sentence("{a} walks around {b}", ("one walks around the other", "two friends play")),
    "dance together": Sentence("{a} and {b} dance", ("two friends dance", "they dance")),
    "walk together": Sentence("{a} and {b} walk to the {side}", ("two friends go for a walk", "they take a walk")),
    # Three.
    "chase and watch": Sentence("{a} chases {b} and {c} watches", ("one chases another", "three friends play catch")),
    "jump and watch": Sentence("{a} jumps over {b} and {c} watches", ("one jumps over another", "three friends play")),
    "three meet": Sentence("{a}, {b} and {c} meet", ("three friends meet", "they meet")),
    "three dance": Sentence("{a}, {b} and {c} dance", ("three friends dance", "they dance")),
    "three walk": Sentence("{a}, {b} and {c} walk {side}", ("three friends go for a walk", "they take a walk")),
}
STYLES = ("full", "colour", "noun")
QUESTIONS = ("describe the images", "who is in the images", "name the friends")


@dataclass(frozen=True)
class Story:
    """What a caption needs to know of a scene: the action, the place, and who takes part, in the order of the roles."""

    action: str  # key of SENTENCES
    place: str  # key of PLACES
    descriptions: tuple[str, ...]  # "striped blue and yellow bird with a red hat"
    colors: tuple[str, ...]  # "blue", or "" where it is not known
    nouns: tuple[str, ...]  # "bird"
    side: str = "left"

    def tell(self, names: Sequence[str]) -> str:
        """The action with these names for the subjects."""
        roles = dict(zip("abc", names, strict=False))
        return SENTENCES[self.action].telling.format(**roles, side=self.side, thing=PLACES[self.place].thing)


def named(description: str) -> str:
    """With its article."""
    return f"{article(description)} {description}"


def caption(story: Story, order: Sequence[int] | None = None) -> str:
    """All that can be seen, in plain words: the place, the subjects, and what they do.

    For instance "on the beach a striped blue and yellow bird with a red hat and a plain green and green snail with a
    bare head: the first chases the second to the left".

    Args:
        order: the numbers of the roles in the order of the subjects' pictures, in which they are then described: "the
            first" is who the first picture shows, whatever it does. None: the order of the roles.
    """
    order = order or range(len(story.descriptions))
    subjects = " and ".join(named(story.descriptions[role]) for role in order)
    return f"{PLACES[story.place].words} {subjects}: {told_by_order(story, order)}"


def plot(story: Story, order: Sequence[int]) -> str:
    """The caption without what the subjects look like: "on the beach: the second chases the first to the left"."""
    return f"{PLACES[story.place].words}: {told_by_order(story, order)}"


def told_by_order(story: Story, order: Sequence[int]) -> str:
    """The action, its subjects named by the order of their pictures: "the second chases the first to the left"."""
    ordinals = ("the first", "the second", "the third") if len(order) > 1 else ("it",)
    return story.tell([ordinals[list(order).index(role)] for role in range(len(order))])


def who_does_what(story: Story, order: Sequence[int]) -> str:
    """The action as an answer, whose first word already says who: "second chases the first to the left"."""
    return told_by_order(story, order).removeprefix("the ")


def prompt(story: Story, rng: np.random.Generator) -> str:
    """What a user might write: everything, colours, only nouns, or hardly anything; with or without the place."""
    style = rng.random()
    if style < 0.75:
        text = story.tell(_names(story, "full" if style < 0.2 else "colour" if style < 0.4 else "noun"))
    else:
        choices = SENTENCES[story.action].vague
        text = choices[rng.integers(len(choices))].format(side=story.side, thing=PLACES[story.place].thing)
    return f"{text} {PLACES[story.place].words}" if rng.random() < 0.9 else text


def _names(story: Story, style: str) -> list[str]:
    """The subjects by all that can be seen of them, by colour and noun, or by noun alone; in the order of the roles.

    Args:
        style: one of STYLES.
    """
    if style == "full":
        return [named(description) for description in story.descriptions]
    if style == "noun":
        return [f"the {noun}" for noun in story.nouns]
    return [f"the {color} {noun}".replace("  ", " ") for color, noun in zip(story.colors, story.nouns, strict=True)]


def numbered(story: Story, order: Sequence[int], style: str, told: Collection[int]) -> str:
    """What happens, some nouns followed by the numbers of their pictures: "the bird 2 chases the snail to the left".

    Args:
        order: the numbers of the roles in the order of the subjects' pictures.
        style: of the names, one of STYLES.
        told: the roles that get a number.
    """
    names = _names(story, style)
    for role in told:
        noun = story.nouns[role]
        names[role] = names[role].replace(noun, f"{noun} {list(order).index(role) + 1}")
    return story.tell(names)


def tells_who(prompt: str, story: Story) -> bool:
    """Whether a prompt names its subjects, and does not only speak of friends."""
    return names_all(prompt, story.nouns)


def naming(descriptions: Sequence[str]) -> str:
    """What the references show, in their order: "image 1: a striped ... bird. image 2: ..."."""
    return " ".join(f"image {index}: {named(text)}." for index, text in enumerate(descriptions, 1))


def words(text: str) -> list[str]:
    """The words of a text, without punctuation."""
    return re.findall(r"[a-z0-9]+", text)


def vocabulary() -> list[str]:
    """Every word that captions, prompts and namings of critters can contain, sorted."""
    texts = [*COLORS, *SPECIES, *PATTERNS, *HATS[1:], *QUESTIONS, *(str(number) for number in range(1, 4))]
    texts += ["a", "an", "the", "and", "with", "bare", "horned", "head", "image", "left", "right"]
    texts += ["it", "first", "second", "third"]
    for place in PLACES.values():
        texts += [place.words, place.thing]
    for sentence in SENTENCES.values():
        texts += [re.sub(r"\{\w+\}", " ", text) for text in (sentence.telling, *sentence.vague)]
    return sorted({word for text in texts for word in words(text)})
