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


# Of these, classes and functions are used that carry no promise beyond the tested minor version.
INTERNALS = ("torch", "diffusers", "transformers", "gradio")


def compatible(requirement: str) -> str:
    """An exact pin as the range an installed wheel asks for: from the tested version on, to the end of its promise."""
    name, version = requirement.split("==")
    major, minor = version.split(".")[:2]
    end = f"{major}.{int(minor) + 1}" if name in INTERNALS or major == "0" else str(int(major) + 1)
    return f"{name}>={version},<{end}"


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
        "neti.models.backbone.files": ["families/*", "families/*/*", "families/*/*/*"],
        "neti.training": ["py.typed"],
        "neti.training.app.page": ["style.css", "phone.html"],
        "neti.utils": ["py.typed"],
    },
    # exact pins live in environment/requirements.txt
    install_requires=[compatible(line) for line in requirements("requirements.txt")],
    extras_require={
        extra: [compatible(line) for line in requirements(f"requirements-{extra}.txt")] for extra in ("app", "cluster")
    },
)
