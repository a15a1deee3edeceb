"""Installs the folders as packages of `tensorbench`, and stores the commit there."""

import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent

#: The folders of the packages. Those of further packages lie in them.
FOLDERS = {
    "tensorbench": "bench",
    "tensorbench.methods": "methods",
    "tensorbench.baselines": "baselines",
    "tensorbench.reports": "reports",
}


def commit() -> str:
    """Returns the commit and, in further lines, what `git status` says. Empty outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "pyproject.toml")
        return "\n".join([git("rev-parse", "HEAD"), *git("status", "--porcelain").splitlines()])
    except (OSError, subprocess.CalledProcessError):
        return ""


def store(text: str, folder: Path) -> None:
    """Writes the text to commit.txt in a folder, unless a source distribution brings its own."""
    if text:
        (folder / "commit.txt").write_text(text + "\n", encoding="utf-8")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            store(commit(), Path(self.build_lib) / "tensorbench")


class SDist(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        # The tree itself would be an untracked folder of the checkout.
        text = commit()
        super().make_release_tree(base_dir, files)
        store(text, Path(base_dir) / "bench")


def packages() -> list[str]:
    inside = ((package, below) for package, folder in FOLDERS.items() for below in find_packages(folder))
    return [*FOLDERS, *(f"{package}.{below}" for package, below in inside)]


setup(
    packages=packages(),
    package_dir=FOLDERS,
    cmdclass={"build_py": BuildPy, "sdist": SDist},
)
