"""Which commands there are, how their command lines are read, and the help that they print."""

import argparse
import difflib
import itertools
import os
import re
import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags

from cinema_jax.errors import InputError
from cinema_jax.inputs import shipped


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
        "Generate a video from reference images and a prompt, or the videos of a list.",
        '--reference=examples/blue_bird.png --prompt="the bird jumps up" --output=out.mp4',
        True,
    ),
    "serve": Command("Generate videos in a web page on this machine.", "--checkpoint=packaged --port=7860"),
    "evaluate": Command(
        "Measure a checkpoint on held-out subjects or videos.", "--checkpoint=runs/demo --json=out.json"
    ),
    "curate": Command(
        "Make training clips of raw videos: shots, quality, duplicates, captions.",
        "--videos='raw/**/*.mp4' --output=curated",
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
    "configs/wan_1_3b.py": ("mllm",),
    "configs/wan_14b.py": (),
}
_ACCEPTED = "accepted is a file such as configs/demo.py, and FILE:VARIANT where it has variants"
HELP = ("--help", "-h", "-help", "-?", "--helpshort", "--helpfull")
# Where flags that several commands share are defined.
SHARED = "cinema_jax.commands.command"
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
        required: names of flags that must be given; of "one|other" either.

    Raises:
        InputError: a flag, value, config or variant that does not exist, or a required flag that is missing.
    """
    required = tuple(required)
    if set(argv[1:]) & set(HELP):
        print(command_help(required))
        sys.exit(0)
    argv = [argv[0], *(expanded(underscored(argument)) for argument in argv[1:])]
    argv = _with_found_configs(argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown(error.flagname)) from None
    except flags.Error as error:
        raise InputError(_sentence(str(error))) from None
    except Exception as error:
        if where := _in_config(argv, error):
            raise InputError(where) from None
        # Otherwise ml_collections says that the config has no such field.
        if isinstance(error, AttributeError | KeyError | TypeError):
            raise InputError(_no_such_field(argv, str(error))) from None
        raise
    _check_once(argv)
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; {_meant(argv, rest[1])}")
    groups = [[flags.FLAGS[name] for name in names.split("|")] for names in required]
    if missing := [dashed(group[0].name) for group in groups if all(flag.value is None for flag in group)]:
        are = "is" if len(missing) == 1 else "are"
        raise InputError(f"{' and '.join(missing)} {are} missing; --help describes all flags")
    if empty := [dashed(flag.name) for group in groups for flag in group if flag.value == ""]:
        raise InputError(f"{empty[0]} is empty; --help describes all flags")
    _check_config(argv)


def expanded(argument: str) -> str:
    """`--output=~/x` with the home folder in it, as a shell writes it only where `~` begins a word."""
    name, equals, value = argument.partition("=")
    named = equals and name.startswith("--") and name not in ("--prompt", "--negative_prompt", "--negative-prompt")
    return name + equals + os.path.expanduser(value) if named and re.match(r"~(/|$)", value) else argument


def given(argv: Sequence[str]) -> Iterator[str]:
    """The names of the flags of a command line, as often as they are given."""
    for argument in argv[1:]:
        if argument == "--":
            return
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            known = name in flags.FLAGS or not name.startswith("no")
            yield name if known else name.removeprefix("no")


def _check_once(argv: Sequence[str]) -> None:
    """Of a flag that is given twice, the first value would be ignored without a word."""
    for name, count in Counter(given(argv)).items():
        several = name in flags.FLAGS and isinstance(flags.FLAGS[name], flags.MultiFlag)
        if count > 1 and not several:
            shown = f"--{name}" if name.startswith("config.") else dashed(name)
            raise InputError(f"{shown} is given {count} times; say it once")


def _meant(argv: Sequence[str], word: str) -> str:
    """What an argument without a flag was probably meant to be."""
    before = argv[argv.index(word) - 1] if word in argv[2:] else ""
    flag = before.partition("=")[0].removeprefix("--")
    if "=" not in before and word in argv[3:]:
        flag = next((name.partition("=")[0][2:] for name in reversed(argv[: argv.index(word)]) if name[:2] == "--"), "")
    if flag in flags.FLAGS and isinstance(flags.FLAGS[flag], flags.MultiFlag):
        return f"say {dashed(flag)} once for each: {dashed(flag)}={word}"
    if "config" in flags.FLAGS and re.search(r"\.py(:\w+)?$", word):
        return f"did you mean --config={word}?"
    return "flags start with --"


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


def _config_files(argv: Sequence[str]) -> list[str]:
    """What --config is given, as often as it is."""
    words = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    return words + [after for word, after in itertools.pairwise(argv) if word == "--config"]


def _with_found_configs(argv: Sequence[str]) -> list[str]:
    """The command line with the path of every config: ml_collections opens whatever it is given."""
    argv = list(argv)
    if "config" not in flags.FLAGS:
        return argv
    for i, (before, word) in enumerate(itertools.pairwise(argv), 1):
        if word.startswith("--config="):
            argv[i] = f"--config={_found_config(word.partition('=')[2])}"
        elif before == "--config":
            argv[i] = _found_config(word)
    # Configs start from each other: `from configs import demo`.
    if str(shipped.root()) not in sys.path:
        sys.path.append(str(shipped.root()))
    return argv


def _found_config(word: str) -> str:
    """FILE or FILE:VARIANT with the file as it is given, or else the shipped one of that name.

    Raises:
        InputError: there is neither, or it is no Python file.
    """
    name, colon, variant = word.partition(":")
    if not name.endswith(".py"):
        raise InputError(f"--config is {word!r}, which is not the name of a Python file; {_ACCEPTED}")
    if Path(name).is_file():
        return word
    if file := shipped.config(name):
        return f"{file}{colon}{variant}"
    raise InputError(
        f"--config is {word!r}, which is no file here ({Path.cwd()}) or among those that ship with the project "
        f"({shipped.root() / 'configs'}); {_ACCEPTED}"
    )


def _in_config(argv: Sequence[str], error: Exception) -> str | None:
    """What the code of a config's file raises, with its line; None: the error is not of such code."""
    files = [Path(word.partition(":")[0]) for word in _config_files(argv)]
    said = (traceback.format_exception_only(error)[-1].strip().splitlines() or [""])[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(Path(frame.filename).absolute() == file.absolute() for file in files)]
    if own:
        return f"{own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}: {said}"
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return f"--config={files[-1]}: the file has no function get_config()"
    return None


def _check_config(argv: Sequence[str]) -> None:
    """A file may give something else than a config."""
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    from ml_collections import ConfigDict

    if not isinstance(flags.FLAGS["config"].value, ConfigDict):
        raise InputError(
            "--config names a file that gives no config: its get_config() must return an ml_collections.ConfigDict"
        )


def command_help(required: Sequence[str] = ()) -> str:
    """The help of the command that runs: what it does, its flags, and an example."""
    name = sys.modules["__main__"].__spec__.name.removeprefix("cinema_jax.")
    summary, _, description = (sys.modules["__main__"].__doc__ or "").strip().partition("\n")
    groups = [names.split("|") for names in required]
    needed = " ".join("|".join(f"{dashed(flag)}=..." for flag in group) for group in groups)
    required = [flag for group in groups for flag in group]
    shown = [flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]) if flag.name not in required]
    title = "required flags" if len(groups) == len(required) else "required flags, one of these"
    sections = [
        f"usage: python -m cinema_jax.{name} {needed} [FLAGS]".replace("  ", " "),
        f"{summary}\n{description}".strip(),
        _section(title, [flags.FLAGS[flag] for flag in required]),
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

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """As argparse does; a flag that is given twice and may not be is refused."""
        args = [expanded(argument) for argument in (sys.argv[1:] if args is None else args)]
        self._once(args)
        return super().parse_args(args, namespace)

    def _once(self, args: Sequence[str]) -> None:
        parsers = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += [action.choices[word] for word in args[:1] if word in action.choices]
        known = {option: action for parser in parsers for option, action in parser._option_string_actions.items()}
        used = Counter(known.get(word.partition("=")[0]) for word in args if word.startswith("--"))
        for action, count in used.items():
            if action is not None and count > 1 and not isinstance(action, argparse._AppendAction):
                self.error(f"{action.option_strings[0]} is given {count} times, say it once")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; {self.prog} --help describes all flags\n")
