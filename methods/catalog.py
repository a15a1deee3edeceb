"""The registered methods. Their names need no torch: a method is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from methods.errors import UserError, shown
from methods.registry import Registry


def _check_method(name: str, method: Any) -> None:
    """Raises UserError unless what is registered under `name` is a whole `Method` class of that name."""
    # By its name, as the methods themselves: names alone need no torch.
    interface: Any = import_module("methods.base").Method
    where = f"method '{name}'"
    if not (isinstance(method, type) and issubclass(method, interface)):
        raise UserError(f"{where}: should be a subclass of methods.base.Method, got {shown(method)}")
    if lacking := sorted(getattr(method, "__abstractmethods__", ())):
        raise UserError(f"{where}: {method.__name__} does not define {', '.join(lacking)}")
    if getattr(method, "name", None) != name:
        raise UserError(f"{where}: {method.__name__} should have the name under which it is registered")


METHODS = Registry(
    "method",
    {
        "tenslora": "methods.tenslora:TensLoRA",
        "lora": "baselines.lora:LoRA",
        "head_only": "baselines.head_only:HeadOnly",
        "converged_head": "baselines.converged_head:ConvergedHead",
        "full": "baselines.full:FullFineTuning",
        "peft": "baselines.peft_method:Peft",
        "fact_tt": "baselines.fact:FacTTT",
        "fact_tk": "baselines.fact:FacTTK",
        "lotr": "baselines.lotr:LoTR",
        "lorta": "baselines.lorta:LoRTA",
        "cara": "baselines.cara:CaRA",
        "loretta_rep": "baselines.loretta_rep:LoRETTA",
        "loretta_adp": "baselines.loretta_adp:LoRETTAAdapter",
        "tt_lora": "baselines.tt_lora:TTLoRA",
        "metatt": "baselines.metatt:MetaTT",
        "trac": "baselines.trac:TRAC",
        "lora_xs": "baselines.lora_xs:LoRAXS",
        "quanta": "baselines.quanta:QuanTA",
        "cp": "baselines.cp_adapter:CPAdapter",
        "dota": "baselines.dota:DoTA",
    },
    _check_method,
)
