"""Command lines of all commands: the list of them, their help, and how what is wrong is said."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import command_lines
import pytest
from tiny import process_environment

from cinema_jax.commands import usage

ROOT = Path(__file__).parents[1]
# Commands whose help is asked for; `convert` has one for each of its words.
HELPED = [
    *(f"cinema_jax.{name}" for name in usage.COMMANDS),
    *(f"cinema_jax.convert {w}" for w in ("import", "export")),
]
TRAIN = "cinema_jax.train --workdir=r"
DEMO = f"{TRAIN} --config=configs/demo.py"
WRONG = {
    "cinema_jax.train": "--config and --workdir are missing; --help describes all flags",
    TRAIN: "--config is missing; --help describes all flags",
    "cinema_jax.generate --reference=a.png": "--prompt is missing; --help describes all flags",
    f"{DEMO} --wandd=x": "--wandd is not a flag of this command; did you mean --wandb?",
    f"{DEMO} --hang_secs=1": "--hang-secs is not a flag of this command; did you mean --hang-seconds?",
    f"{DEMO} --hang_seconds=-1": "--hang-seconds=-1: -1.0 is not a non-negative number",
    f"{DEMO} extra": "unexpected argument 'extra'; flags start with --",
    f"{TRAIN} --config=nope.py": f"--config is 'nope.py', which is no file here ({ROOT}) or among those that ship with "
    f"the project ({ROOT}/configs); accepted is a file such as configs/demo.py, and FILE:VARIANT where it has variants",
    f"{DEMO}:quick": "--config=configs/demo.py:quick: configs/demo.py has no variant 'quick'; accepted: "
    f"{', '.join(usage.CONFIGS['configs/demo.py'])}",
    f"{DEMO} --config.finetune.step=3": '--config.finetune.step does not exist; did you mean "steps"?',
    f"{DEMO} --config.seed=a": "--config.seed=a: invalid literal for int() with base 10: 'a'",
    f"{TRAIN} --config.seed=1": "--config.seed needs a --config before it, for example --config=configs/demo.py",
    "cinema_jax.generate --prompt=x --solver=heun": "--solver=heun: value should be one of <unipc|euler|ddim|dpm>",
    "cinema_jax.convert": "the following arguments are required: import | export | inspect; python -m "
    "cinema_jax.convert --help describes all flags",
    "cinema_jax.convert inspect": "the following arguments are required: --source; python -m cinema_jax.convert "
    "inspect --help describes all flags",
}
SPELLINGS = [
    f"{DEMO} --hang-seconds=3 --profile-steps=1:2",
    f"{DEMO} --hang_seconds=3 --profile_steps=1:2",
    "cinema_jax.convert export --checkpoint=x --output=y --num-processes=2 --process-id=1",
    "cinema_jax.convert export --checkpoint x --output y --num_processes 2 --process_id 1",
]
READ_BEFORE_JAX = """
import sys
try:
    {}
except SystemExit as end:
    assert end.code in (0, None), end.code
finally:
    sys.exit("jax" in sys.modules)
"""


@pytest.fixture(scope="module")
def told():
    """What every command line here ends with: all are read in one process."""
    lines = [f"{name} --help" for name in HELPED] + [*WRONG, *SPELLINGS]
    lines += [usage.example(name).removeprefix("python -m ") for name in usage.COMMANDS if name != "prepare"]
    return dict(zip(lines, command_lines.read([shlex.split(line) for line in lines]), strict=True))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=process_environment(), capture_output=True, text=True, check=False
    )


def test_the_list_has_every_module_that_runs_as_a_command():
    modules = {file.stem for file in (ROOT / "cinema_jax").glob("*.py") if "__main__" in file.read_text()}
    assert modules - {"__main__", "usage"} == {name for name, command in usage.COMMANDS.items() if command.listed}


def test_without_a_command_all_are_listed():
    listed = run("-m", "cinema_jax")
    assert (listed.returncode, listed.stderr) == (0, "")
    for name, command in usage.COMMANDS.items():
        assert (f"  {name:8}  {command.summary}\n" in listed.stdout) == command.listed


def test_an_unknown_command_is_refused_with_the_nearest_one():
    refused = run("-m", "cinema_jax", "trian")
    assert (refused.returncode, refused.stderr) == (2, "error: 'trian' is not a command; did you mean train?\n")


def test_the_console_script_is_the_module():
    setup = (ROOT / "setup.py").read_text()
    assert re.search(r'"cinema-jax = (\S+)"', setup)[1] == "cinema_jax.__main__:main"


def test_a_command_behind_the_script_is_the_module_itself():
    behind, itself = run("-m", "cinema_jax", "train", "--wokdir=r"), run("-m", "cinema_jax.train", "--wokdir=r")
    assert behind.returncode == itself.returncode == 2
    assert behind.stderr == itself.stderr == "error: --wokdir is not a flag of this command; did you mean --workdir?\n"


@pytest.mark.parametrize("name", HELPED)
def test_help_ends_with_an_example_and_status_0(name, told):
    status, out, err = told[f"{name} --help"]
    assert (status, err) == (0, "")
    before, example = out.split("\nexample\n")
    assert example.strip().startswith(f"python -m {name} ")
    assert f"usage: python -m {name}" in before


@pytest.mark.parametrize("name", [name for name in usage.COMMANDS if name != "prepare"])
def test_the_example_of_the_help_is_accepted(name, told):
    line = usage.example(name).removeprefix("python -m ")
    assert told[line] == (0, "", "")


def test_help_of_train_says_which_flags_are_required_and_how_fields_are_set(told):
    _, out, _ = told["cinema_jax.train --help"]
    required = out.split("\nrequired flags\n")[1].split("\nflags\n")[0]
    assert re.findall(r"^  (--\S+?)=", required, re.MULTILINE) == ["--config", "--workdir"]
    assert "--config.FIELD=VALUE" in out
    for file, variants in usage.CONFIGS.items():
        assert all(text in out for text in (file, *(f":{variant}" for variant in variants)))


def test_names_of_flags_have_dashes_in_every_help(told):
    shown = [out for line, (_, out, _) in told.items() if line.endswith("--help")]
    assert not [name for out in shown for name in re.findall(r"--[a-z]+_[a-z_]+", out)]


@pytest.mark.parametrize("line", SPELLINGS)
def test_dashes_and_underscores_are_accepted(line, told):
    assert told[line] == (0, "", "")


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_one_sentence_and_status_2(line, told):
    assert told[line] == (2, "", f"error: {WRONG[line]}\n")


def test_an_error_in_the_code_of_a_config_is_told_with_its_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from configs import demo\n\n\ndef get_config():\n    return demo.get_config().dat\n")
    [(status, _, err)] = command_lines.read([["cinema_jax.train", f"--config={file}", "--workdir=r"]])
    assert status == 2
    assert err.startswith(f"error: {file}, line 5, in get_config: AttributeError: ")
    assert err.count("\n") == 1


def test_the_configs_of_the_help_are_those_of_the_checkout():
    files = {f"configs/{file.name}" for file in (ROOT / "configs").glob("[!_]*.py")}
    assert set(usage.CONFIGS) == files
    for file, variants in usage.CONFIGS.items():
        if variants:
            spec = importlib.util.spec_from_file_location("experiment", ROOT / file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            with pytest.raises(ValueError, match=f"accepted: {', '.join(variants)}$"):
                module.get_config("no such variant")


@pytest.mark.parametrize(
    "asked",
    [
        "from cinema_jax import __main__ as m; m.main()",
        "from cinema_jax import train; from cinema_jax.commands import usage; usage.overview()",
    ],
)
def test_jax_is_not_imported_to_read_a_command_line(asked):
    done = run("-c", READ_BEFORE_JAX.format(asked))
    assert done.returncode == 0, done.stderr


def test_libtpu_without_a_tpu_says_nothing_before_the_first_word():
    """It is installed with the tests, and jax loads it where JAX_PLATFORMS does not forbid it."""
    environment = {
        name: x for name, x in process_environment().items() if not name.startswith(("JAX_", "TPU_", "XLA_"))
    }
    shown = "lambda: print(__import__('jax').devices()[0].platform)"
    code = f"from cinema_jax.commands import command; command.run({shown})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "TPU" not in done.stderr
