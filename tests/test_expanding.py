"""`--expand-prompt`: the multimodal LLM writes the prompt, from the command, in lists and from Python."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from tiny import random_params, random_run, tiny_values

import cinema_jax
from cinema_jax import generate
from cinema_jax.config import parse
from cinema_jax.data.images import on_white
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.models.qwen_vl.chat import ask
from cinema_jax.sampling import many

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of random weights, which answer any words, and two pictures."""
    folder = tmp_path_factory.mktemp("expanding")
    values = tiny_values()
    values.flow.guidance_text = values.flow.guidance_reference = 1.0
    values.condition.mllm_tokens = 64
    random_run(folder / "run", parse(values))
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / name)
    (folder / "other.txt").write_text("say more of : {prompt}\n")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return cinema_jax.Pipeline.from_pretrained(folder / "run")


@pytest.fixture(scope="module")
def video(pipe, folder):
    return pipe("it sleeps", [folder / "a.png"], seed=1, steps=STEPS, progress=False, expand_prompt=True)


def command(folder, *words):
    """`generate` in this process."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["generate", f"--checkpoint={folder / 'run'}", f"--steps={STEPS}", *words])
        generate.main()


def test_the_video_is_that_of_the_prompt_which_the_multimodal_llm_writes(pipe, video, folder):
    [request] = pipe.requests(["it sleeps"], [[folder / "a.png"]])
    [reference] = request.references
    seen = pipe.preprocessor.cropped(reference)
    [answer] = pipe.mllm([ask(on_white(seen.image, seen.mask), "it sleeps")], max_new_tokens=48)
    # There is room for fewer tokens.
    assert answer.text.startswith(video.prompt)
    assert len(video.prompt.split()) > 5
    assert video.asked == "it sleeps"
    same = pipe(video.prompt, [folder / "a.png"], seed=1, steps=STEPS, progress=False)
    np.testing.assert_array_equal(same.frames, video.frames)
    assert same.asked is None


def test_the_multimodal_llm_shares_the_weights_of_the_sampler(pipe):
    shared = {path for path, x in pipe.mllm.params.items() if x is pipe.params.get(path)}
    assert set(pipe.mllm.params) - shared == {"mllm/lm_head/kernel"}
    assert "mllm/lm_head/kernel" not in pipe.params


def test_the_command_prints_the_prompt_and_keeps_it_beside_the_video(folder, video, tmp_path, capsys):
    given = ["--prompt=it sleeps", f"--reference={folder / 'a.png'}", "--seed=1", f"--output={tmp_path / 'x.gif'}"]
    command(folder, *given, "--expand_prompt")
    assert f"expanded prompt: {video.prompt}\n" in capsys.readouterr().out
    note = json.loads((tmp_path / "x.gif.json").read_text())
    assert (note["prompt"], note["expanded_prompt"], note["seed"]) == ("it sleeps", video.prompt, 1)
    assert note["settings"]["steps"] == STEPS
    command(folder, *given, "--expand_prompt", f"--expand_instruction={folder / 'other.txt'}")
    assert json.loads((tmp_path / "x.gif.json").read_text())["expanded_prompt"] != video.prompt


def test_a_list_expands_the_lines_that_want_it_once(folder, video, tmp_path, capsys):
    line = {"prompt": "it sleeps", "references": ["a.png"], "seed": 1}
    lines = [line | {"output": "asked.gif", "expand_prompt": True}, line | {"output": "plain.gif"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = [f"--requests={folder / 'list.jsonl'}", f"--output={tmp_path}"]
    command(folder, *given)
    notes = {name: json.loads((tmp_path / f"{name}.gif.json").read_text()) for name in ("asked", "plain")}
    assert (notes["asked"]["prompt"], notes["asked"]["expanded_prompt"]) == ("it sleeps", video.prompt)
    assert not {"expanded_prompt", "expand_instruction"} & notes["plain"].keys()
    assert (tmp_path / "asked.gif").read_bytes() != (tmp_path / "plain.gif").read_bytes()
    capsys.readouterr()
    command(folder, *given)
    assert "2 videos, 0 of them made now" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"asked.gif is there, but was made with other expand_instruction than"):
        command(folder, *given, f"--expand_instruction={folder / 'other.txt'}")
    with pytest.raises(InputError, match=r"plain.gif is there, but was made with other expand_instruction than"):
        command(folder, *given, "--expand_prompt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--expand_prompt", "--expand_instruction=no.txt"], "no.txt"),
        (["--expand_prompt", "--expand_instruction={folder}/a.png"], "not UTF-8 text"),
        (["--expand_prompt", "--expand_instruction={folder}/run/config.json"], r"config.json holds no \{prompt\}"),
        (["--expand_instruction={folder}/other.txt"], "--expand_instruction goes with --expand_prompt"),
    ],
)
def test_an_instruction_of_no_use_is_refused_before_weights_are_read(folder, words, message, monkeypatch):
    monkeypatch.setattr(many.Pipeline, "load", lambda *_, **__: pytest.fail("weights were read"))
    given = ["--prompt=it sleeps", f"--reference={folder / 'a.png'}"]
    with pytest.raises(InputError, match=message):
        command(folder, *given, *(word.format(folder=folder) for word in words))


def test_a_multimodal_llm_without_an_output_layer_reads_prompts_but_writes_none(folder, tmp_path):
    """What it makes of a prompt to read is the same."""
    workdir = random_run(tmp_path / "run")
    part = workdir / "parts" / "mllm"
    config = parts.read_config("mllm", part)
    params = {path: x for path, x in random_params("mllm", config).items() if "lm_head" not in path}
    parts.write("mllm", parts.kind_of("mllm", config).of_tensors(config, params), params, part)
    pipe = cinema_jax.Pipeline.open(workdir)
    assert pipe.checked(pipe.requests("it sleeps", [folder / "a.png"])).steps > 0
    with pytest.raises(InputError, match=r"mllm has no output layer .* can read prompts, but not speak"):
        pipe.instruction()
    assert not [path for path in pipe.params if "lm_head" in path]
