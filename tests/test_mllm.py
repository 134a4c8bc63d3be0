"""The multimodal LLM as something that answers: conversations, sizes that are compiled, JSON; on several devices."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spoken
from tiny import process_environment, random_params

import cinema_jax
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.inputs.replies import value_of
from cinema_jax.models.qwen_vl import decoding
from cinema_jax.models.qwen_vl.chat import DEMO_CHAT, ChatProcessor, ChatTemplate, Clip, Message, ask
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig, Qwen2VLVisionConfig, Qwen25VLVisionConfig
from cinema_jax.models.qwen_vl.processing import DEMO_TEMPLATE, Processor
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from cinema_jax.sampling.mllm import MLLM, bucket

VISION = Qwen2VLVisionConfig(depth=1, embed_dim=16, num_heads=2, patch_size=8)
WORDS = ["who what is this a bird fox and look here it that cannot be used give the answer again nothing else"]


def config_for(tokenizer, **changes) -> Qwen2VLConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "mrope_section": (1, 1, 2), "tie_word_embeddings": False, "image_token_id": 3}
    return Qwen2VLConfig(vision=VISION, vocab_size=len(tokenizer), **sizes | changes)


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A model with random weights and its tokenizer, as transformers writes them."""
    folder, config = tmp_path_factory.mktemp("mllm"), config_for(tokenizer)
    parts.write("mllm", config, random_params("mllm", config), folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mllm(folder):
    return MLLM.from_pretrained(folder)


def test_answers_come_in_the_order_of_the_conversations_and_are_those_of_each_alone(mllm):
    """Two batches, of which the second is filled up."""
    chats = [*spoken.chats(), ask("who ?")]
    together = mllm(chats, max_new_tokens=12, batch_size=2)
    assert [mllm([chat], max_new_tokens=12, batch_size=2)[0] for chat in chats] == together
    assert len({one.text for one in together}) == len(chats)


def test_sizes_that_are_filled_up_alike_are_compiled_once(mllm):
    """Other words, more pictures, fewer new tokens, drawn in the place of most likely."""
    picture = np.zeros((32, 32, 3), np.uint8)
    mllm([ask(picture, "who is this ?")], max_new_tokens=12)
    before = decoding._decode._cache_size()
    more = ask(picture, "and", picture[:, :16].copy(), "what is that ?")
    mllm([more], max_new_tokens=30, temperature=0.8, top_p=0.9, seed=3)
    assert decoding._decode._cache_size() == before
    assert [bucket(n, 64) for n in (1, 64, 65, 97, 129, 193, 1000)] == [64, 64, 96, 128, 192, 256, 1024]


def test_what_is_drawn_follows_from_conversation_and_seed_alone(mllm):
    chats, how = spoken.chats()[:2], {"temperature": 2.0, "max_new_tokens": 12}
    first = mllm(chats, seed=[5, 6], **how)
    assert first == mllm(chats, seed=[5, 6], **how)
    assert mllm(chats[1:], seed=6, **how)[0] == first[1]
    assert mllm(chats[1:], seed=7, **how)[0] != first[1]


def test_eight_devices_give_the_tokens_of_one(folder):
    command = [sys.executable, spoken.__file__, folder]
    done = subprocess.run(command, env=process_environment(devices=8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == spoken.MESHES.keys()
    assert len({text for text, _ in found["one"]["answers"]}) == 3
    assert all(one["answers"] == found["one"]["answers"] for one in found.values())
    assert [one["share"] for one in found.values()] == [1, 1 / 8, 1 / 4]


def test_weights_without_an_output_layer_read_but_do_not_speak(tmp_path, tokenizer, mllm):
    config = dataclasses.replace(mllm.config, output_layer=False)
    params = {path: x for path, x in mllm.params.items() if "lm_head" not in path}
    parts.write("mllm", config, params, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert parts.read_config("mllm", tmp_path) == config
    assert set(parts.read("mllm", config, tmp_path)) == set(params)
    with pytest.raises(InputError, match=r"has no output layer \(lm_head.weight\): it can read prompts, but not speak"):
        MLLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("chats", "options", "message"),
    [
        ([ask("who ?"), ask("a <image> ?")], {}, r"chats\[1\]: the text 'a <image> \?' holds '<image>'"),
        ([()], {}, r"chats\[0\]: a conversation must end with a message of the user"),
        ([ask(np.zeros((4, 4), np.uint8))], {}, r"chats\[0\]: a picture is uint8 \[4, 4\]"),
        ([ask("who ? " * 9000)], {}, "has 18012 tokens; at most 16384 are accepted"),
        ([ask("who ?")], {"temperature": -1.0}, "temperature is -1.0"),
        ([ask("who ?")], {"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ([ask("who ?")], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([ask("who ?")], {"seed": [1, 2]}, "there are 1 conversations, but the list seed is 2 long"),
        ([ask("who ?")], {"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(mllm, chats, options, message):
    with pytest.raises(InputError, match=message):
        mllm(chats, **options)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a caller may ask for."""

    noun: str
    box: tuple[float, float, float, float]
    sure: bool = True


GOOD = '[{"noun": "dog", "box": [1, 2, 3.5, 4]}]'


@pytest.mark.parametrize("text", [GOOD, f"Here:\n```json\n{GOOD}\n```\nDone {{}}.", f"The dogs are {GOOD}, I think."])
def test_json_is_found_between_words(text):
    assert value_of(text, list[Found]) == [Found("dog", (1.0, 2.0, 3.5, 4.0))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("There is no dog.", "the answer holds no JSON"),
        ('[{"noun": "dog"}]', r"the answer\[0\].box is missing"),
        ('[{"noun": "dog", "box": [1, 2, 3]}]', r"the answer\[0\].box is .* it must have 4 values"),
        ('[{"noun": 1, "box": [1, 2, 3, 4]}]', r"the answer\[0\].noun is 1; it must be of type str"),
        ('[{"noun": "dog", "box": [1, 2, 3, 4', "the answer"),
        (f"{GOOD} and {GOOD}", "the answer"),
        ("[" * 5000 + "]" * 5000, "the answer"),
    ],
)
def test_what_is_no_such_value_is_said_in_a_sentence(text, reason):
    with pytest.raises(InputError, match=reason):
        value_of(text, list[Found])


@pytest.fixture(scope="module")
def chain():
    """A network of chosen weights whose next token follows from the last one alone: after "." it says [ 1 , 2 ]."""
    tokenizer = build_word_tokenizer(WORDS)
    size = len(tokenizer) + -len(tokenizer) % 8
    config = config_for(tokenizer, hidden_size=size, num_hidden_layers=1, mrope_section=(size // 8, 0, 0))
    params = {path: np.zeros_like(x) for path, x in random_params("mllm", config).items()}
    for path, x in params.items():
        if path.endswith("scale"):
            params[path] = np.ones_like(x)
    params["mllm/embed_tokens/embedding"][:, : len(tokenizer)] = np.eye(len(tokenizer))
    follows = {".": "[", "[": "1", "1": ",", ",": "2", "2": "]", "]": "<eos>", "?": "nothing", "nothing": "<eos>"}
    for last, following in follows.items():
        last, following = map(tokenizer.convert_tokens_to_ids, (last, following))
        params["mllm/lm_head/kernel"][last, following] = 1
    plain = ChatTemplate("{content} ", "", "", "<image>", "<image>", "")
    return MLLM(config, params, ChatProcessor(tokenizer, config.vision, plain))


def test_what_is_no_json_is_asked_for_again_once_with_the_reason(chain):
    """The first question ends with a question mark, the second request with a full stop."""
    right, wrong = chain.values([ask("give ."), ask("who ?")], list[int])
    assert (right.value, right.problem, len(right.answers)) == ([1, 2], None, 1)
    assert (wrong.value, wrong.problem) == ([1, 2], None)
    assert [one.text for one in wrong.answers] == ["nothing", "[ 1 , 2 ]"]
    asked = chain._again(ask("who ?"), dataclasses.replace(wrong, problem="the answer holds no JSON"))
    assert [message.role for message in asked] == ["user", "assistant", "user"]
    assert "That cannot be used: the answer holds no JSON." in asked[-1].content[0]


def test_two_answers_of_no_use_are_no_value_but_a_problem(chain):
    [found] = chain.values([ask("give .")], list[str])
    assert found.value is None
    assert found.problem == "the answer[0] is 1; it must be of type str"
    assert [one.text for one in found.answers] == ["[ 1 , 2 ]", "[ 1 , 2 ]"]
    [cut] = chain.values([ask("give .")], list[int], max_new_tokens=3)
    assert cut.problem.endswith("(it was cut, as it is too long)")


def test_the_chat_of_the_demo_is_what_it_was_taught(tokenizer):
    pictures = [np.full((32, 48, 3), 90, np.uint8), np.zeros((40, 40, 3), np.uint8)]
    taught = Processor(tokenizer, VISION, DEMO_TEMPLATE, max_length=128, max_patches=192, min_pixels=1024)
    chat = ChatProcessor(tokenizer, VISION, DEMO_CHAT, min_pixels=1024)
    expected, found = taught("who is this ?", pictures), chat(ask(*pictures, "who is this ?")).filled(128, 192)
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name)


def test_a_video_is_read_as_pairs_of_frames_with_their_times(tokenizer):
    """Three frames are two pairs, the last frame repeated; at 4 frames a second Qwen2.5 counts one position a pair."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
    read = ChatProcessor(tokenizer, VISION, DEMO_CHAT, min_pixels=1)(ask(Clip(frames, 4.0), "who"))
    colours = read.patches.reshape(2, -1, 3, 2, 8, 8)
    assert read.patch_segments.tolist() == [1] * 32 + [2] * 32
    first, second, third, fourth = (colours[i, :, :, j] for i in range(2) for j in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(third, fourth)
    is_image = read.tokens == 3
    times = {2.0: [0, 2], 4.0: [0, 1], 1.5: [0, 2], 8.0: [0, 0]}
    for fps, expected in times.items():
        vision = Qwen25VLVisionConfig(hidden_size=16, num_heads=2, patch_size=8, window_size=16)
        read = ChatProcessor(tokenizer, vision, DEMO_CHAT, min_pixels=1)(ask(Clip(frames, fps), "who"))
        begin = read.positions[0, np.argmax(is_image)]
        assert sorted(set((read.positions[0, is_image] - begin).tolist())) == sorted(set(expected))


def test_text_after_a_long_video_goes_on_after_its_last_time(tokenizer):
    """As the paper numbers them: one more than the largest position before, be it of a row, a column or a time."""
    frames = np.zeros((16, 16, 16, 3), np.uint8)
    read = ChatProcessor(tokenizer, VISION, DEMO_CHAT, min_pixels=1)(ask(Clip(frames, 4.0), "who"))
    last = np.flatnonzero(read.tokens == 3)[-1]
    assert read.positions[:, last + 1].tolist() == [read.positions[0, last] + 1] * 3
    assert read.positions[0, last] - read.positions[1, last] == 7


def test_conversations_of_several_messages_are_in_the_words_of_the_template():
    from released_tokenizers import released_tokenizer

    from cinema_jax.models.qwen_vl.tokenizer import load_tokenizer

    qwen = load_tokenizer(released_tokenizer("Qwen"))
    messages = [("user", "who?"), ("assistant", "a dog"), ("user", "sure?")]
    read = ChatProcessor(qwen, Qwen2VLVisionConfig())([Message(role, (text,)) for role, text in messages])
    said = [{"role": role, "content": text} for role, text in messages]
    system = {"role": "system", "content": "You are a helpful assistant."}
    expected = qwen.apply_chat_template([system, *said], tokenize=False, add_generation_prompt=True)
    assert qwen.decode(read.tokens) == expected


def test_the_packaged_model_describes_and_completes_what_it_was_taught():
    """What it can say: who a picture of a critter shows, and a whole caption in the place of a vague prompt."""
    from cinema_jax.data.images import cropped, on_white, read_image

    examples = Path(__file__).parents[1] / "examples"
    found = (read_image(examples / f"{name}.png") for name in ("blue_bird", "red_bird"))
    blue, red = (on_white(*cropped(one.image, one.mask)) for one in found)
    chats = [ask(blue, red, "describe the images"), ask(blue, red, "two friends meet")]
    described, completed = cinema_jax.MLLM.from_pretrained()(chats, max_new_tokens=60)
    assert described.finished
    assert completed.finished
    assert "blue" in described.text.split("image 2")[0]
    assert "red" in described.text.split("image 2")[1]
    assert "bird" in completed.text
    assert "meet" in completed.text
