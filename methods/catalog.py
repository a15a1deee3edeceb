"""The registered methods by name. A method, and torch with it, is imported when it is first used."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorbench.methods.errors import UserError, naming_extra, shown
from tensorbench.methods.registry import PythonFile, Registry

if TYPE_CHECKING:
    from tensorbench.methods.base import Method


def _check_method(name: str, method: Any) -> None:
    """Raises UserError unless a registered object is a concrete `Method` class of this name."""
    from tensorbench.methods.base import Method
    from tensorbench.methods.validation import plain

    where = f"method '{name}'"
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(
            f"{where}: should be a subclass of tensorbench.methods.base.Method, got {shown(method)}"
        )
    if lacking := sorted(getattr(method, "__abstractmethods__", ())):
        raise UserError(f"{where}: {method.__name__} does not define {', '.join(lacking)}")
    if getattr(method, "name", None) != name:
        raise UserError(f"{where}: {method.__name__} should have the name under which it is registered")
    if name == "all" or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise UserError(
            f"{where}: its name should be letters, digits, '_', '.', '+' and '-', a letter or digit first. "
            "'all' stands for all methods"
        )
    for field, declared in method.model_fields.items():
        default = None if declared.is_required() else declared.get_default(call_default_factory=True)
        try:
            plain(default)
        except ValueError as error:
            raise UserError(
                f"{where}: the default of {field} is {shown(default)}, which JSON cannot hold: take "
                "a number, a text or a list"
            ) from error


def _of_peft(name: str) -> str:
    """Returns how to write a type of peft that is asked for as a method. Empty for any other name."""
    if name.lower() in METHODS:
        return ""
    try:
        types = import_module("tensorbench.baselines.peft_types")
    except ImportError:
        return ""
    kind = name.upper()
    accepted = kind in types.peft_types() and kind not in types.REFUSED
    return f"write {{method: peft, type: {kind}}};" if accepted else ""


#: Options that built-in methods no longer have, each with the value at which it did nothing. Stored methods
#: may hold them.
RETIRED: dict[str, Any] = {"cuts": None}

METHODS = Registry(
    "method",
    {
        "tenslora": "tensorbench.methods.tenslora:TensLoRA",
        "lora": "tensorbench.baselines.lora:LoRA",
        "head_only": "tensorbench.baselines.head_only:HeadOnly",
        "converged_head": "tensorbench.baselines.head_only:ConvergedHead",
        "full": "tensorbench.baselines.full:FullFineTuning",
        "peft": "tensorbench.baselines.peft_types:Peft",
        "fact_tt": "tensorbench.baselines.fact:FacTTT",
        "fact_tk": "tensorbench.baselines.fact:FacTTK",
        "lotr": "tensorbench.baselines.lotr:LoTR",
        "lorta": "tensorbench.baselines.lorta:LoRTA",
        "cara": "tensorbench.baselines.cara:CaRA",
        "loretta_rep": "tensorbench.baselines.loretta:LoRETTA",
        "loretta_adp": "tensorbench.baselines.loretta:LoRETTAAdapter",
        "tt_lora": "tensorbench.baselines.tt_lora:TTLoRA",
        "metatt": "tensorbench.baselines.metatt:MetaTT",
        "trac": "tensorbench.baselines.trac:TRAC",
        "lora_xs": "tensorbench.baselines.lora_xs:LoRAXS",
        "quanta": "tensorbench.baselines.quanta:QuanTA",
        "cp": "tensorbench.baselines.cp_adapter:CPAdapter",
        "dota": "tensorbench.baselines.dota:DoTA",
        "cdka": "tensorbench.baselines.cdka:CDKA",
        "abba": "tensorbench.baselines.abba:ABBA",
        "flora": "tensorbench.baselines.flora:FLoRA",
        "more": "tensorbench.baselines.more:MoRe",
        "loha_kr": "tensorbench.baselines.loha_kr:KhatriRaoLoHa",
        "kadaptation": "tensorbench.baselines.kadaptation:KAdaptation",
        "kradapter": "tensorbench.baselines.kradapter:KRAdapter",
    },
    _check_method,
    _of_peft,
)


def load_methods(file: Path | str | PythonFile) -> list[str]:
    """Runs a Python file, registers the methods that it defines, and returns their names.

    The methods are the file's own subclasses of `Method` that set a `name`. The file should need no module
    beside it. Raises UserError if the file cannot be read, fails or defines no method, and if another method
    already has one of the names, in the file or elsewhere.
    """
    with naming_extra():
        from tensorbench.methods.base import Method

    if not isinstance(file, PythonFile):
        path = Path(file).expanduser().absolute()
        try:
            file = PythonFile(path, path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    module = file.run()
    names: dict[str, str] = {}
    for attribute, kind in vars(module).items():
        if (
            isinstance(kind, type)
            and issubclass(kind, Method)
            and kind.__module__ == module.__name__
            and isinstance(vars(kind).get("name"), str)
        ):
            other = names.setdefault(kind.name, attribute)
            if getattr(module, other) is not kind:
                raise UserError(
                    f"{file.path}: {other} and {attribute} both have the name '{kind.name}': give one another"
                )
    if not names:
        raise UserError(
            f"{file.path} defines no method: no subclass of tensorbench.methods.Method with a `name`"
        )
    METHODS.add(file, names)
    return list(names)


def create(name: str, /, **options: Any) -> Method:
    """Builds a registered method from its options, for example `create("lora", rank=4)`.

    Raises UserError for an unknown name, an unknown option or a bad value.
    """
    kind = METHODS.get(name)
    with METHODS.blaming(name):
        method: Method = kind.from_options(options, f"method '{name}'")
        title: object = method.title
        if not (isinstance(title, str) and title.strip() and title.isprintable()):
            raise UserError(f"title should be one line of text, or a property, got {shown(title)}")
        return method


def from_identity(identity: Mapping[str, Any]) -> Method:
    """Builds a method from its stored form, or from its identity (see `Method.stored`, `Method.identity`).

    Raises UserError if there is no name or version, if the version is not the method's current one, and as
    `create` does. Options in `RETIRED` are left out where they did nothing. Runs no file, even if a stored
    suite names one.
    """
    if not {"method", "version"} <= identity.keys():
        raise UserError(f"a stored method has a name and a version (got {shown(dict(identity))})")
    if str(identity["method"]) not in METHODS:
        raise UserError(
            f"method {shown(identity['method'])} is not known here: install its plug-in, or name its file "
            "(`tensorbench --method-file FILE COMMAND`)"
        )
    options = {key: value for key, value in identity.items() if key not in ("method", "version")}
    if METHODS.is_built_in(str(identity["method"])):
        options = {key: value for key, value in options.items() if RETIRED.get(key, ...) != value}
    method = create(identity["method"], **options)
    if method.version != identity["version"]:
        raise UserError(
            f"method '{method.name}' is at version {method.version}, the stored one is {identity['version']}"
        )
    return method


def identity_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a trial's id that identifies a stored method (see `Method.stored`).

    For a built-in method, this is its `Method.identity`. For a method from a plug-in or a file, the part has
    all options, because no test pins their defaults. So the id stays right if the author changes a default,
    and it can be computed where the method is not installed. Raises UserError as `from_identity` does.
    """
    if not METHODS.is_built_in(str(stored.get("method"))):
        return dict(stored)
    return dict(_identity_of(json.dumps(stored)))


@lru_cache(maxsize=4096)
def _identity_of(stored: str) -> dict[str, Any]:
    return from_identity(json.loads(stored)).identity()
