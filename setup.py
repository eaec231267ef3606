"""Package metadata; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """The version in autoscale/__init__.py, read as text: importing needs the dependencies."""
    text = (ROOT / "autoscale" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise ValueError('autoscale/__init__.py has no line __version__ = "..."')
    return found.group(1)


def read_readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="autoscale",
    version=read_version(),
    description="Scale-aware data mixing for pre-training language models, on DeepSpeed",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["autoscale", "autoscale.*"]),
    # Optional: without a compiler the data path runs on numpy alone, with the same results.
    ext_modules=[
        Extension(
            "autoscale._kernel",
            ["autoscale/_kernel.c"],
            extra_compile_args=["-O3"],
            libraries=["m"],
            optional=True,
        )
    ],
    package_data={
        "autoscale": ["py.typed", "templates/*", "downstream_tasks/*"],
        "autoscale.laws": ["README.md"],
    },
    install_requires=[
        "datasets>=4",
        "deepspeed~=0.19.8",  # patch releases of another minor version remove features
        "fsspec>=2024.2",
        "huggingface_hub>=1",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.9",
        "mpi4py>=4",
        "numpy>=2",
        "pyarrow>=16",
        "pydantic>=2.7",
        "rich>=13",
        "safetensors>=0.5",
        "scipy>=1.14",
        "tensorboard>=2.17",
        "tokenizers>=0.21",
        "torch>=2.6",
        "transformers>=5,<6",
        "typer>=0.15",
        "zstandard>=0.22",
    ],
    extras_require={
        "data-prep": ["datatrove>=0.10", "orjson>=3.10", "scikit-learn>=1.5"],
        "downstream": ["accelerate>=1.8", "lm_eval>=0.4.13", "pyyaml>=6"],
        "trees": ["lightgbm>=4"],
        "test": [
            "accelerate>=1.8",
            "datatrove>=0.10",
            "hypothesis>=6.100",
            "lightgbm>=4",
            "lightning>=2.5",
            "lm_eval>=0.4.13",
            "mypy>=1.15",
            "openmpi>=5",  # mpirun and libmpi
            "orjson>=3.10",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "ruff>=0.15",
            "scikit-learn>=1.5",
        ],
    },
    entry_points={"console_scripts": ["autoscale = autoscale.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
