"""Finds a suite's YAML file and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorbench.methods import UnknownNameError, UserError, load_methods
from tensorbench.methods.validation import validate
from tensorbench.plan import PACKAGED
from tensorbench.plan.suite import Suite, source_text
from tensorbench.plan.yaml_text import parse, read_text, written

#: The fields of a backbone that a checkpoint in its place keeps.
KEPT = ("dtype", "quantise", "image_size")


def suite_path(source: Path | str) -> Path:
    """Returns the path of a suite's file. `source` is the path, or the name of a packaged suite.

    A file of the user's comes first. Raises UserError if there is neither.
    """
    path = Path(source)
    if path.is_file() or path.suffix or path.name != str(source):
        return path
    packaged = {file.stem: file for file in PACKAGED.glob("*.yaml")}
    if path.name not in packaged:
        raise UnknownNameError("file or packaged suite", path.name, packaged)
    return packaged[path.name]


def load_suite(
    source: Path | str | Mapping[str, Any],
    *,
    data: Path | str | None = None,
    backbones: Sequence[Path | str] = (),
) -> Suite:
    """Reads and validates a suite.

    Args:
        source: A suite's file, the name of a packaged suite, or a dictionary of a suite's fields. Relative
            paths in a file start at the file's folder, and those in a dictionary at the working folder. Files
            that its methods name are run.
        data: A folder that replaces the suite's `source`.
        backbones: Folders of checkpoints that replace the suite's backbones. They keep `dtype`, `quantise`
            and `image_size`. A suite of one timm model takes its safetensors file.

    Raises:
        UserError: with the file, field, value and accepted values.
    """
    if isinstance(source, Mapping):
        fields = _replaced(source, data, backbones)
        suite = validate(Suite, _with_methods(fields, Path.cwd(), "suite"), "suite")
        # Keep the paths as the author wrote them, since `beside` makes them absolute on this machine.
        return suite.beside(Path.cwd()).read_from(suite.file)
    path = suite_path(source)
    try:
        text = read_text(path)
        values = parse(text)
    except OSError as error:
        raise UserError(f"cannot read suite {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a suite is a mapping with the fields {', '.join(Suite.model_fields)}")
    if (replaced := _replaced(values, data, backbones)) != values:
        values, text = replaced, written(replaced)
    values = _with_methods(values, path.parent, str(path))
    suite = validate(Suite, values, str(path)).beside(path.parent)
    return suite.read_from(source_text(path.name, text))


def _replaced(
    values: Mapping[str, Any], data: Path | str | None, backbones: Sequence[Path | str]
) -> dict[str, Any]:
    """Returns a suite's fields with another `source` and other `backbones`, as `load_suite` takes them.

    Raises UserError if the suite's backbones differ in what the new ones would keep.
    """
    replaced = dict(values)
    if data is not None:
        replaced["source"] = {"local": str(Path(data).expanduser().absolute())}
    if backbones:
        rows = [row if isinstance(row, dict) else {} for row in values.get("backbones") or ()]
        kept = [{key: row[key] for key in ("timm", *KEPT) if key in row} for row in rows] or [{}]
        if any(row != kept[0] for row in kept):
            raise UserError(f"its backbones differ in timm, {', '.join(KEPT)}: edit the suite instead")
        places = [str(Path(place).expanduser().absolute()) for place in backbones]
        replaced["backbones"] = [{**kept[0], "local": place} for place in places]
    return replaced


def _with_methods(values: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Runs the files that rows of methods name, and gives each row the name of its file's method.

    Relative paths start at `folder`. Raises UserError as `load_methods` does, and for a file with several
    methods if the row names none.
    """
    rows = values.get("methods")
    if not isinstance(rows, list):
        return values
    named = []
    for number, row in enumerate(rows):
        if isinstance(row, dict) and isinstance(row.get("file"), str):
            try:
                names = load_methods(folder / Path(row["file"]).expanduser())
                if "method" not in row and len(names) > 1:
                    raise UserError(f"it defines {', '.join(names)}: name one as method")
                if (name := row.get("method", names[0])) not in names:
                    raise UnknownNameError("method of it", str(name), names)
            except UserError as error:
                raise UserError(f"{where}: methods.{number}.file: {error}") from error
            row = {"method": name, **row}
        named.append(row)
    return {**values, "methods": named}
