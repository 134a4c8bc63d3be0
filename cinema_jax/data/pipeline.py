"""From a source's samples to the arrays a stage's step takes. Runs in data workers: numpy only."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from cinema_jax.config import dropout
from cinema_jax.data.augment import augment_reference
from cinema_jax.data.example import Conditions, GroupedSource, LocatedSource, Source
from cinema_jax.data.preprocessor import Arrays, Preprocessor
from cinema_jax.data.worker import bucket_of
from cinema_jax.errors import InputError


@runtime_checkable
class DescribingSource(Source, Protocol):
    """A source that can also teach the MLLM to see: (images, question, answer)."""

    def describe_task(self, index: int, rng: np.random.Generator) -> tuple[Sequence[np.ndarray], str, str]:
        """Several pictures."""
        ...

    def portrait_task(self, index: int, rng: np.random.Generator) -> tuple[Sequence[np.ndarray], str, str]:
        """One picture."""
        ...


@dataclasses.dataclass(frozen=True)
class Examples:
    """Makes single examples. Each method that takes a row and a generator makes those of the stage of its name."""

    source: Source
    preprocessor: Preprocessor
    # The source's examples that are used; an example is known by its row in here.
    indices: Sequence[int]
    # Latents of their videos, for the stages that train on video.
    latents: Sequence | np.ndarray | None = None
    # Held-out evaluation neither drops conditions nor augments.
    augment: bool = True
    # Of no video: what `align` reads now and then in place of an example.
    captions: Sequence[str] = ()

    def __getstate__(self) -> dict:
        """For worker processes: latents in a file are opened there again, not copied."""
        state = vars(self).copy()
        if isinstance(self.latents, np.memmap):
            state["latents"] = Path(self.latents.filename)
        return state

    def __setstate__(self, state: dict) -> None:
        if isinstance(state["latents"], Path):
            state["latents"] = np.load(state["latents"], mmap_mode="r")
        vars(self).update(state)

    def vae(self, row: int, rng: np.random.Generator) -> Arrays:
        """A clip."""
        return {"video": self.source.video(self.indices[row])}

    def vae_image(self, row: int, rng: np.random.Generator) -> Arrays:
        """One frame of a clip, as a clip of one frame."""
        return {"video": self.source.frame(self.indices[row], rng)[None]}

    def mllm(self, row: int, rng: np.random.Generator) -> Arrays:
        """Pictures and a question, continued by the answer."""
        images, prompt, answer = self._describing().describe_task(self.indices[row], rng)
        return self.preprocessor.answering(prompt, images, answer)

    def mllm_image(self, row: int, rng: np.random.Generator) -> Arrays:
        """One picture, the question what it shows, and the answer."""
        images, prompt, answer = self._describing().portrait_task(self.indices[row], rng)
        return self.preprocessor.answering(prompt, images, answer, alone=True)

    def t5(self, row: int, rng: np.random.Generator) -> Arrays:
        """A caption or a prompt."""
        conditions = self.source.conditions(self.indices[row], rng)
        tokens, length = self.preprocessor.text(conditions.prompt if rng.random() < 0.5 else conditions.caption)
        return {"tokens": tokens, "lengths": np.int32(length)}

    def pretrain(self, row: int, rng: np.random.Generator) -> Arrays:
        """A caption, or any text with its references, and the video."""
        config = self.preprocessor.config.pretrain
        drop_text, _ = self._drop("pretrain", rng)
        if config.references and (rng.random() < config.references or not self.augment):
            conditions = self.conditions(row, rng)
            text, references = self._text(conditions, rng), conditions.references
        else:
            text, references = self.source.caption(self.indices[row]), ()
        return self.pretrain_told(row, Conditions("" if drop_text else text, "", references))

    def pretrain_told(self, row: int, conditions: Conditions, shown: bool = True) -> Arrays:
        """An example of `pretrain` whose video goes with these conditions, whatever its own are.

        References are taken as they are: cropped, and perhaps augmented. Those that are not `shown` are dropped as in
        training.
        """
        arrays = self._video(row) | {"caption_tokens": self.preprocessor.text(conditions.caption)[0]}
        if not self.preprocessor.config.pretrain.references:
            return arrays
        return arrays | self.preprocessor.entities(conditions.references if shown else ())

    def align(self, row: int, rng: np.random.Generator) -> Arrays:
        """A prompt, with references or without, and the caption that it stands for; or a caption of no video."""
        share = self.preprocessor.config.align.caption_share
        if self.augment and share and rng.random() < share:
            caption = self.captions[int(rng.integers(len(self.captions)))]
            conditions = Conditions(caption, caption, ())
        else:
            conditions = self.conditions(row, rng)
        drop_text, drop_references = self._drop("align", rng)
        prompt, caption, references = conditions.prompt, conditions.caption, conditions.references
        if drop_text:
            prompt = caption = ""
        if drop_references:
            # Without pictures a vague prompt does not say what the caption does: read the caption itself.
            prompt, references = caption, ()
        tokens, length = self.preprocessor.text(caption)
        arrays = self.preprocessor.laid_out(prompt, references)
        arrays |= {"caption_tokens": tokens, "caption_lengths": np.int32(length)}
        if self.latents is None:
            return arrays
        # Only the held-out evaluation of this stage looks at videos, and at what is lost without a caption.
        return arrays | self._video(row) | {"empty_tokens": self.preprocessor.text("")[0]}

    def finetune(self, row: int, rng: np.random.Generator) -> Arrays:
        """A prompt or a caption, references and the video."""
        conditions = self.conditions(row, rng)
        drop_text, drop_references = self._drop("finetune", rng)
        captions, text = self.preprocessor.config.finetune.captions, conditions.prompt
        # Without captions nothing is drawn: runs of before go on as they were.
        if captions and rng.random() < captions and self.augment:
            text = conditions.caption
        conditions = dataclasses.replace(conditions, prompt="" if drop_text else text)
        return self.finetune_told(row, conditions, shown=not drop_references)

    def finetune_told(self, row: int, conditions: Conditions, shown: bool = True) -> Arrays:
        """An example of `finetune` whose video goes with these conditions, as `pretrain_told` makes them."""
        return self.preprocessor.laid_out(conditions.prompt, conditions.references, shown=shown) | self._video(row)

    def group(self, row: int) -> str:
        """Where an example comes from: those of one group may show the same subjects."""
        source, index = self.source, self.indices[row]
        return source.group(index) if isinstance(source, GroupedSource) else source.id(index)

    def _text(self, conditions: Conditions, rng: np.random.Generator) -> str:
        """The caption, or in place of it the prompt or the plot."""
        config, draw = self.preprocessor.config.pretrain, rng.random()
        if not self.augment or draw >= config.prompts + config.plots:
            return conditions.caption
        if draw < config.prompts:
            return conditions.prompt
        if conditions.plot is None:
            raise InputError(
                f"config.pretrain.plots is {config.plots:g}; only data.source=critters has plots: leave it at 0"
            )
        return conditions.plot

    def _describing(self) -> "DescribingSource":
        if not isinstance(self.source, DescribingSource):
            raise InputError(
                "the mllm stage needs data.source=critters: a folder's captions name no attributes to learn"
            )
        return self.source

    def _drop(self, stage: str, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether to drop the text, and the references: one draw, of exclusive shares."""
        draw = rng.random()
        if not self.augment:
            return False, False
        text, references, both = dropout(self.preprocessor.config, stage)
        if draw < both:
            return True, True
        return draw < both + text, both + text <= draw < both + text + references

    def conditions(self, row: int, rng: np.random.Generator) -> Conditions:
        """What goes with an example, its references cropped, and in training augmented."""
        return self._augmented(self.source.conditions(self.indices[row], rng), rng)

    def _augmented(self, conditions: Conditions, rng: np.random.Generator) -> Conditions:
        references = [self.preprocessor.cropped(reference) for reference in conditions.references]
        if not self.augment:
            return dataclasses.replace(conditions, references=tuple(references))
        data = self.preprocessor.config.data
        for i, reference in enumerate(references):
            if rng.random() < data.keep_background and reference.background:
                reference = dataclasses.replace(reference, mask=None)
            own = data.augment_same_clip if reference.same_clip else None
            references[i] = augment_reference(reference, rng, own or data.augment)
        return dataclasses.replace(conditions, references=tuple(references))

    def _video(self, row: int) -> Arrays:
        """The video's latents, and how much an error counts at each place where that differs."""
        assert self.latents is not None, "this stage trains on cached latents"
        latents, weight = np.asarray(self.latents[row], np.float32), self.preprocessor.config.flow.subject_weight
        if weight == 1 or not self.augment:
            return {"latents": latents}
        if not isinstance(self.source, LocatedSource):
            raise InputError(
                f"config.flow.subject_weight is {weight:g}; only data.source=critters knows where subjects are: "
                "leave it at 1"
            )
        share = covered(self.source.boxes(self.indices[row]), latents.shape[:3])
        return {"latents": latents, "error_weights": (1 + (weight - 1) * share).astype(np.float32)}


def covered(
    boxes: Float32[np.ndarray, "frames subjects 4"], shape: tuple[int, int, int]
) -> Float32[np.ndarray, "F H W"]:
    """How much of each latent's place some box covers, in [0, 1]; in the mean of the frames that a latent stands for.

    Args:
        boxes: left, top, right, bottom in shares of the frame.
        shape: frames, height and width of the latents; the first one stands for one frame.
    """
    count, height, width = shape
    left, top, right, bottom = np.moveaxis(boxes * np.float32([width, height, width, height]), -1, 0)[..., None]
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    tall = np.clip(np.minimum(bottom, rows + 1) - np.maximum(top, rows), 0, 1)
    wide = np.clip(np.minimum(right, columns + 1) - np.maximum(left, columns), 0, 1)
    inside = (tall[..., :, None] * wide[..., None, :]).max(axis=1)
    each = (len(boxes) - 1) // max(1, count - 1)
    groups = [inside[:1], *(inside[1 + i * each :][:each] for i in range(count - 1))]
    return np.stack([group.mean(axis=0) for group in groups])


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The examples of all buckets. Their numbers run through one bucket after the other."""

    buckets: tuple[Examples, ...]

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many examples each bucket has."""
        return tuple(len(examples.indices) for examples in self.buckets)

    def id(self, number: int) -> str:
        """The name of an example."""
        examples, row = self._find(number)
        return examples.source.id(examples.indices[row])

    def make(
        self,
        example: Callable[[Examples, int, np.random.Generator], Arrays],
        number: int,
        global_index: int,
        rng: np.random.Generator,
    ) -> Arrays:
        """An example as `example` makes it of a row, called as a `Loader` does."""
        examples, row = self._find(number)
        return example(examples, row, rng)

    def _find(self, number: int) -> tuple[Examples, int]:
        bucket, row = bucket_of(self.sizes, number)
        return self.buckets[bucket], row
