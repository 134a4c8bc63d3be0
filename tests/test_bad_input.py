"""Bad input of every kind, as a user gives it to the commands: one sentence, no partial output, before work is lost."""

import contextlib
import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from clips import write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import process_environment, random_run, tiny_config, tiny_values

from cinema_jax import generate
from cinema_jax.commands import usage
from cinema_jax.config import parse
from cinema_jax.data import manifest
from cinema_jax.data.images import read_image, read_mask
from cinema_jax.data.video import read_frames
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.sampling import sampler, video

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with every kind of bad file, and a good picture."""
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    picture.save("good.png")
    Image.new("RGB", (1, 3000)).save("strip.png")
    Path("empty.png").touch()
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:1000])
    Path("text.png").write_text("hello")
    Path("folder").mkdir()
    with zipfile.ZipFile("nothing.zip", "w"):
        pass
    header = bytearray(Path("good.png").read_bytes())
    header[16:24] = (200_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    Path("bomb.png").write_bytes(bytes(header))
    return tmp_path


def run_generate(*arguments: str) -> None:
    """`python -m cinema_jax.generate`, in this process."""
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["generate", *arguments])
    generate.main()


GOOD = {"reference": "good.png", "prompt": "the bird jumps up", "output": "out.mp4"}
BAD = {
    "missing reference": ({"reference": "none.png"}, r"none\.png: no such image file"),
    "empty reference": ({"reference": "empty.png"}, r"empty\.png: the image file is empty"),
    "truncated reference": ({"reference": "cut.png"}, r"cut\.png: this \.png image is damaged or cut short"),
    "reference of text": ({"reference": "text.png"}, r"text\.png: not an image that can be read"),
    "zip of nothing": ({"reference": "nothing.zip"}, r"nothing\.zip: not an image that can be read"),
    "reference is a folder": ({"reference": "folder"}, r"folder: this is a folder"),
    "image bomb": ({"reference": "bomb.png"}, r"bomb\.png: the image is too large"),
    "a strip": ({"reference": "strip.png"}, r"strip\.png: the image is 1x3000; one side may be at most 20"),
    "no reference": ({"reference": None}, r"no --reference was given; .*--reference=examples/blue_bird\.png"),
    "too many references": ({"reference": ["good.png"] * 4}, "4 references were given; at most 3 are accepted"),
    "empty prompt": ({"prompt": "  "}, "--prompt is empty"),
    "over-long prompt": ({"prompt": "the bird jumps " * 99}, r"the sequence of the prompt .* max_length is"),
    "reserved word": ({"prompt": "a <image> of a bird"}, "holds '<image>', which is reserved"),
    "NaN guidance": ({"guidance_text": "nan"}, "--guidance_text is nan; it must be a finite number"),
    "infinite guidance": ({"guidance_reference": "inf"}, "--guidance_reference is inf"),
    "zero steps": ({"steps": "0"}, "flag --steps=0"),
    "negative seed": ({"seed": "-1"}, "flag --seed=-1"),
    "seed of more than 32 bits": ({"seed": str(2**32)}, "flag --seed=4294967296"),
    "unknown solver": ({"solver": "heun"}, "flag --solver=heun"),
    "frames": ({"frames": "7"}, "frames is 7; the nearest that the model can hold is 9"),
    "no frames": ({"frames": "0"}, "frames is 0; the nearest that the model can hold is 1"),
    "height": ({"height": "40"}, "height is 40; the nearest that the model can hold is 48|height is 40; .* is 32"),
    "width": ({"width": "-16"}, "width is -16; the nearest that the model can hold is 16"),
    "unknown suffix": ({"output": "out.avi"}, r"out\.avi: cannot write '\.avi'; accepted are"),
    "output below a file": ({"output": "good.png/out.mp4"}, r"good\.png is a file and not a folder"),
    "output is a folder": ({"output": "folder.mp4"}, r"folder\.mp4: this is a folder"),
    "missing checkpoint": ({"checkpoint": "none"}, r"none. does not exist; accepted is a folder"),
    "incomplete checkpoint": (
        {"checkpoint": "incomplete"},
        "incomplete holds nothing that was trained yet: let",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_generate_refuses(name, folder, checkpoint):
    changes, message = BAD[name]
    (folder / "folder.mp4").mkdir()
    (folder / "incomplete").mkdir()
    (folder / "incomplete/config.json").write_text((checkpoint / "config.json").read_text())
    before = sorted(folder.rglob("*"))
    given = {"checkpoint": str(checkpoint), **GOOD, **changes}
    arguments = []
    for flag, value in given.items():
        arguments += [f"--{flag}={one}" for one in (value if isinstance(value, list) else [value]) if one is not None]
    with pytest.raises((InputError, flags.Error), match=message) as caught:
        run_generate(*arguments)
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


def line(**changes) -> str:
    return json.dumps({"video": "a.mp4", "caption": "a bird", **changes})


MANIFESTS = {
    "broken line": (line() + "\n{", r"manifest\.jsonl:2"),
    "no video": ('{"caption": "a bird"}', r'manifest\.jsonl:1: .*"video" is missing'),
    "path that leaves the folder": (line(video="../a.mp4"), r"manifest\.jsonl:1: .*\.\./a\.mp4"),
    "absolute path": (line(video="/etc/passwd"), r"manifest\.jsonl:1: .*/etc/passwd"),
    "symbolic link that leaves it": (line(video="link.mp4"), r"manifest\.jsonl:1: .*link\.mp4"),
    "unknown field": (line(vdeo="a.mp4"), r"manifest\.jsonl:1: .*vdeo"),
    "nothing": ("", "holds no example"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_refused_by_file_and_line(name, tmp_path):
    text, message = MANIFESTS[name]
    data = tmp_path / "data"
    data.mkdir()
    write_clip(data / "a.mp4")
    write_clip(tmp_path / "a.mp4")
    (data / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (data / "manifest.jsonl").write_text(text)
    values = tiny_values()
    values.data.source, values.data.path = "folder", str(data)
    with pytest.raises(InputError, match=message):
        Run.open(parse(values), tmp_path / "run").source("train")


def test_a_checkpoint_of_other_sizes_says_which_field_differs(checkpoint):
    values = tiny_values()
    values.seed, values.dit_model.num_layers = 3, 2
    with pytest.raises(InputError, match=r"config\.dit_model\.num_layers is 1 there and 2 here; config\.seed is 0"):
        Run.open(parse(values), checkpoint)


DEMO = ["train", "--config=" + str(HERE.parent / "configs/demo.py"), "--workdir=r"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--checkpoint=none", "--prompt=a", "--reference=text.png"], "text.png: not an image"),
        ([*DEMO, "--config.seed=a"], "seed"),
        ([*DEMO, "--config.init=nowhere"], "'nowhere' does not exist"),
        ([*DEMO, "--config.weights.vae=nowhere"], "'nowhere' does not exist"),
    ],
    ids=["a file", "a field", "a checkpoint", "a part"],
)
def test_a_command_ends_with_one_sentence_and_status_two(folder, arguments, message):
    """The whole way, in a process of its own."""
    command, *rest = arguments
    line = [sys.executable, "-m", f"cinema_jax.{command}", *rest]
    ended = subprocess.run(line, env=process_environment(), capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert message in ended.stderr


def test_a_run_in_a_bucket_is_refused():
    with pytest.raises(InputError, match=r"--workdir is in a bucket .*gcsfuse"):
        Run.open(tiny_config(), Path("gs://bucket/run"))


def test_flags_may_be_spelled_with_dashes():
    spelled = ["--guidance-text=-2", "--output=my-video.mp4", "--prompt", "a-b", "-v=1", "--"]
    assert [usage.underscored(argument) for argument in spelled] == [
        "--guidance_text=-2", "--output=my-video.mp4", "--prompt", "a-b", "-v=1", "--",
    ]  # fmt: skip


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    content=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF"]),
)
def test_random_bytes_are_refused_as_an_image(tmp_path, content, head):
    (tmp_path / "x.png").write_bytes(head + content)
    for read in (read_image, read_mask):
        with pytest.raises(InputError):
            read(tmp_path / "x.png")


@FUZZ
@given(content=st.binary(max_size=300), head=st.sampled_from([b"", b"\x1a\x45\xdf\xa3", b"RIFF\x00\x00\x00\x00AVI "]))
def test_random_bytes_are_refused_as_a_video(tmp_path, content, head):
    (tmp_path / "x.mp4").write_bytes(head + content)
    with pytest.raises(InputError):
        read_frames(tmp_path / "x.mp4", 5, 8, 32, 32)


@FUZZ
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_random_bytes_are_refused_as_a_manifest(tmp_path, content):
    (tmp_path / "manifest.jsonl").write_bytes(content)
    with pytest.raises(InputError):
        manifest.read_manifest(tmp_path, 3)


@FUZZ
@given(content=st.binary(max_size=200), part=st.sampled_from(["vae", "t5", "mllm", "aligner", "dit"]))
def test_random_bytes_are_refused_as_weights_and_as_their_config(tmp_path, content, part):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        parts.read_config(part, tmp_path)
    run = Run.open(tiny_config(), tmp_path / "run")
    with pytest.raises(InputError):
        parts.read(part, run.part_config(part), tmp_path)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.just(()),
    st.just({}),
)
FIELDS = sorted(
    ".".join(path)
    for path in [
        ("seed",),
        ("stages",),
        ("data", "frames"),
        ("data", "height"),
        ("data", "source"),
        ("data", "augment"),
        ("data", "threads"),
        ("data", "train_videos"),
        ("condition", "text_dropout"),
        ("condition", "conditioner"),
        ("flow", "shift"),
        ("flow", "sample_steps"),
        ("flow", "guidance_text"),
        ("flow", "solver"),
        ("vae_model",),
        ("mllm_model", "mrope_section"),
        ("dit_model", "num_layers"),
        ("finetune", "steps"),
        ("finetune", "trainable"),
        ("finetune", "optimizer", "learning_rate"),
        ("finetune", "optimizer", "name"),
        ("finetune", "ema_decay"),
        ("mesh", "fsdp"),
        ("evaluate_identities",),
    ]
)


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(FIELDS), value=LEAVES)
def test_any_value_of_any_field_is_taken_or_refused_in_a_sentence(field, value):
    values = tiny_values().to_dict()
    section, *rest = field.split(".")
    at = values
    for name in (section, *rest)[:-1]:
        at = at[name]
    at[(section, *rest)[-1]] = value
    # Any other error fails the test.
    with contextlib.suppress(InputError):
        parse(values)


VALUES = st.one_of(
    st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["", "-1", "0", "1e309", "nan", "4"])
)
GENERATE_FLAGS = sorted(flag.name for flag in flags.FLAGS.flags_by_module_dict()["cinema_jax.generate"])


@FUZZ
@given(name=st.sampled_from(GENERATE_FLAGS), value=VALUES)
def test_any_value_of_any_flag_of_generate_is_taken_or_refused_in_a_sentence(checkpoint, folder, name, value):
    given = {"checkpoint": checkpoint, "reference": "good.png", "prompt": "it jumps", "steps": "1", name: value}
    arguments = ["generate", *(f"--{flag}={text}" for flag, text in given.items())]
    # Any other error fails the test.
    with contextlib.suppress(InputError, flags.Error), flagsaver.flagsaver():
        flags.FLAGS(arguments)
        with (
            mock.patch.object(sampler.Sampler, "__call__", nothing_sampled),
            mock.patch.object(video, "write_video"),
        ):
            generate.main()


def nothing_sampled(self, requests, settings, progress):
    """Stands for the sampler: what can be wrong with flags is known before it starts."""
    assert settings.steps >= 1
    assert self.cinema.part(self.params, "vae").latent_shape(settings.frames, settings.height, settings.width)
    return np.zeros((1, 1, 16, 16, 3), np.uint8)
