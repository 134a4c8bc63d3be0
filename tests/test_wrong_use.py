"""Wrong command lines of every command: each ends with one sentence and status 2, soon, and asks nobody."""

import json
import shlex
from pathlib import Path

import command_lines
import numpy as np
import pytest
from clips import write_clip
from PIL import Image
from tiny import random_run

ROOT = Path(__file__).parents[1]
# Seconds that a command may take to refuse its line, its libraries aside.
SECONDS = 5
DEMO = f"--config={ROOT}/configs/demo.py"
SMOKE = f"{DEMO}:smoke"
FOLDER = f"{DEMO}:folder_smoke"
BIG = f"--config={ROOT}/configs/cogvideox_2b.py"
LONG = "x" * 250

# Of each command: what follows its name, and a part of what is said.
LINES = {
    "train": {
        "": "--config and --workdir are missing",
        SMOKE: "--workdir is missing",
        "--workdir=r": "--config is missing",
        f"{SMOKE} --workdir=": "--workdir is empty",
        f"{ROOT}/configs/demo.py --workdir=r": "did you mean --config=",
        f"{SMOKE} --wrokdir=r": "--wrokdir is not a flag of this command; did you mean --workdir?",
        f"{SMOKE} --workdir=r --workdir=s": "--workdir is given 2 times; say it once",
        f"{SMOKE} {SMOKE} --workdir=r": "--config is given 2 times",
        f"{SMOKE} --workdir=r --config.seed=1 --config.seed=2": "--config.seed is given 2 times",
        f"{SMOKE} --workdir=r --amend --noamend": "--amend is given 2 times",
        "--config=configs/nope.py --workdir=r": "--config is 'configs/nope.py', which is no file",
        "--config=good.png --workdir=r": "--config is 'good.png', which is not the name of a Python file",
        "--config=data --workdir=r": "--config is 'data', which is not the name of a Python file",
        "--config= --workdir=r": "--config is ''",
        "--config=empty.py --workdir=r": "--config=empty.py: the file has no function get_config()",
        "--config=number.py --workdir=r": "--config names a file that gives no config",
        "--config=broken.py --workdir=r": "broken.py, line 1: SyntaxError",
        "--config=faulty.py --workdir=r": "faulty.py, line 2, in get_config: ZeroDivisionError",
        f"{DEMO}:smok --workdir=r": "configs/demo.py has no variant 'smok'",
        f"{DEMO}: --workdir=good.png/r": "good.png",
        f"{SMOKE} --workdir=good.png": "good.png",
        f"{SMOKE} --workdir=r --config.finetune.step=3": "--config.finetune.step does not exist",
        f"{SMOKE} --workdir=r --config.fintune.steps=3": "--config.fintune.steps does not exist",
        f"{SMOKE} --workdir=r --config.seed=a": "--config.seed=a",
        f"{SMOKE} --workdir=r --config.seed=1.5": "--config.seed=1.5",
        f"{SMOKE} --workdir=r --config.seed=-1": "config.seed is -1",
        f"{SMOKE} --workdir=r --config.seed=99999999999999999999": "config.seed is 99999999999999999999",
        f"{SMOKE} --workdir=r --config.data=3": "config.data",
        f"{SMOKE} --workdir=r --config.stages=finetune": "finetune: the vae has no weights",
        f"{SMOKE} --workdir=r --config.stages=\"('fine',)\"": "config.stages holds 'fine'",
        f"{SMOKE} --workdir=r --config.stages=\"('t5','t5')\"": "config.stages holds 't5' twice",
        f"{SMOKE} --workdir=r --config.data.frames=10": "config.data.frames is 10; it must be 4k+1",
        f"{SMOKE} --workdir=r --config.data.height=50": "config.data.height is 50",
        f"{SMOKE} --workdir=r --config.data.fps=nan": "config.data.fps is nan",
        f"{SMOKE} --workdir=r --config.data.fps=0": "config.data.fps is 0",
        f"{SMOKE} --workdir=r --config.data.source=videos": "config.data.source is 'videos'",
        f"{SMOKE} --workdir=r --config.data.source=folder": "config.data.path is empty",
        f"{SMOKE} --workdir=r --config.finetune.steps=0": "config.finetune.steps is 0",
        f"{SMOKE} --workdir=r --config.finetune.batch_size=-4": "config.finetune.batch_size is -4",
        f"{SMOKE} --workdir=r --config.finetune.microbatches=3": "microbatches",
        f"{SMOKE} --workdir=r --config.finetune.ema_decay=2.0": "config.finetune.ema_decay is 2.0",
        f"{SMOKE} --workdir=r --config.flow.solver=heun": "config.flow.solver is 'heun'",
        f"{SMOKE} --workdir=r --config.flow.solver=ddim": "config.flow.solver is 'ddim'",
        f"{SMOKE} --workdir=r --config.flow.shift=-1.0": "config.flow.shift is -1.0",
        f"{SMOKE} --workdir=r --config.precision=float16": "config.precision is 'float16'",
        f"{SMOKE} --workdir=r --config.condition.text_dropout=1.5": "config.condition.text_dropout is 1.5",
        f"{SMOKE} --workdir=r --config.init=runs/nope": "'runs/nope' does not exist",
        f"{SMOKE} --workdir=r --config.init=owner/name": "hf://owner/name",
        f"{SMOKE} --workdir=r --config.init=good.png": "good.png",
        f"{SMOKE} --workdir=r --config.init=data": "data holds neither config.json",
        f"{SMOKE} --workdir=r --config.init=unfinished": "vae is not finished there",
        f"{DEMO} --workdir=r --config.weights.vae=nowhere": "'nowhere' does not exist",
        f"{DEMO} --workdir=r --config.weights.vae=data": "data",
        f"{DEMO} --workdir=r --config.weights.vae=run/parts/dit": "vae",
        f"{FOLDER} --workdir=r": "config.data.path is empty",
        f"{FOLDER} --workdir=r --config.data.path=nowhere": "nowhere: no such folder",
        f"{FOLDER} --workdir=r --config.data.path=empty": "manifest.jsonl",
        f"{FOLDER} --workdir=r --config.data.path=good.png": "good.png",
        f"{FOLDER} --workdir=r --config.data.path=broken": "manifest.jsonl:2: the line cannot be read as JSON",
        f"{FOLDER} --workdir=r --config.data.path=halves": "manifest.jsonl:2: ",
        f"{FOLDER} --workdir=r --config.data.path=long": "manifest.jsonl:3",
        f"{FOLDER} --workdir=r --config.data.path=missing": "none.mp4",
        f"{SMOKE} --workdir=gs://bucket/run": "--workdir is in a bucket",
        f"{SMOKE} --workdir=r --hang_seconds=-1": "--hang-seconds=-1",
        f"{SMOKE} --workdir=r --hang_seconds=soon": "--hang-seconds=soon",
        f"{SMOKE} --workdir=r --profile_steps=5": "5",
        f"{SMOKE} --workdir=r --profile_steps=9:2": "9:2",
        f"{SMOKE} --workdir=r --profile_steps=a:b": "a:b",
        f"{SMOKE} --workdir=r --amend=perhaps": "--amend=perhaps",
        f"{SMOKE} --workdir=r --process_id=1": "process",
        f"{SMOKE} --workdir=r --num_processes=2 --process_id=5 --coordinator=localhost:1": "process",
        f"{SMOKE} --workdir=r --wandb": "--wandb",
        f"{DEMO} --workdir=run": "run holds a run of another config",
    },
    "generate": {
        "": "--prompt is missing",
        "--prompt=": "--prompt is empty",
        "--prompt='  '": "--prompt is empty",
        "--prompt": "--prompt",
        "--promt=x": "--promt is not a flag of this command; did you mean --prompt?",
        "--prompt=x --prompt=y": "--prompt is given 2 times",
        "--prompt=x extra": "unexpected argument 'extra'",
        "--prompt=x": "no --reference was given",
        "--prompt=x --reference=none.png": "none.png: no such image file",
        "--prompt=x --reference=text.png": "text.png: not an image",
        "--prompt=x --reference=clip.mp4": "clip.mp4: not an image",
        "--prompt=x --reference=data": "data: this is a folder",
        "--prompt=x --reference=": "",
        "--prompt=x --reference=good.png,good.png": "give the flag once for each picture: --reference=good.png",
        "--prompt=x --reference good.png good.png": "say --reference once for each: --reference=good.png",
        "--prompt=x --reference=good.png good.png": "say --reference once for each: --reference=good.png",
        "--checkpoint=run --prompt=x" + 4 * " --reference=good.png": "4 references were given; at most 3",
        "--prompt=x --reference=good.png --checkpoint=runs/nope": "'runs/nope' does not exist",
        "--prompt=x --reference=good.png --checkpoint=owner/name": "say hf://owner/name",
        "--prompt=x --reference=good.png --checkpoint=data": "data holds neither config.json",
        "--prompt=x --reference=good.png --checkpoint=good.png": "good.png",
        "--prompt=x --reference=good.png --checkpoint=": "''",
        "--prompt=x --reference=good.png --checkpoint=begun": "begun holds nothing that was trained yet",
        "--prompt=x --reference=good.png --checkpoint=unfinished": "unfinished holds nothing that was trained yet",
        "--prompt=x --reference=good.png --checkpoint=run/parts/dit": "config",
        "--prompt=x --reference=good.png --init=nowhere --checkpoint=run": "--init=nowhere",
        "--prompt=x --reference=good.png --checkpoint=run --frames=10": "frames is 10; the nearest",
        "--prompt=x --reference=good.png --frames=10": "frames is 10; the nearest",
        "--prompt=x --reference=good.png --checkpoint=run --frames=-1": "frames is -1",
        "--prompt=x --reference=good.png --frames=many": "--frames=many",
        "--prompt=x --reference=good.png --checkpoint=run --height=50": "height is 50",
        "--prompt=x --reference=good.png --checkpoint=run --width=0": "width is 0",
        "--prompt=x --reference=good.png --checkpoint=run --solver=ddim": "solver is ddim",
        "--prompt=x --reference=good.png --solver=heun": "--solver=heun",
        "--prompt=x --reference=good.png --mesh=rows=2": "--mesh is 'rows=2'; accepted are sizes of the axes",
        "--prompt=x --reference=good.png --mesh=context=3": "context 3 x tensor 1 does not fit 1 devices",
        "--prompt=x --reference=good.png --steps=0": "--steps=0",
        "--prompt=x --reference=good.png --steps=1.5": "--steps=1.5",
        "--prompt=x --reference=good.png --seed=-1": "--seed=-1",
        "--prompt=x --reference=good.png --seed=99999999999999999999": "--seed=99999999999999999999",
        "--prompt=x --reference=good.png --seed=one": "--seed=one",
        "--prompt=x --reference=good.png --seed=1 --seed=2": "--seed is given 2 times",
        "--prompt=x --reference=good.png --guidance_text=nan": "--guidance-text is nan",
        "--prompt=x --reference=good.png --guidance-text=inf": "--guidance-text is inf",
        "--prompt=x --reference=good.png --guidance_reference=much": "--guidance-reference=much",
        "--prompt=x --reference=good.png --scale=0": "--scale=0",
        "--prompt=x --reference=good.png --loop=1000": "--loop=1000",
        "--prompt=x --reference=good.png --output=out.avi": "out.avi: cannot write '.avi'",
        "--prompt=x --reference=good.png --output=": "not empty",
        "--prompt=x --reference=good.png --output=data": "data: this folder is not empty",
        "--prompt=x --reference=good.png --output=good.png/x.mp4": "is a file and not a folder",
        "--prompt=x --reference=good.png --output=dangling/x.mp4": "a symbolic link that leads nowhere",
        "--prompt=x --reference=good.png --output=linked": "a symbolic link",
        f"--prompt=x --reference=good.png --output={LONG}.mp4": "at most 245 can be written",
        f"--prompt=x --reference=good.png --output={LONG}{LONG}/x.mp4": "at most 255 can be written",
        "--prompt=x --reference=good.png --output=/dev/null/y.mp4": "is a file and not a folder",
        "--prompt='a <image> b' --reference=good.png --checkpoint=run": "holds '<image>', which is reserved",
        f"--prompt='{'bird ' * 200}' --reference=good.png --checkpoint=run": "the sequence of the prompt",
        f"--prompt=x --negative-prompt='{'bird ' * 200}' --reference=good.png --checkpoint=run": "max_length is",
        "--prompt=x\udce9 --reference=good.png --checkpoint=run": "--prompt holds half of a character",
        "--prompt=x --config=configs/demo.py": "--config is not a flag of this command",
        "--prompt=x --config.seed=1": "--config.seed",
        "--prompt=x --num_processes=2": "process",
        "--prompt=x --reference=good.png --keep-going": "--keep-going goes with --requests",
        "--prompt=x --reference=good.png --batch-size=2": "--batch-size goes with --requests",
        "--requests=": "--requests is empty",
        "--requests=wrong.jsonl": "--requests needs --output, the folder of the videos",
        "--requests=wrong.jsonl --output=o --prompt=x": "--prompt is for one video",
        "--requests=wrong.jsonl --output=o --reference=good.png": "--reference is for one video",
        "--requests=wrong.jsonl --output=good.png": "good.png is a file",
        "--requests=wrong.jsonl --output=good.png/o": "is a file and not a folder",
        "--requests=none.jsonl --output=o": "none.jsonl: no such file",
        "--requests=good.png --output=o": "good.png: not UTF-8 text",
        "--requests=data --output=o": "data: this is a folder",
        "--requests=wrong.jsonl --output=o": "wrong.jsonl:1: unknown field 'picture'",
        "--requests=right.jsonl --output=o --checkpoint=runs/nope": "'runs/nope' does not exist",
        "--requests=right.jsonl --output=o --checkpoint=run --frames=10": "frames is 10; the nearest",
        "--requests=right.jsonl --output=o --checkpoint=run": "right.jsonl:1: height is 50; the nearest",
    },
    "serve": {
        "--port=0": "--port=0",
        "--port=70000": "--port=70000",
        "--port=http": "--port=http",
        "--port=1 --port=2": "--port is given 2 times",
        "--prot=1": "did you mean --port?",
        "--checkpoint=runs/nope": "'runs/nope' does not exist",
        "--checkpoint=owner/name": "say hf://owner/name",
        "--checkpoint=begun": "holds nothing that was trained yet",
        "--checkpoint=good.png": "good.png",
        "--checkpoint=run --solver=ddim": "solver is ddim",
        "--checkpoint=run --guidance-text=nan": "--guidance-text is nan",
        "--max-upload=0": "--max-upload=0",
        "--max_waiting=-1": "--max-waiting=-1",
        "--max_waiting=few": "--max-waiting=few",
        "--steps=0": "--steps=0",
        "--host= --checkpoint=run": "--host is empty",
        "--checkpoint=run --allowed-host=https://example.org/": "--allowed-host is 'https://example.org/'",
        "serve": "unexpected argument 'serve'",
    },
    "evaluate": {
        "--checkpoint=runs/nope": "'runs/nope' does not exist",
        "--checkpoint=owner/name": "say hf://owner/name",
        "--checkpoint=begun": "holds nothing that was trained yet",
        "--checkpoint=data": "data holds neither config.json",
        "--checkpoint=run --suite=birds": "--suite=birds",
        "--checkpoint=run --suite=own": "--suite=own is for a run on a folder of videos",
        "--checkpoint=run --suite=opens2v": "--suite=opens2v needs --samples",
        "--checkpoint=run --suite=opens2v --samples=none.json": "none.json",
        "--checkpoint=run --suite=opens2v --samples=good.png": "good.png",
        "--checkpoint=run --suite=opens2v --samples=list.json": "list.json",
        "--checkpoint=run --suite=opens2v --samples=long.json": "the sequence of the prompt",
        "--checkpoint=run --suite=opens2v --subjects=data": "--subjects=data is for the suite critters only",
        "--checkpoint=run --subjects=nowhere": "nowhere",
        "--checkpoint=run --subjects=empty": "empty",
        "--checkpoint=run --subjects=lengthy": "the sequence of the prompt",
        "--checkpoint=run --subjects=good.png": "good.png",
        "--checkpoint=run --cases=1": "--cases=1",
        "--checkpoint=run --cases=few": "--cases=few",
        "--checkpoint=run --cases=2 --cases=3": "--cases is given 2 times",
        "--checkpoint=run --batch-size=0": "--batch-size=0",
        "--checkpoint=run --steps=-1": "--steps=-1",
        "--checkpoint=run --solver=dpm": "solver is dpm",
        "--checkpoint=run --output=good.png": "good.png",
        "--checkpoint=run --json=data": "--json=data is a folder",
        "--checkpoint=run --json=good.png/x.json": "is a file and not a folder",
        "--checkpoint=run --clip=nowhere": "--clip=nowhere: no such folder",
        "--checkpoint=run --dino=good.png": "--dino=good.png: no such folder",
        "--scores=nowhere": "nowhere",
        "--scores=empty": "empty",
        "--scores=empty --domain=Moon": "--domain=Moon",
        "--checkpiont=run": "did you mean --checkpoint?",
        "run": "unexpected argument 'run'",
    },
    "prepare": {
        "": "--manifest and --config and --output are missing",
        f"{FOLDER} --output=o": "--manifest is missing",
        f"--manifest=data {FOLDER}": "--output is missing",
        "--manifest=data --output=o": "--config is missing",
        f"--manifest=none.jsonl {FOLDER} --output=o": "--manifest=none.jsonl: no such file",
        f"--manifest= {FOLDER} --output=o": "--manifest is empty",
        f"--manifest=nowhere {FOLDER} --output=o": "--manifest=nowhere",
        f"--manifest=good.png {FOLDER} --output=o": "good.png",
        f"--manifest=empty {FOLDER} --output=o": "manifest.jsonl",
        f"--manifest=broken {FOLDER} --output=o": "manifest.jsonl:2: the line cannot be read as JSON",
        f"--manifest=halves {FOLDER} --output=o": "manifest.jsonl:2",
        f"--manifest=long {FOLDER} --output=o": "manifest.jsonl:3",
        f"--manifest=data {FOLDER} --output=good.png": "good.png",
        f"--manifest=data {FOLDER} --output=o --output=p": "--output is given 2 times",
        f"--manifest=data {FOLDER} --output=o --shard-size=0": "--shard-size=0",
        f"--manifest=data {FOLDER} --output=o --batch-size=x": "--batch-size=x",
        f"--manifest=data {FOLDER} --output=o --process-index=0": "--process-index and --process-count go together",
        f"--manifest=data {FOLDER} --output=o --process-index=3 --process-count=2": "--process-index is 3",
        f"--manifest=data {FOLDER} --output=o --process-index=-1 --process-count=2": "--process-index is -1",
        f"--manifest=data {FOLDER} --output=o --config.data.frames=8": "config.data.frames is 8",
        f"--manifest=data {DEMO} --output=o --config.weights.vae=data": "data",
        f"--manifest=data {FOLDER} --output=o --config.weights.vae=nowhere": "'nowhere' does not exist",
        f"--manifset=data {FOLDER} --output=o": "did you mean --manifest?",
        "data --output=o": "unexpected argument 'data'",
    },
    "convert": {
        "": "the following arguments are required",
        "transmute": "transmute",
        "import": "--source",
        "import --source=data": "--output",
        "import --source=nowhere --output=o": "'nowhere' does not exist",
        "import --source=owner/name --output=o": "say hf://owner/name",
        "import --source=data --output=o": "data holds neither",
        "import --source=good.png --output=o": "good.png",
        "import --source=run --output=data": "data is there already",
        "import --source=run --source=run/parts/dit --output=good.png/o": "good.png is a file and not a folder",
        "import --source=run/parts/vae --source=vae --output=o": "there is a vae both in",
        "import --source=unfinished --output=o": "vae is not finished there",
        "export": "--checkpoint",
        "export --checkpoint=run": "--output",
        "export --checkpoint=runs/nope --output=o": "'runs/nope' does not exist",
        "export --checkpoint=begun --output=o": "holds nothing that was trained yet",
        "export --checkpoint=run --output=data": "data is there already",
        "export --checkpoint=run --output=o --dtype=int8": "int8",
        "export --checkpoint=run --output=o --weights=best": "best",
        "export --checkpoint=run --output=o --weights=params": "has no checkpoint of a stage, and so no last values",
        "export --checkpoint=run --output=o --part=head": "holds no head",
        "export --checkpoint=run --output=o --output=p": "--output is given 2 times",
        "export --checkpoint=run --output=o --max-shard-size=big": "big",
        "export --checkpoint=run --output=o --max-shard-size=0": "0",
        "export --checkpiont=run --output=o": "--checkpoint",
        "export --checkpoint=run --output=o extra": "extra",
        "inspect": "--source",
        "inspect --source=nowhere": "'nowhere' does not exist",
        "inspect --source=data": "data holds neither",
        "inspect --source=good.png": "good.png",
    },
    "plan": {
        "": "--config and --topology are missing",
        BIG: "--topology is missing",
        "--topology=v5e:4x4": "--config is missing",
        "--config=configs/nope.py --topology=v5e:4x4": "which is no file",
        f"{BIG} --topology=v5e:4x5": "v5e has the shapes 1x1, 2x2",
        f"{BIG} --topology=v9:2x2": "--topology is 'v9:2x2'",
        f"{BIG} --topology=": "--topology is empty",
        f"{BIG} --topology=v5p:4x4": "--topology is 'v5p:4x4'",
        f"{BIG} --topology=v5e:4x4 --stage=vae": "--stage is 'vae'",
        f"{BIG} --topology=v5e:4x4 --stage=": "--stage is ''",
        f"{BIG} --topology=v5e:4x4 --price=-1": "--price=-1",
        f"{BIG} --topology=v5e:4x4 --price=cheap": "--price=cheap",
        f"{BIG} --topology=v5e:4x4 --utilisation=2": "--utilisation=2",
        f"{BIG} --topology=v5e:4x4 --slices=-1": "--slices=-1",
        f"{BIG} --topology=v5e:4x4 --bandwidth=0": "--bandwidth=0",
        f"{BIG} --topology=v5e:4x4 --topology=v5e:2x2": "--topology is given 2 times",
        f"{BIG} --topology=v5e:4x4 --config.data.width=10": "config.data.width is 10",
        f"{BIG} --topology=v5e:4x4 --config.dit_model.remat=True": "config.dit_model.remat",
        f"{BIG} --topology=v5e:4x4 --search --sampler": "--search and --sampler ask for different reports",
        f"{BIG} --topology=v5e:4x4 --offload": "--offload is of sampling: say --sampler, too",
        f"{BIG} --topolgy=v5e:4x4": "did you mean --topology?",
    },
    "package": {
        "": "--workdir is missing",
        "--workdir=nowhere": "nowhere holds neither config.json",
        "--workdir=data": "data holds neither config.json",
        "--workdir=begun": "begun holds no trained",
        "--workdir=begun --demo": "begun holds no trained",
    },
}
CASES = [(name, words) for name, lines in LINES.items() for words in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint, and with what is none."""
    folder = tmp_path_factory.mktemp("wrong")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / "good.png")
    (folder / "text.png").write_text("hello")
    write_clip(folder / "clip.mp4")
    for name in ("empty", "empty_too", "begun", "unfinished/checkpoints", "lengthy"):
        (folder / name).mkdir(parents=True)
    (folder / "dangling").symlink_to("nothing")
    (folder / "linked").symlink_to("empty_too")
    random_run(folder / "run")
    for name in ("begun", "unfinished"):
        (folder / name / "config.json").write_text((folder / "run/config.json").read_text())
    (folder / "unfinished/parts").symlink_to(folder / "empty_too")
    (folder / "vae").symlink_to(folder / "run/parts/vae")
    line = {"video": "a.mp4", "caption": "a bird"}
    for name, lines in {
        "data": [line, line | {"video": "b.mp4"}],
        "broken": [line, "{"],
        "halves": [line, '{"video": "b.mp4", "caption": "half \\ud83d of it"}'],
        "long": [line, line | {"video": "b.mp4"}, line | {"id": "c", "caption": "bird " * 500}],
        "missing": [line, line | {"video": "none.mp4"}],
    }.items():
        (folder / name).mkdir()
        for video in ("a.mp4", "b.mp4"):
            write_clip(folder / name / video)
        text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        (folder / name / "manifest.jsonl").write_text(text)
    for number in range(8):
        noun = "exceedingly " * 6 + "lengthy thing " + "abcdefgh"[number]
        picture = np.zeros((64, 64, 4), np.uint8)
        picture[16:48, 16:48] = 30 * number
        picture[16:48, 16:48, 3] = 255
        Image.fromarray(picture).save(folder / "lengthy" / f"{noun.replace(' ', '_')}.png")
    (folder / "list.json").write_text("[]")
    (folder / "wrong.jsonl").write_text('{"prompt": "x", "picture": "good.png"}')
    (folder / "right.jsonl").write_text('{"prompt": "x", "references": ["good.png"], "height": 50}')
    (folder / "long.json").write_text(json.dumps({"a": {"prompt": "bird " * 500, "img_paths": ["good.png"]}}))
    (folder / "empty.py").touch()
    (folder / "number.py").write_text("def get_config():\n    return 3\n")
    (folder / "faulty.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "broken.py").write_text("def get_config(:\n")
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """How every line ended."""
    lines = [[f"cinema_jax.{name}", *shlex.split(words)] for name, words in CASES]
    before = sorted(folder.rglob("*"))
    found = dict(zip(CASES, command_lines.run(lines, folder), strict=True))
    assert sorted(folder.rglob("*")) == before, "something was left behind"
    return found


def test_there_are_two_hundred():
    assert len(CASES) >= 200


@pytest.mark.parametrize(("name", "words"), CASES)
def test_it_is_refused_in_one_sentence(name, words, ended):
    end = ended[name, words]
    told = end.err.strip().splitlines()
    # What is wrong with a manifest is listed, line by line.
    listed = all("manifest.jsonl:" in line for line in told)
    assert end.status == 2
    assert len(told) == 1 or listed, end.err
    assert told[0].startswith("error: ")
    assert LINES[name][words] in told[0]
    assert not end.touched
    assert end.seconds < SECONDS
