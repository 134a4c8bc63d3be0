"""The multimodal LLM for itself: what it answers to messages with pictures and videos."""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cinema_jax.devices import sharding
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import Standing, stands_for
from cinema_jax.inputs.replies import value_of
from cinema_jax.models.qwen_vl.chat import Chat, ChatProcessor, Message, Read, template_of
from cinema_jax.models.qwen_vl.config import MLLMInputs, Qwen2VLConfig
from cinema_jax.models.qwen_vl.decoding import decode
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.models.qwen_vl.tokenizer import load_tokenizer
from cinema_jax.sampling.programs import Layout, of_parts
from cinema_jax.sampling.room import sampler_mesh
from cinema_jax.weights import rules
from cinema_jax.weights.quantised import SCALE, kind_of

# The least that prompts, pictures (in merged blocks) and answers are filled up to.
_LEAST_TOKENS, _LEAST_BLOCKS, _LEAST_NEW = 64, 16, 32
_AGAIN = "That cannot be used: {reason}. Give the answer again, as JSON and nothing else."


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: without special tokens, and without white space around it.
        finished: whether it came to its end; else it was cut at the most tokens that were allowed.
    """

    text: str
    finished: bool


@dataclasses.dataclass(frozen=True)
class Value:
    """What the model said, as a value.

    Attributes:
        value: of the type that was asked for; None: neither answer was of it.
        problem: what is wrong with the last answer, in one sentence; None: nothing.
        answers: those that were given: one, or two where the first was of no use.
    """

    value: Any | None
    problem: str | None
    answers: tuple[Answer, ...]


class MLLM:
    """A Qwen2-VL or Qwen2.5-VL that answers.

        mllm = cinema_jax.MLLM.from_pretrained("Qwen2.5-VL-7B-Instruct")
        [answer] = mllm([ask(picture, "What is this?")], max_new_tokens=64)

    Conversations of any lengths are answered together. They are filled up to few sizes, 64, 96, 128, 192, ... tokens
    (and so are merged blocks of patches, from 16 on, and the most new tokens, from 32 on; rows to powers of two), and
    one program is compiled for each combination of these that occurs. What is drawn for a conversation depends on it
    and its seed alone, not on what is answered with it.

    Args:
        config: of the network.
        params: its weights, `{"mllm/...": array}`, in the type that it computes in, on the mesh or in host memory.
        processor: what turns conversations into arrays.
        mesh: what it runs on; None: one device.

    Raises:
        InputError: the network has no output layer.
    """

    def __init__(
        self, config: Qwen2VLConfig, params: Mapping[str, Any], processor: ChatProcessor, mesh: Mesh | None = None
    ):
        check_speaks(config, "this multimodal LLM")
        self.config, self.params, self.processor = config, dict(params), processor
        codes = next((kind_of(x.dtype) for path, x in params.items() if path + SCALE in params), None)
        self._graph, _ = parts.structure("mllm", config, codes)
        self._layout = Layout(mesh)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "packaged",
        *,
        mesh: Mesh | None = None,
        precision: Literal["float32", "bfloat16"] | None = None,
        **sizes: int,
    ) -> "MLLM":
        """One by its folder, as transformers writes it, or that of a checkpoint.

        Args:
            name: a folder with config.json, weights and tokenizer, or such a repository of the Hugging Face hub,
                `hf://owner/name`; or a checkpoint, as for `Pipeline`. Without it, that of the packaged demo, which
                knows critters alone.
            mesh: what it runs on, of `cinema_jax.sampling.room.sampler_mesh`; by default all devices, over which the
                weights are split.
            precision: what it computes in. By default as a checkpoint's config says; of a folder bfloat16, and on a CPU
                float32.
            sizes: fields of `ChatProcessor`: max_tokens, max_pixels, min_pixels, max_clip_pixels.

        Raises:
            InputError: there is none, or it cannot speak.
        """
        mesh = sampler_mesh() if mesh is None else mesh
        folder = parts.checkpoint_folder(os.fspath(name))
        if not _is_part(folder):
            return cls.of_run(Run.load(folder), mesh=mesh, precision=precision, **sizes)
        config = parts.read_config("mllm", folder)
        check_speaks(config, str(folder))
        tokenizer = load_tokenizer(folder)
        processor = ChatProcessor(tokenizer, config.vision, template_of(tokenizer), **sizes)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        dtype = jnp.dtype(precision or ("float32" if on_cpu else "bfloat16"))
        return cls(config, _placed(parts.read("mllm", config, folder), dtype, mesh), processor, mesh)

    @classmethod
    def of_run(
        cls,
        run: Run,
        *,
        mesh: Mesh,
        there: Mapping[str, Any] | None = None,
        standing: Standing | None = None,
        precision: Literal["float32", "bfloat16"] | None = None,
        **sizes: int,
    ) -> "MLLM":
        """That of a checkpoint which is loaded; pictures are read as large as it was taught to.

        Args:
            there: weights that lie on the mesh already, of any parts; only what else is needed is read.
            standing: the weights, where somebody has found them already.

        Raises:
            InputError: it has none, or it cannot speak.
        """
        config = speaker(run)
        condition, dtype = run.config.condition, jnp.dtype(precision or run.config.precision)
        there = of_parts(there or {}, ("mllm",))
        arrays = (standing or stands_for(run)).params("mllm")
        missing = {path: x for path, x in arrays.items() if path not in there}
        own = {"max_pixels": condition.mllm_max_pixels, "min_pixels": condition.mllm_min_pixels} | sizes
        tokenizer = run.tokenizer()
        processor = ChatProcessor(tokenizer, config.vision, template_of(tokenizer), **own)
        return cls(config, there | _placed(missing, dtype, mesh), processor, mesh)

    def check(self, chat: Chat) -> None:
        """Raises `InputError` where a conversation cannot be read."""
        self.processor(chat)

    def __call__(
        self,
        chats: Iterable[Chat],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
    ) -> list[Answer]:
        """The answers to conversations, in their order.

        Args:
            chats: each ends with a message of the user; `chat.ask` makes one of a single message.
            max_new_tokens: of an answer.
            temperature: 0: the most likely tokens; else they are drawn, and the more evenly, the larger it is.
            top_p: drawn is among the fewest tokens whose probabilities add up to this.
            seed: of what is drawn; one for all, or one for each.
            batch_size: conversations that are answered at once.

        Raises:
            InputError: a conversation cannot be read, by its number, or an option is out of range.
        """
        reads = []
        for number, chat in enumerate(chats):
            try:
                reads.append(self.processor(chat))
            except InputError as error:
                raise InputError(f"chats[{number}]: {error}") from None
        seeds = _seeds(seed, len(reads))
        _check_options(max_new_tokens, temperature, top_p, batch_size)
        answers: dict[int, Answer] = {}
        how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        for numbers in self._batches(reads, batch_size):
            own = [reads[i] for i in numbers], [seeds[i] for i in numbers]
            answers |= zip(numbers, self._answer(*own, batch_size, **how), strict=True)
        return [answers[i] for i in range(len(reads))]

    def values(self, chats: Iterable[Chat], kind: Any, **options: Any) -> list[Value]:
        """The answers as values of a type; what is not of it is asked for again, once, with the reason.

        Args:
            chats: which ask for JSON of this type.
            kind: a dataclass, whose fields are the keys; or a list or tuple or dict of dataclasses, numbers and texts.
            options: of a call.

        Raises:
            InputError: as a call. An answer that cannot be used is none: it is a `Value` with a `problem`.
        """
        chats = [tuple(chat) for chat in chats]
        first = [_value(answer, kind) for answer in self(chats, **options)]
        wrong = [i for i, one in enumerate(first) if one.problem]
        again = {i: self._again(chats[i], first[i]) for i in wrong}
        asked = [i for i in wrong if self._fits(again[i])]
        if asked and not isinstance(options.get("seed", 0), int):
            options["seed"] = [options["seed"][i] for i in asked]
        for i, answer in zip(asked, self([again[i] for i in asked], **options), strict=True):
            second = _value(answer, kind)
            first[i] = dataclasses.replace(second, answers=first[i].answers + second.answers)
        return first

    def _again(self, chat: tuple[Message, ...], found: Value) -> tuple[Message, ...]:
        said, reason = found.answers[0].text, found.problem or ""
        # As text: what the tokenizer has reserved would be refused.
        for token in self.processor.tokenizer.all_special_tokens:
            said, reason = said.replace(token, " "), reason.replace(token, " ")
        return (*chat, Message("assistant", (said,)), Message("user", (_AGAIN.format(reason=reason),)))

    def _fits(self, chat: Chat) -> bool:
        try:
            self.check(chat)
        except InputError:
            return False
        return True

    def _batches(self, reads: Sequence[Read], size: int) -> Iterator[list[int]]:
        """Numbers of conversations that fill up to like sizes."""
        order = sorted(range(len(reads)), key=lambda i: (*self._filled([reads[i]]), i))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _filled(self, reads: Sequence[Read]) -> tuple[int, int]:
        """The patches and tokens that conversations are filled up to."""
        unit = self.config.vision.merge_unit
        blocks = max(len(read.patches) for read in reads) // unit
        return bucket(blocks, _LEAST_BLOCKS) * unit if blocks else 0, bucket(
            max(len(read.tokens) for read in reads), _LEAST_TOKENS
        )

    def _answer(self, reads: list[Read], seeds: list[int], batch_size: int, **how: Any) -> list[Answer]:
        patches, length = self._filled(reads)
        rows = min(batch_size, 1 << (len(reads) - 1).bit_length())
        examples = [read.filled(length, patches) for read in reads]
        examples += examples[:1] * (rows - len(reads))
        params = sharding.on_devices(self.params)
        with self._layout.in_use():
            inputs, drawn = self._layout.on_rows(
                (MLLMInputs.from_batch(collate(examples)), np.uint32([*seeds, *seeds[:1] * (rows - len(seeds))]))
            )
            model = rules.build(self._graph, {path.removeprefix("mllm/"): x for path, x in params.items()})
            room = bucket(how["max_new_tokens"], _LEAST_NEW)
            found = decode(model, inputs, stop=self.processor.stop, room=room, seeds=drawn, **how)
        said = zip(found.tokens, found.lengths, found.finished, strict=True)
        every = [Answer(self.processor.decode(tokens[:length]), bool(end)) for tokens, length, end in said]
        return every[: len(reads)]


def bucket(count: int, least: int) -> int:
    """The next size from `count` on, of `least` x 1, 1.5, 2, 3, 4, 6, ..."""
    size = least << max(0, math.ceil(math.log2(count / least)))
    return size * 3 // 4 if size > least and count <= size * 3 // 4 else size


def check_speaks(config: Qwen2VLConfig, name: str) -> None:
    """Raises `InputError` where a network has no output layer."""
    if not config.speaks:
        raise InputError(
            f"{name} has no output layer (lm_head.weight): it can read prompts, but not speak; take a complete folder"
        )


def speaker(run: Run) -> Qwen2VLConfig:
    """The config of a checkpoint's multimodal LLM; raises `InputError` where there is none, or it cannot speak."""
    folder = run.folder("mllm")
    if folder is None:
        raise InputError(f"{run.workdir} has no multimodal LLM, so there is nobody who could write a prompt")
    config = run.part_config("mllm")
    check_speaks(config, f"the multimodal LLM of {folder}")
    return config


def _is_part(folder: Path) -> bool:
    """Whether a folder holds a multimodal LLM itself, and not a checkpoint of which it is a part."""
    file = folder / "config.json"
    return file.is_file() and parts.published_name(parts.read_json(file)) in parts.KINDS["mllm"][0].names


def _placed(arrays: Mapping[str, Any], dtype: Any, mesh: Mesh) -> dict[str, jax.Array]:
    """Weights on the mesh by the table, each device's slices read from the files straight to where they lie."""
    return sharding.place({path: x.astype(dtype) for path, x in arrays.items()}, mesh, WEIGHTS)


def _value(answer: Answer, kind: Any) -> Value:
    try:
        return Value(value_of(answer.text, kind), None, (answer,))
    except InputError as error:
        cut = "" if answer.finished else " (it was cut, as it is too long)"
        return Value(None, f"{error}{cut}", (answer,))


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise InputError(f"there are {count} conversations, but the list seed is {len(seeds)} long")
    for one in seeds:
        if not isinstance(one, int) or not 0 <= one < 2**32:
            raise InputError(f"seed is {one!r}; it must be a whole number from 0 to {2**32 - 1}")
    return seeds


def _check_options(max_new_tokens: int, temperature: float, top_p: float, batch_size: int) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"temperature is {temperature}; it must be 0 or more, and finite")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it must be above 0 and at most 1")
