"""The road of own videos, by the commands of README and docs/tutorial.md; nothing but steps and sizes is changed."""

import json
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import command_lines
import pytest
from clips import write_clip
from tiny import process_environment

from cinema_jax.config import parse
from cinema_jax.data.video import probe

ROOT = Path(__file__).parent.parent
# The meadow is held out.
CLIPS = ("garden", "meadow", "park")
PICTURE = {"videos/rabbit.png": "examples/blue_bird.png"}
SMALL = [
    *("--config.data.frames=5", "--config.data.height=32", "--config.data.width=32", "--config.flow.sample_steps=2"),
    *(f"--config.{stage}.steps=2" for stage in ("pretrain", "align", "finetune")),
    *(f"--config.{stage}.batch_size=4" for stage in ("pretrain", "align", "finetune")),
]


def videos(folder: Path) -> Path:
    """Three clips, each with one subject: a box in a frame of another clip."""
    folder.mkdir()
    lines = []
    for i, name in enumerate(CLIPS):
        write_clip(folder / f"{name}.mp4", frames=20, fps=10)
        reference = {"video": f"{CLIPS[i - 1]}.mp4", "frame": 3, "box": [8, 8, 40, 40], "subject": "dog"}
        line = {"video": f"{name}.mp4", "caption": f"a brown dog with long ears runs over the {name} after a ball"}
        lines.append(json.dumps({**line, "prompt": f"the dog runs over the {name}", "references": [reference]}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def documented(file: str, start: str, **names: object) -> list[str]:
    """The first command of a document that starts so, with the document's names replaced."""
    return all_documented(file, start, **names)[0]


def all_documented(file: str, start: str, **names: object) -> list[list[str]]:
    """All of them."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    found = [line for line in text.splitlines() if line.startswith(f"python -m {start}")]
    for name, value in names.items():
        found = [line.replace(name, str(value)) for line in found]
    return [shlex.split(line)[1:] for line in found]


def changed(command):
    """The last of each flag alone: what a test adds stands in the place of what the document says."""
    last = {word.partition("=")[0]: word for word in command}
    return [word for word in command if word.startswith("--reference") or last[word.partition("=")[0]] == word]


def ran(command: list[str]) -> str:
    """What a command that ended well said."""
    environment = process_environment() | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *changed(command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_readme_s_first_videos_are_generated_as_it_says(tmp_path):
    files = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    commands = all_documented(
        "README.md", "cinema_jax.generate --reference=examples/", **{file.name: file for file in files}
    )
    for command, file in zip(commands, files, strict=True):
        assert "9 frames of 64x64 at 8 frames/s" in ran(command)
        assert probe(file).height == 256


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """The documented command, small."""
    folder = tmp_path_factory.mktemp("road")
    command = documented(
        "README.md", "cinema_jax.train --config=configs/demo.py:folder ", DIR=videos(folder / "videos")
    )
    command[-1] = f"--workdir={folder / 'mine'}"
    return [*command, *SMALL]


@pytest.fixture(scope="module")
def workdir(train):
    """What it leaves."""
    said = ran(train)
    workdir = Path(train[len(train) - len(SMALL) - 1].removeprefix("--workdir="))
    assert f"python -m cinema_jax.generate --checkpoint={workdir} --reference=" in said
    return workdir


# What is wrong with a run, and what is said of it.
WRONG = {
    "a caption that is too long": (
        ["--config.data.path={folder}/long"],
        '/long/manifest.jsonl:4: "caption" takes 241 tokens; config.condition.text_tokens has room for 96',
    ),
    "a text length that the weights do not have": (
        ["--config.stages=('align',)"],
        "weights/demo_pretrain/parts/dit reads 48 text tokens: set config.condition.text_tokens=48",
    ),
    "a batch that its parts do not divide": (
        ["--config.align.batch_size=5", "--config.align.microbatches=4"],
        "config.align.microbatches is 4; it must divide config.align.batch_size, 5",
    ),
}


@pytest.fixture(scope="module")
def refused(train, tmp_path_factory):
    """How each of them ended, in a fork of one process; and the workdir, which is the same for all."""
    folder = tmp_path_factory.mktemp("wrong")
    with (videos(folder / "long") / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"video": "park.mp4", "id": "long", "caption": "kaleidoscope " * 20}) + "\n")
    lines = [
        changed([*train[1:], *(flag.format(folder=folder) for flag in flags), f"--workdir={folder / 'run'}"])
        for flags, _ in WRONG.values()
    ]
    return dict(zip(WRONG, command_lines.run(lines, ROOT), strict=True)), folder / "run"


@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_refused_before_anything_is_encoded(refused, wrong):
    ended, workdir = refused[0][wrong], refused[1]
    assert (ended.status, ended.touched) == (2, [])
    assert WRONG[wrong][1] in ended.err
    assert not workdir.exists()


def test_the_run_is_lengthened(workdir, train):
    said = ran([*train, "--config.finetune.steps=3", "--amend"])
    assert "finetune goes on from step 2 to 3 (2 before)" in said
    assert json.loads((workdir / "stages/finetune.json").read_text())["steps"] == 3


def test_a_video_is_generated(workdir, tmp_path):
    command = documented(
        "docs/tutorial.md", "cinema_jax.generate", **{"runs/mine": workdir, **PICTURE, "rabbit.mp4": tmp_path / "a.mp4"}
    )
    said = ran([*command, "--steps=2"])
    assert "5 frames of 32x32 at 8 frames/s, enlarged x8 and played 7 times" in said
    assert (probe(tmp_path / "a.mp4").height, probe(tmp_path / "a.mp4").frames) == (256, 35)


def test_evaluate_shows_the_clips_that_were_held_out(workdir, tmp_path):
    output = tmp_path / "evaluation"
    command = ["-m", "cinema_jax.evaluate", f"--checkpoint={workdir}", f"--output={output}", "--batch_size=1"]
    said = ran([*command, "--steps=1"])
    assert "1 held-out clips" in said
    found = json.loads((output / "figures.json").read_text())
    assert found["clips"] == ["meadow.mp4@0"]
    assert found["figures"]["real"]["motion"] == 1
    assert found["losses"]["finetune"].keys() >= {"eval_loss"}
    page = (output / "index.html").read_text()
    assert all(f"{kind}/000.mp4" in page and (output / kind / "000.mp4").exists() for kind in ("real", "generated"))


def test_every_component_of_the_export_opens_with_the_class_that_model_index_names(workdir, tmp_path):
    command = documented(
        "docs/tutorial.md", "cinema_jax.convert export", **{"runs/mine": workdir, "exported": tmp_path / "out"}
    )
    ran(command)
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    components = {name: value for name, value in index.items() if not name.startswith("_")}
    assert set(components) >= {"tokenizer", "text_encoder", "transformer", "vae", "scheduler"}
    for name, (library, kind) in components.items():
        getattr(import_module(library), kind).from_pretrained(tmp_path / "out", subfolder=name)
    said = ran(
        [
            *documented(
                "docs/tutorial.md",
                "cinema_jax.generate",
                **{"runs/mine": tmp_path / "out", **PICTURE, "rabbit.mp4": tmp_path / "b.mp4"},
            ),
            "--steps=2",
        ]
    )
    assert "5 frames of 32x32" in said


def test_the_config_to_copy_is_one(tmp_path):
    code = (ROOT / "docs/your_data.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 15
    scope: dict = {}
    exec(code, scope)
    assert parse(scope["get_config"]()).finetune.steps == 2000
