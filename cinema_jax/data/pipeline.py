"""From a source's samples to the arrays a stage's step takes. Runs in data workers: numpy only."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from transformers import PreTrainedTokenizerBase

from cinema_jax.config import Config, dropout
from cinema_jax.data.augment import augment_reference
from cinema_jax.data.example import Conditions, GroupedSource, LocatedSource, Reference, Source
from cinema_jax.data.images import cropped, fitted, letterbox, on_white
from cinema_jax.data.texts import clean
from cinema_jax.data.worker import bucket_of
from cinema_jax.errors import InputError
from cinema_jax.inputs.texts import check_whole, unknown_words
from cinema_jax.models.qwen_vl.config import VisionConfig
from cinema_jax.models.qwen_vl.processing import Processor

Arrays = dict[str, np.ndarray]


@runtime_checkable
class DescribingSource(Source, Protocol):
    """A source that can also teach the MLLM to see: (images, question, answer)."""

    def describe_task(self, index: int, rng: np.random.Generator) -> tuple[Sequence[np.ndarray], str, str]:
        """Several pictures."""
        ...

    def portrait_task(self, index: int, rng: np.random.Generator) -> tuple[Sequence[np.ndarray], str, str]:
        """One picture."""
        ...


def mllm_room(config: Config, vision: VisionConfig) -> tuple[int, int]:
    """Tokens and patches of the MLLM's input: in a bucket of few references there is no room for others.

    A picture is as large as beside the most references that any bucket has, and as much room is left for the text.
    """
    data, condition = config.data, config.condition
    if not data.buckets:
        return condition.mllm_tokens, condition.mllm_patches
    one = condition.mllm_max_pixels // vision.pixel_unit**2 * vision.merge_unit
    most = min(condition.mllm_patches, max(references for *_, references in data.buckets) * one)
    patches = min(condition.mllm_patches, data.max_references * one)
    return condition.mllm_tokens - max(0, most - patches) // vision.merge_unit, patches


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Turns texts and pictures into what the networks read. The same object serves training and sampling."""

    config: Config
    # For the MLLM; None where T5 alone reads the prompt.
    processor: Processor | None
    # None where only the MLLM's lengths are asked for.
    t5_tokenizer: PreTrainedTokenizerBase | None
    # Whether texts that are too long are cut; else `InputError`.
    truncate: bool = False

    def whole(self) -> "Preprocessor":
        """The same, which cuts no text: whoever asks for a video is told that the prompt is too long."""
        processor = None if self.processor is None else dataclasses.replace(self.processor, truncate=False)
        return dataclasses.replace(self, processor=processor, truncate=False)

    def text(self, text: str) -> tuple[Int32[np.ndarray, "T"], int]:
        """T5 token ids of `text`, padded to the text block, and how many of them are real."""
        length = self.config.condition.text_tokens
        check_whole(text, "the text")
        tokens = list(self.t5_tokenizer(self._cleaned(text))["input_ids"])
        if not tokens or tokens[-1] != self.t5_tokenizer.eos_token_id:
            tokens.append(self.t5_tokenizer.eos_token_id)
        if self.truncate:
            # Its end is marked all the same, as transformers does.
            tokens = [*tokens[:-1][: length - 1], tokens[-1]]
        if len(tokens) > length:
            raise InputError(f"the text {text[:60]!r}... has {len(tokens)} tokens; at most {length} are accepted")
        padding = [self.t5_tokenizer.pad_token_id] * (length - len(tokens))
        return np.asarray(tokens + padding, np.int32), len(tokens)

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens `text` makes of each, if it has room."""
        end = self.t5_tokenizer.eos_token_id
        cleaned = list(map(self._cleaned, texts))
        return [len(ids) + (ids[-1:] != [end]) for ids in self.t5_tokenizer(cleaned)["input_ids"]]

    def _cleaned(self, text: str) -> str:
        return clean(text) if self.config.condition.clean_text else text

    def answering(self, prompt: str, images: Sequence[np.ndarray], answer: str, alone: bool = False) -> Arrays:
        """What the MLLM reads, continued by an answer that it should learn; with `alone`, room for one image only.

        Numbers of images that the prompt gives ("the bird 2 chases the snail") are to be learned too.
        """
        assert self.processor is not None, "there is no MLLM to answer"
        condition, patches = self.config.condition, self.processor.max_patches
        length = condition.mllm_tokens + condition.answer_tokens
        if alone:
            patches //= self.config.data.max_references
            length //= self.config.data.max_references
        processor = dataclasses.replace(self.processor, max_length=length, max_patches=patches, truncate=False)
        arrays = processor(prompt, images, answer)
        numbers = self.processor.tokenizer.convert_tokens_to_ids([str(number + 1) for number in range(len(images))])
        # Before it stand the numbers that the template gives.
        last = np.flatnonzero(arrays["tokens"] == self.processor.image_token_id).max(initial=-1)
        arrays["loss_mask"] |= np.isin(arrays["tokens"], numbers) & (np.arange(len(arrays["tokens"])) > last)
        return arrays

    def conditions(self, prompt: str, references: Sequence[Reference], shown: bool = True) -> Arrays:
        """One sample's prompt and references, as they were read, for MLLM, VAE and (ablation) T5."""
        return self.laid_out(prompt, [self.cropped(reference) for reference in references], shown)

    def at(self, height: int, width: int) -> "Preprocessor":
        """The same for videos of another size."""
        data = dataclasses.replace(self.config.data, height=height, width=width)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def check(self, prompt: str, references: Sequence[Reference]) -> None:
        """Raises as `conditions` would, without any pixels: a text that is too long, or too many references."""
        self._check_count(references)
        if self.processor is not None:
            self.processor.check(prompt, [self.cropped(reference).image.shape[:2] for reference in references])
        if self.config.condition.conditioner == "t5":
            self.text(prompt)

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that its reader's tokenizer does not know."""
        reads = self.config.condition.conditioner == "mllm" and self.processor is not None
        return unknown_words(self.processor.tokenizer, prompt) if reads else self.unknown_to_t5(prompt)

    def unknown_to_t5(self, text: str) -> list[str]:
        """The words of a text that T5's tokenizer does not know."""
        return unknown_words(self.t5_tokenizer, self._cleaned(text))

    def cropped(self, reference: Reference) -> Reference:
        """What all readers are shown of a picture; before augmentation, so that training and sampling agree."""
        if not self.config.data.crop_references:
            return reference
        image, mask = cropped(reference.image, reference.mask)
        return dataclasses.replace(reference, image=image, mask=mask)

    def seen(self, references: Sequence[Reference]) -> UInt8[np.ndarray, "K height width 3"]:
        """References, as they were read, as the video's encoder sees them."""
        arrays = self.entities([self.cropped(reference) for reference in references])
        return arrays["references"][: len(references)]

    def laid_out(self, prompt: str, references: Sequence[Reference], shown: bool = True) -> Arrays:
        """The same of references that are cropped, and perhaps augmented.

        No text is the empty prompt. References that are not `shown` are none in the MLLM's input, and beside the video
        none or zeros, as the config says. Training's dropped conditions and sampling's null branches both come from
        here, so they are the same arrays.
        """
        arrays = self.entities(references, shown)
        if self.processor is not None:
            arrays |= self.processor(prompt, [on_white(r.image, r.mask) for r in references if shown])
        if self.config.condition.conditioner == "t5":
            arrays["prompt_tokens"] = self.text(prompt)[0]
        return arrays

    def entities(self, references: Sequence[Reference], shown: bool = True) -> Arrays:
        """One sample's references for the VAE; they are cropped already."""
        data, zeros = self.config.data, self.config.condition.empty_references == "zeros"
        references = references if shown or zeros else ()
        self._check_count(references)
        size = data.reference_size
        boxes = np.full((data.max_references, *size, 3), 255, np.uint8)
        for i, reference in enumerate(references):
            if data.references_like_video:
                boxes[i] = fitted(reference.image, reference.mask, *size, enlarged=np.inf)
            else:
                boxes[i] = (fitted if data.crop_references else letterbox)(reference.image, reference.mask, *size)
        arrays = {"references": boxes, "entity_lengths": np.int32(len(references))}
        return arrays | {"entities_shown": np.bool_(shown)} if zeros else arrays

    def _check_count(self, references: Sequence[Reference]) -> None:
        most = self.config.data.max_references
        if len(references) > most:
            raise InputError(f"{len(references)} references were given; at most {most} are accepted")


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
