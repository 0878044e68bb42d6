"""Packaging: the top-level folders are installed as the sub-packages of one import name, ``neti``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# every sub-package, so that none can be forgotten: one that is missing works in editable mode and fails in a wheel
PACKAGES = {
    f"neti.{package}": package.replace(".", "/")
    for package in find_packages(str(ROOT), include=["models*", "training*", "utils*"])
}


def requirements(name: str) -> list[str]:
    """The pinned requirements of one file, comments and blank lines left out."""
    lines = (ROOT / "environment" / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "-"))]


setup(
    name="neti",
    version="0.1.0",
    description="Personalise text-to-image diffusion models with a neural space-time representation",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "neti.models": ["py.typed", "miniature/*", "miniature/*/*", "miniature/*/*/*"],
        "neti.training": ["py.typed"],
        "neti.utils": ["py.typed"],
    },
    # exact pins live in environment/requirements.txt; an installed wheel only asks for the families it was tested with
    install_requires=[line.replace("==", ">=") for line in requirements("requirements.txt")],
)
