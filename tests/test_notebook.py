"""The notebook runs from top to bottom with the packaged demo."""

import base64
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import process_environment

NOTEBOOK = Path(__file__).parents[1] / "notebooks/cinema_inference.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A copy with its outputs, run in a folder of its own."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (process_environment() | {"JAX_PLATFORMS": "cpu"}).items():
            patch.setenv(name, value)
        patch.delenv("XLA_FLAGS")
        assert os.environ["PYTHONPATH"]
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    return notebook, place


def outputs(notebook, kind):
    return [out.data[kind] for cell in notebook.cells for out in cell.get("outputs", ()) if kind in out.get("data", {})]


def test_it_shows_references_video_and_guidance(executed):
    notebook, place = executed
    assert (place / "out.mp4").read_bytes()[4:8] == b"ftyp"
    pictures = [base64.b64decode(data) for data in outputs(notebook, "image/png")]
    assert len(pictures) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert any("video/mp4" in html for html in outputs(notebook, "text/html"))


@pytest.fixture(scope="module")
def install():
    """What the first cell defines; here it installs nothing."""
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    defined = {}
    exec(first.source, defined)
    return defined


def test_the_checkout_around_the_notebook_is_installed(install):
    assert install["requirement"](NOTEBOOK.parent).split("[")[0] == str(NOTEBOOK.parents[1])


def test_the_project_is_installed_from_its_address_where_there_is_no_checkout(install, tmp_path):
    install["requirement"].__globals__["REPOSITORY"] = "https://example.org/cinema_jax"
    name, address = install["requirement"](tmp_path).split(" @ ")
    assert name.split("[")[0] == "cinema_jax"
    assert address == "git+https://example.org/cinema_jax"


def test_without_an_address_the_cell_asks_for_one(install, tmp_path):
    install["requirement"].__globals__["REPOSITORY"] = ""
    with pytest.raises(SystemExit, match="Set REPOSITORY in this cell to the address"):
        install["requirement"](tmp_path)


def test_its_outputs_are_saved_and_name_no_folder_of_ours(executed):
    saved = nbformat.read(NOTEBOOK, as_version=4)
    count = [len(cell.get("outputs", ())) > 0 for cell in saved.cells if cell.cell_type == "code"]
    assert sum(count) >= 7, "run the notebook and save it with its outputs"
    assert str(Path.home()) not in NOTEBOOK.read_text()
    assert "site-packages" not in NOTEBOOK.read_text()
