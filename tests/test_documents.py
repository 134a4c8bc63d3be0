"""README and docs/: every command line is one that the commands accept, and every link leads somewhere.

Nothing is run here: flags are read by the commands' own parsers, configs are loaded, and launchers print what they
would do. Blocks that want more than a checkout and a CPU are marked by `<!-- needs: ... -->` before them.
"""

import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import command_lines
import pytest
from ml_collections import ConfigDict

from cinema_jax.commands import usage
from cinema_jax.config import default
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *DOCUMENTS,
    *(
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "cinema_jax/assets").rglob("*.md"),
    ),
]
# What a block may need, and words that show that it does.
NEEDS = {
    "released weights": ("CogVideoX", "Wan2.1", "CHECKPOINT"),
    "Google Cloud": ("gcloud", "launch/tpu_vm.sh"),
    "Kubernetes": ("launch/gke.sh",),
    "SLURM": ("sbatch",),
    "bucket": (),
    "pod": (),
    "OpenS2V-Eval": ("OpenS2V-Eval",),
}
# All programs that blocks run beside ours.
PROGRAMS = {"cp", "pip", "pytest", "mkdocs", "tensorboard", "unzip", "mkdir", "docker", "gcloud"}
# The reader makes this one, as docs/your_data.md says.
MINE = "configs/mine.py"
FOLDERS = ("configs", "examples", "launch", "docs", "benchmarks", "notebooks", "weights", "tests", "cinema_jax")
# Flags of other programs that are named within a sentence.
FLAGS_OF_OTHERS = {
    *("--logdir", "--gpus-per-node", "--ntasks-per-node", "--type"),
    *("--service-account", "--reserved", "--help"),
    *("--depth", "--no-deps"),
}


class Line(NamedTuple):
    """A command of a block: its words, the variables that the document has set, and where it stands."""

    words: tuple[str, ...]
    variables: dict[str, str]
    place: str


def blocks(document: Path) -> list[tuple[set[str], str]]:
    """Every block of commands, with what it is marked to need."""
    pattern = r"^(?:<!-- needs: ([^\n]*) -->\n)?```bash\n(.*?)^```$"
    found = re.findall(pattern, document.read_text(), re.MULTILINE | re.DOTALL)
    return [(set(needs.split(", ")) - {""}, block) for needs, block in found]


def lines(document: Path) -> list[Line]:
    """The commands of all blocks, with the variables that those before them set."""
    found, variables = [], {}
    for _, block in blocks(document):
        for line in block.replace("\\\n", " ").splitlines():
            set_before = {name: value for name, value in variables.items() if f"${name}" in line}
            for name, value in set_before.items():
                line = line.replace(f"${name}", value)
            # What the reader's machine knows.
            split = shlex.shlex(re.sub(r"\$[A-Z]+", "1", line), posix=True, punctuation_chars="&|;")
            split.whitespace_split = True
            for words in _commands(list(split)):
                words = words[words[0] == "export" :]
                sets = list(itertools.takewhile(re.compile(r"[A-Z_]+=").match, words))
                rest = tuple(words[len(sets) :])
                now = variables | dict(word.split("=", 1) for word in sets)
                if rest:
                    found.append(Line(rest, now, f"{document.name}: {' '.join(rest)}"))
                else:
                    variables = now
    return found


def _commands(words: list[str]) -> list[list[str]]:
    commands = [[]]
    for word in words:
        if set(word) <= set("&|;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


LINES = [line for document in DOCUMENTS for line in lines(document)]
TEXTS = {str(document.relative_to(ROOT)): document.read_text() for document in DOCUMENTS}


def spans(pattern: str) -> set[str]:
    """What matches in the inline code of all documents."""
    return {
        found
        for text in TEXTS.values()
        for span in re.findall(r"`([^`\n]+)`", text)
        for found in re.findall(pattern, span)
    }


def ours(line: Line) -> list[str] | None:
    """The module and arguments of one of the project's commands; None for another program."""
    if line.words[:2] == ("python", "-m"):
        return list(line.words[2:])
    return [f"cinema_jax.{line.words[1]}", *line.words[2:]] if line.words[0] == "cinema-jax" else None


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The config that docs/your_data.md gives to copy."""
    file = tmp_path_factory.mktemp("configs") / "mine.py"
    file.write_text(re.search(r"```python\n(.*?)```", TEXTS["docs/your_data.md"], re.DOTALL)[1])
    return file


@pytest.fixture(scope="module")
def told(mine):
    """What the parsers say of every line of the project's own commands, and their help."""
    commands = [(line.place, words) for line in LINES if (words := ours(line))]
    commands += [(f"{name} --help", [f"cinema_jax.{name}", "--help"]) for name in usage.COMMANDS]
    commands += [(f"convert {word}", ["cinema_jax.convert", word, "--help"]) for word in ("import", "export")]
    read = command_lines.read([[word.replace(MINE, str(mine)) for word in words] for _, words in commands])
    return dict(zip((place for place, _ in commands), read, strict=True))


@pytest.mark.parametrize("place", [line.place for line in LINES if ours(line)])
def test_a_documented_command_is_accepted_by_its_parser(place, told):
    assert told[place] == (0, "", "")


@pytest.mark.parametrize(
    "line", [line for line in LINES if any("launch/" in word for word in line.words[:3])], ids=lambda line: line.place
)
def test_a_documented_launcher_prints_what_it_would_do(line):
    script = next(i for i, word in enumerate(line.words) if word.startswith("launch/"))
    words = list(line.words[script:])
    if words[0] != "launch/slurm_gpu.sbatch":
        # Before what is training's.
        words.insert(words.index("--") if "--" in words else len(words), "--dry-run")
    elif "--dry-run" not in words:
        words.append("--dry-run")
    environment = {name: x for name, x in os.environ.items() if not name.startswith("CINEMA_")}
    done = subprocess.run(words, cwd=ROOT, env=environment | line.variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", [line for line in LINES if not ours(line)], ids=lambda line: line.place)
def test_other_programs_are_known_and_what_they_install_exists(line):
    program = line.words[0]
    if program in ("python", "sbatch") or program.startswith("launch/"):
        assert any((ROOT / word).is_file() for word in line.words)
        return
    assert program in PROGRAMS
    extras = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert {extra for word in line.words for extra in re.findall(r"^\.\[(\w+)\]$", word)} <= extras


def test_files_that_documents_name_are_in_the_checkout():
    path = rf"(?<![\w./])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w"
    named = spans(path) | {found for line in LINES for word in line.words for found in re.findall(path, word)}
    assert not {name for name in named - {MINE} if not list(ROOT.glob(name))}


def test_variants_that_documents_name_exist():
    for file, variant in spans(r"(configs/\w+\.py):(\w+)"):
        assert variant in usage.CONFIGS[file], f"{file}:{variant}"


def test_flags_that_documents_name_exist(told):
    known = {flag for place, (_, out, _) in told.items() for flag in re.findall(r"--[\w-]+", out)} | FLAGS_OF_OTHERS
    known |= {flag for file in (ROOT / "launch").iterdir() for flag in re.findall(r"--[\w-]+", file.read_text())}
    assert spans(r"(?<![\w-])--[a-z][\w-]*(?![\w.-])") - {"--config"} <= known


def test_fields_that_documents_set_exist():
    released = default()
    released.vae_model = ConfigDict(vars(CogVideoXVAEConfig()))
    for path in spans(r"--config\.([\w.]+\w)"):
        for values in (default(), released):
            value = values
            for name in path.split("."):
                assert name in value, f"config.{path}"
                value = value[name]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_blocks_that_want_more_than_a_checkout_are_marked(document):
    for marked, block in blocks(document):
        assert marked <= set(NEEDS)
        shown = {need for need, words in NEEDS.items() if any(word in block for word in words)}
        assert shown <= marked, block


def test_command_blocks_are_marked_as_bash():
    """Others would not be looked at."""
    for name, text in TEXTS.items():
        fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert not [
            block for kind, block in fences if kind != "bash" and "cinema_jax." in block and "python -m" in block
        ]
        assert not re.search(r"^    (python[\d.]*|pip[\d.]*|launch/\S*) ", text, re.MULTILINE), name


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKED, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([^)\s]*))?\)", text):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_every_page_is_in_the_index_and_on_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    index = (ROOT / "docs/README.md").read_text()
    for document in DOCUMENTS[1:]:
        assert f": {document.name}\n" in site
        assert document.name in ("README.md", "api.md") or f"]({document.name})" in index


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
