"""The package's rooms, from the ground up: a module imports from its own room and from those below it."""

import ast
from pathlib import Path

import pytest

import cinema_jax

PACKAGE = Path(cinema_jax.__file__).parent
# The commands stand on top, beside `__main__.py`, which starts them.
ROOMS = (
    "errors",
    "inputs",
    "devices",
    "commands",
    "weights",
    "models",
    "diffusion",
    "config",
    "data",
    "experiment",
    "cinema",
    "sampling",
    "exchange",
    "training",
    "evaluation",
    "curation",
    "planning",
    "web",
)
COMMANDS = ("train", "generate", "evaluate", "prepare", "convert", "plan", "serve", "package", "curate")
MODULES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))


def floor(module: str) -> int:
    """How high a room is, by a module's name within the package."""
    room = module.split(".")[0]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def imported(text: str) -> list[str]:
    """The modules of this package that a text imports, by their names within it; its version is nobody's."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "cinema_jax":
            found += [name.name for name in node.names if name.name != "__version__"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cinema_jax."):
            found.append(node.module.removeprefix("cinema_jax."))
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names if name.name.startswith("cinema_jax.")]
            found += [name.removeprefix("cinema_jax.") for name in names]
    return found


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_imports_lead_downwards(file):
    module = ".".join(file.with_suffix("").parts)
    for other in imported((PACKAGE / file).read_text()):
        assert floor(other) <= floor(module), (
            f"cinema_jax/{file} imports cinema_jax.{other}, which stands above it: what both need belongs into a room "
            f"below ({', '.join(ROOMS[: floor(module) + 1])}), or the value should be handed in"
        )


def test_an_import_against_the_order_is_seen():
    assert imported("from cinema_jax import plan, __version__\nimport cinema_jax.web.page\n") == ["plan", "web.page"]
    assert floor("plan") > floor("web.page") > floor("training.loop") > floor("models.layers") > floor("errors")


def test_nothing_else_stands_at_the_top():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == {"__init__", "__main__", *ROOMS, *COMMANDS}
