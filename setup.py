"""Stores the commit in distributions that are built from a checkout, so that installed copies know it."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent


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


def store(text: str, folder: str) -> None:
    """Writes the text to bench/commit.txt below a folder, unless a source distribution brings its own."""
    if text:
        (Path(folder) / "bench" / "commit.txt").write_text(text + "\n", encoding="utf-8")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            store(commit(), self.build_lib)


class SDist(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        # The tree itself would be an untracked folder of the checkout.
        text = commit()
        super().make_release_tree(base_dir, files)
        store(text, base_dir)


setup(cmdclass={"build_py": BuildPy, "sdist": SDist})
