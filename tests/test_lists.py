"""`generate --requests`: every video once, whatever ends the command, and every wrong line by its name."""

import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from tiny import random_run, run_together

from cinema_jax import generate
from cinema_jax.errors import InputError
from cinema_jax.sampling import lists, many
from cinema_jax.sampling.pipeline import Pipeline
from cinema_jax.sampling.video import Video

ROOT = Path(__file__).parents[1]
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and a list whose lines have two sizes."""
    folder = tmp_path_factory.mktemp("lists")
    random_run(folder / "run")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / name)
    write(folder, {"references": ["a.png"]}, {"references": ["b.png"], "seed": 2, "frames": 1}, {"output": "c.gif"})
    return folder


def write(folder, *lines, name="list.jsonl"):
    """A list with these lines, an empty one after each."""
    good = {"prompt": "the bird jumps up", "references": ["a.png", "b.png"]}
    texts = [line if isinstance(line, str) else json.dumps(good | line) for line in lines]
    (folder / name).write_text("".join(f"{text}\n\n" for text in texts))


def run(folder, output, *words, file="list.jsonl"):
    """The command, in this process."""
    # Other tests of this process run the command without a list.
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        given = [f"--requests={folder / file}", f"--output={output}", f"--checkpoint={folder / 'run'}"]
        flags.FLAGS(["generate", *given, f"--steps={STEPS}", *words])
        generate.main()


def contents(output):
    return {file.name: file.read_bytes() for file in output.iterdir()}


@pytest.fixture(scope="module")
def whole(folder):
    """What the command makes without trouble."""
    run(folder, folder / "whole")
    return contents(folder / "whole")


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline.from_pretrained(folder / "run")


@pytest.fixture
def made(pipe, folder, tmp_path):
    """What the command does after it has read its flags, with weights that are loaded; into a folder of the test's."""

    def make(keep_going=False, file="list.jsonl"):
        found = lists.read(folder / file, keep_going)
        written = {"scale": None, "loop": None}
        return many.Many(pipe, found, tmp_path, {"steps": STEPS}, written, keep_going=keep_going)

    return make


def test_each_line_is_the_video_that_a_pipeline_makes_of_it(folder, pipe, whole, tmp_path):
    assert {*whole} == {"0001.mp4", "0001.mp4.json", "0003.mp4", "0003.mp4.json", "c.gif", "c.gif.json"}
    prompt = "the bird jumps up"
    pipe(prompt, [folder / "a.png"], steps=STEPS).save(tmp_path / "0001.mp4")
    pipe(prompt, [folder / "b.png"], seed=2, frames=1, steps=STEPS).save(tmp_path / "0003.mp4")
    pipe(prompt, [folder / "a.png", folder / "b.png"], steps=STEPS).save(tmp_path / "c.gif")
    assert contents(tmp_path) == {name: data for name, data in whole.items() if not name.endswith(".json")}


@pytest.mark.parametrize("between", [True, False], ids=["a note and its video", "two videos"])
def test_a_command_that_was_ended_goes_on_and_makes_nothing_twice(made, whole, tmp_path, monkeypatch, between):
    save, saved = Video.save, []

    def end(self, path, **settings):
        if between and saved:
            raise KeyboardInterrupt
        saved.append(save(self, path, **settings))
        if not between:
            raise KeyboardInterrupt

    monkeypatch.setattr(Video, "save", end)
    with pytest.raises(KeyboardInterrupt):
        made().make(1, print)
    monkeypatch.undo()
    assert {file.name for file in tmp_path.iterdir() if file.suffix != ".json"} == {"0001.mp4"}
    assert len([*tmp_path.glob("*.json")]) == 1 + between
    written = (tmp_path / "0001.mp4").stat().st_mtime_ns
    assert [made().make(1, print), made().make(1, print)] == [2, 0]
    assert contents(tmp_path) == whole
    assert (tmp_path / "0001.mp4").stat().st_mtime_ns == written


def test_nothing_is_read_of_the_weights_where_all_is_made(folder, whole, monkeypatch):
    monkeypatch.setattr(Pipeline, "load", None)
    run(folder, folder / "whole")


def change_weights(folder):
    file = next((folder / "run/parts/dit").glob("*.safetensors"))
    before = file.read_bytes()
    file.write_bytes(before[:-4] + b"\x00\x00\x80\x3f")
    return lambda: file.write_bytes(before)


def change_picture(folder):
    before = (folder / "a.png").read_bytes()
    Image.new("RGB", (48, 48), "red").save(folder / "a.png")
    return lambda: (folder / "a.png").write_bytes(before)


def change_prompt(folder):
    before = (folder / "list.jsonl").read_text()
    (folder / "list.jsonl").write_text(before.replace("jumps", "sleeps", 1))
    return lambda: (folder / "list.jsonl").write_text(before)


def lose_note(folder):
    file = folder / "whole/0001.mp4.json"
    before = file.read_bytes()
    file.unlink()
    return lambda: file.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (change_weights, [], "made with other weights than"),
        (change_picture, [], "made with other references than"),
        (change_prompt, [], "made with other prompt than"),
        (lose_note, [], r"no 0001\.mp4\.json beside it says what it was made of"),
        (lambda folder: lambda: None, ["--guidance_text=9"], "made with other settings than"),
        (lambda folder: lambda: None, ["--scale=1"], "made with other scale than"),
    ],
    ids=["weights", "picture", "prompt", "note", "guidance", "scale"],
)
def test_a_video_that_was_made_of_something_else_is_kept_and_told_of(folder, whole, change, words, sentence):
    mend = change(folder)
    try:
        with pytest.raises(InputError, match=rf"0001\.mp4 is there.*{sentence}"):
            run(folder, folder / "whole", *words, "--keep_going")
    finally:
        mend()
    assert contents(folder / "whole") == whole


WRONG = {
    "no JSON": ('{"prompt": "x"', ":1 cannot be read as JSON"),
    "no object": ("[]", ":1: must be a JSON object"),
    "no prompt": ('{"references": ["a.png"]}', ":1: prompt is missing"),
    "an empty prompt": ({"prompt": " "}, ":1: prompt is empty"),
    "a number as prompt": ({"prompt": 3}, ":1: prompt is 3; it must be of type str"),
    "an unknown field": ({"sede": 3}, ":1: unknown field 'sede'; accepted are prompt, references, seed"),
    "a field twice": ('{"prompt": "x", "prompt": "y"}', ":1: prompt is there twice"),
    "half of a character": ('{"prompt": "\\ud800"}', ":1: prompt holds half a character"),
    "one reference": ({"references": "a.png"}, ":1: references is 'a.png'; it must be a list"),
    "no file": ({"references": ["a.png", "none.png"]}, r":1: references\[1\] is 'none.png': .*no such image file"),
    "a file elsewhere": ({"references": ["../a.png"]}, r":1: references\[0\] is '../a.png': .* leads out of"),
    "a zero byte": ({"references": ["a\0.png"]}, r":1: references\[0\] is 'a.x00.png'"),
    "an address": (
        {"references": ["https://example.org/a.png"]},
        r":1: references\[0\] is 'https://example.org/a.png'",
    ),
    "a seed": ({"seed": -1}, ":1: seed is -1; it must be from 0 to"),
    "an output elsewhere": ({"output": "../a.mp4"}, ":1: output is '../a.mp4'; it must be the name of an .mp4 or .gif"),
    "another format": ({"output": "a.png"}, ":1: output is 'a.png'"),
    "nothing": ("", "holds no request"),
    # What only the checkpoint tells.
    "a size": ({"height": 50}, ":1: height is 50; the nearest that the model can hold is 48"),
    "no picture": ({"references": []}, ":1: there are no references"),
    "too many": ({"references": ["a.png"] * 4}, ":1: 4 references were given; at most 3"),
    "a long prompt": ({"prompt": "bird " * 200}, ":1: the sequence of the prompt"),
    "no image": ({"references": ["list.jsonl"]}, ":1: .*list.jsonl: not an image"),
    "a long name": ({"output": "x" * 240 + ".mp4"}, ":1: .* at most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_told_by_file_line_and_field_before_weights_are_read(name, folder, tmp_path, monkeypatch):
    line, sentence = WRONG[name]
    write(folder, line, name="wrong.jsonl")
    monkeypatch.setattr(Pipeline, "load", None)
    with pytest.raises(InputError, match=rf"wrong\.jsonl\W*{sentence}") as caught:
        run(folder, tmp_path / "out", file="wrong.jsonl")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_example_is_the_list_that_the_document_shows():
    example = ROOT / "examples/requests.jsonl"
    assert f"```json\n{example.read_text()}```" in (ROOT / "docs/generate.md").read_text()
    assert [entry.output for entry in lists.read(example).entries] == ["0001.mp4", "chase.mp4"]


def test_all_wrong_lines_are_told_at_once_and_two_videos_of_one_name(folder):
    write(folder, {"seed": -1}, {"output": "A.mp4"}, {"output": "a.mp4"}, name="wrong.jsonl")
    with pytest.raises(InputError) as caught:
        lists.read(folder / "wrong.jsonl")
    first, second = str(caught.value).splitlines()
    assert "wrong.jsonl:1: seed is -1" in first
    assert "wrong.jsonl:5: output is a.mp4, which is also that of line 3" in second


def test_with_keep_going_the_others_are_made_and_the_end_says_what_is_missing(folder, made, whole, tmp_path):
    lines = {"references": ["a.png"]}, {"seed": -1}, {"height": 50}, {"references": ["gone.png"]}
    write(folder, *lines, name="wrong.jsonl")
    Image.new("RGB", (48, 48)).save(folder / "gone.png")
    left = made(keep_going=True, file="wrong.jsonl")
    (folder / "gone.png").unlink()
    assert left.make(1, print) == 1
    assert contents(tmp_path) == {name: data for name, data in whole.items() if name.startswith("0001")}
    with pytest.raises(InputError, match=r"wrong.jsonl: 3 of 4 lines were left out"):
        left.close()


def test_videos_of_one_size_are_made_together(made):
    first, second, third = made().jobs
    assert first.settings == third.settings != second.settings
    order = [first, third, second, third, first, second]
    assert [*many._batches(order, 3)] == [[first, third, third], [first], [second, second]]


def test_a_batch_that_is_not_full_is_filled_up(made, folder, tmp_path):
    write(folder, *({"seed": seed, "frames": 1} for seed in range(3)), name="few.jsonl")
    assert made(file="few.jsonl").make(2, print) == 3
    assert len({file.read_bytes() for file in tmp_path.glob("*.mp4")}) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prompt=x"], "--prompt is for one video; the lines of --requests say it"),
        (["--seed=0"], "--seed is for one video"),
        (["--steps=0"], "steps"),
        (["--frames=7"], "frames is 7; the nearest"),
        (["--num_processes=2"], "--num_processes without"),
    ],
)
def test_flags_that_do_not_go_with_a_list_are_refused(folder, tmp_path, words, sentence):
    with pytest.raises((InputError, flags.Error), match=sentence):
        run(folder, tmp_path / "out", *words)


def test_two_processes_share_what_is_missing(folder, whole, tmp_path):
    """After one that was ended with one video: each makes one of the other two, as one process alone does."""
    for name in ("0001.mp4", "0001.mp4.json"):
        (tmp_path / name).write_bytes(whole[name])
    written = (tmp_path / "0001.mp4").stat().st_mtime_ns
    words = [f"--requests={folder / 'list.jsonl'}", f"--output={tmp_path}", f"--checkpoint={folder / 'run'}"]
    told = run_together(["-m", "cinema_jax.generate", *words, f"--steps={STEPS}"])
    assert [status for status, *_ in told] == [0, 0], told
    assert "3 videos, 2 of them made now" in told[0][1]
    assert all("| 1/1 [" in err for *_, err in told)
    assert (tmp_path / "0001.mp4").stat().st_mtime_ns == written
    assert contents(tmp_path) == whole


def test_two_processes_make_one_video_together(folder, tmp_path):
    """Each has half of its tokens; the first one writes it."""
    words = [f"--checkpoint={folder / 'run'}", f"--steps={STEPS}", "--prompt=the bird jumps up"]
    words += [f"--reference={folder / name}" for name in ("a.png", "b.png")]
    told = run_together(["-m", "cinema_jax.generate", *words, f"--output={tmp_path / 'two'}/video.png"])
    assert [status for status, *_ in told] == [0, 0], told
    assert [out.count("frames of") for _, out, _ in told] == [1, 0]
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["generate", *words, f"--output={tmp_path / 'one'}/video.png"])
        generate.main()
    one, two = (
        [np.asarray(Image.open(file), np.int16) for file in sorted((tmp_path / name).iterdir())]
        for name in ("one", "two")
    )
    assert len(one) == len(two) > 1
    # Rounding in the networks may move a colour to the next one.
    assert max(np.abs(mine - theirs).max() for mine, theirs in zip(one, two, strict=True)) <= 1
