"""Which commands there are, how their command lines are read, and the help that they print."""

import argparse
import difflib
import itertools
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags

from cinema_jax.errors import InputError


class Command(NamedTuple):
    """A command of the package: `python -m cinema_jax.NAME`."""

    summary: str
    example: str
    # Whether several processes may run it together.
    distributed: bool = False
    # Whether the list of commands has it.
    listed: bool = True


COMMANDS = {
    "train": Command(
        "Train a config's stages; run again, it continues.", "--config=configs/demo.py --workdir=runs/demo", True
    ),
    "generate": Command(
        "Generate a video from reference images and a prompt.",
        '--reference=examples/blue_bird.png --prompt="the bird jumps up" --output=out.mp4',
        True,
    ),
    "serve": Command("Generate videos in a web page on this machine.", "--checkpoint=packaged --port=7860"),
    "evaluate": Command(
        "Measure a checkpoint on held-out subjects or videos.", "--checkpoint=runs/demo --json=out.json"
    ),
    "prepare": Command(
        "Encode a folder of videos once, for many runs and hosts.",
        "--manifest=videos/manifest.jsonl --config=configs/mine.py --output=records",
        True,
    ),
    "convert": Command(
        "Import, export and inspect weights.", "export --checkpoint=runs/demo --output=exported --dtype=bfloat16", True
    ),
    "plan": Command(
        "Plan a run for TPUs that are not at hand: memory, traffic, hosts.",
        "--config=configs/cogvideox_5b.py --topology=v5p:4x4x4",
    ),
    "package": Command("Copy a run's weights into the project (for its developers).", "--workdir=runs/scratch"),
    "evaluation.teach_judge": Command("Train the judge of evaluate.", "--workdir=runs/judge --package", listed=False),
}
# The experiments of a checkout and their variants, without whose list nobody would find them.
CONFIGS = {
    "configs/demo.py": ("full", "folder", "folder_smoke", "folder_finetune", "smoke", "scratch"),
    "configs/demo_ablation.py": (
        *("full", "t5", "no_entities", "random_aligner", "entity_time", "augment"),
        *("pretrain", "pretrain_entity_time", "pretrain_augment"),
    ),
    "configs/demo_full.py": (
        *("who", "pictures", "videos", "prompted_pictures", "prompted_videos", "more_videos", "captioned_videos"),
        *("new_t5", "ordered", "roles", "more_roles", "crowds", "more_crowds", "demo"),
    ),
    "configs/cogvideox_2b.py": ("align", "control", "times", "entity_time", "index", "no_align", "t5"),
    "configs/cogvideox_5b.py": (),
}
HELP = ("--help", "-h", "-help", "-?", "--helpshort", "--helpfull")
# Where flags that several commands share are defined.
SHARED = "cinema_jax.command"
WIDTH = 100


def underscored(argument: str) -> str:
    """`--guidance-text=2` as `--guidance_text=2`, which is how absl spells it."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def dashed(name: str) -> str:
    """`guidance_text` as `--guidance-text`, which is how help and messages spell it."""
    return f"--{name.replace('_', '-')}"


def example(name: str) -> str:
    """One line that runs a command, to be typed in a checkout."""
    return f"python -m cinema_jax.{name} {COMMANDS[name].example}"


def overview() -> str:
    """The commands, one line each."""
    listed = {name: command.summary for name, command in COMMANDS.items() if command.listed}
    lines = [f"  {name:{max(map(len, listed))}}  {summary}" for name, summary in listed.items()]
    return "\n".join(
        [
            "usage: cinema-jax COMMAND [FLAGS], or python -m cinema_jax.COMMAND [FLAGS], which is the same",
            "\ncommands",
            *lines,
            "\nCOMMAND --help describes one of them.",
            "\nexample",
            f"  {example('generate')}",
        ]
    )


def parse(argv: Sequence[str], required: Iterable[str] = ()) -> None:
    """Read a command line into absl's flags; `--help` prints the help and exits with status 0.

    Args:
        argv: the program's name and its arguments; dashes and underscores in names of flags are the same.
        required: names of flags that must be given.

    Raises:
        InputError: a flag, value, config or variant that does not exist, or a required flag that is missing.
    """
    required = tuple(required)
    if set(argv[1:]) & set(HELP):
        print(command_help(required))
        sys.exit(0)
    try:
        rest = flags.FLAGS([argv[0], *map(underscored, argv[1:])])
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown(error.flagname)) from None
    except flags.Error as error:
        raise InputError(_sentence(str(error))) from None
    except (AttributeError, KeyError, TypeError) as error:
        # What the code of a config's file raises wants its line.
        if any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__)):
            raise
        # Otherwise ml_collections says that the config has no such field.
        raise InputError(_no_such_field(argv, str(error))) from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags start with --")
    if missing := [dashed(name) for name in required if flags.FLAGS[name].value is None]:
        are = "is" if len(missing) == 1 else "are"
        raise InputError(f"{' and '.join(missing)} {are} missing; --help describes all flags")
    _check_config(argv)


def _unknown(name: str) -> str:
    if name.startswith("config."):
        return f"--{name} needs a --config before it, for example --config=configs/demo.py"
    # Flags of absl itself would only be in the way.
    own = [flag.name for flag in (*flags.FLAGS.get_key_flags_for_module(sys.argv[0]), *_shared(True))]
    close = difflib.get_close_matches(name, own, n=1)
    hint = f"did you mean {dashed(close[0])}?" if close else "--help lists all flags"
    return f"{dashed(name)} is not a flag of this command; {hint}"


def _sentence(message: str) -> str:
    """What absl says of a wrong value; of an error in a config's file, its last line."""
    first, *rest = message.strip().splitlines()
    said = first.strip().removeprefix("flag ")
    # absl wraps a long message; the traceback of a config's file ends with the error itself.
    last = rest[-1].strip() if rest else ""
    if not said or "Error whilst parsing config file" in message:
        told = next(line.strip() for line in message.splitlines() if "flag --" in line)
        flag = told.removeprefix("flag ").partition(": ")[0]
        return f"{flag}: {last.partition(': ')[2] or last}"
    name, equals, value = said.partition("=")
    # The field of a config keeps its underscores.
    name = name if name.startswith("--config") else name.replace("_", "-")
    return " ".join([name + equals + value, *map(str.strip, rest)])


def _no_such_field(argv: Sequence[str], message: str) -> str:
    overrides = [argument.partition("=")[0] for argument in argv if argument.startswith("--config.")]
    wrong = message.partition("\n")[0].strip("'\"")
    named = next((path for path in overrides if wrong in path.split(".")), " or ".join(overrides))
    close = message.partition("Did you mean ")[2].partition(" instead")[0]
    hint = f"did you mean {close}?" if close else "docs/config.md has all fields"
    return f"{named} does not exist; {hint}"


def _check_config(argv: Sequence[str]) -> None:
    """ml_collections keeps the error of a config's file for whoever reads a field of it."""
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    from ml_collections import ConfigDict

    if not isinstance(flags.FLAGS["config"].value, ConfigDict):
        given = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
        given += [after for word, after in itertools.pairwise(argv) if word == "--config"]
        raise InputError(
            f"--config is {given[-1]!r}, which cannot be read; accepted is a file such as configs/demo.py, and "
            "FILE:VARIANT where it has variants"
        )


def command_help(required: Sequence[str] = ()) -> str:
    """The help of the command that runs: what it does, its flags, and an example."""
    name = sys.modules["__main__"].__spec__.name.removeprefix("cinema_jax.")
    summary, _, description = (sys.modules["__main__"].__doc__ or "").strip().partition("\n")
    needed = " ".join(f"{dashed(flag)}=..." for flag in required)
    shown = [flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]) if flag.name not in required]
    sections = [
        f"usage: python -m cinema_jax.{name} {needed} [FLAGS]".replace("  ", " "),
        f"{summary}\n{description}".strip(),
        _section("required flags", [flags.FLAGS[flag] for flag in required]),
        _section("flags", shown + list(_shared(False))),
        _section("flags for several processes", _shared(True) if COMMANDS[name].distributed else ()),
        _configs() if "config" in flags.FLAGS else "",
        f"example\n  {example(name)}",
    ]
    return "\n\n".join(section for section in sections if section)


def _shared(of_processes: bool) -> Iterator[flags.Flag]:
    """The flags that several commands share: how processes meet, or the others."""
    for flag in flags.FLAGS.flags_by_module_dict().get(SHARED, ()):
        if (flag.name == "compilation_cache") != of_processes:
            yield flag


def _section(title: str, shown: Iterable[flags.Flag]) -> str:
    lines = [line for flag in shown for line in _described(flag)]
    return "\n".join([title, *lines]) if lines else ""


def _described(flag: flags.Flag) -> Iterator[str]:
    kinds = {"int": "N", "float": "X", "multi string": "VALUE", "config object": "FILE[:VARIANT]"}
    value = "" if flag.boolean else f"={kinds.get(flag.flag_type(), 'VALUE')}"
    if flag.parser and hasattr(flag.parser, "enum_values"):
        value = f"={'|'.join(flag.parser.enum_values)}"
    yield f"  {dashed(flag.name)}{value}"
    # absl adds the choices of an enumeration, and that a flag may be repeated.
    meaning = re.sub(r"^<[^>]*>: |;\s+repeat this option.*", "", flag.help)
    default = "" if flag.default in (None, "", False, []) else f" (default: {flag.default})"
    yield from textwrap.wrap(f"{meaning}{default}", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _configs() -> str:
    lines = [
        "configs, each described in its first lines",
        *(
            line
            for file, variants in CONFIGS.items()
            for line in textwrap.wrap(
                " ".join([file, *(f":{variant}" for variant in variants)]),
                WIDTH,
                initial_indent="  ",
                subsequent_indent=" " * (len(file) + 3),
            )
        ),
        "  A variant follows a colon: --config=configs/demo.py:smoke",
        "",
        "Every field of a config is set by --config.FIELD=VALUE after --config, for example",
        "--config.finetune.steps=200. docs/config.md describes every field.",
    ]
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """For commands of several words: help ends with examples, and an error is one sentence without the usage."""

    def __init__(self, prog: str, *, examples: Iterable[str], **settings: Any) -> None:
        super().__init__(
            prog=prog,
            epilog="\n".join(["example", *(f"  {prog} {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; {self.prog} --help describes all flags\n")
