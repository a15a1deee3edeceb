"""The packages that `tools.gpu` needs beyond torch, transformers, peft and timm, and those it must not need.

Only the standard library is imported here, so that this module works where everything else is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

#: The distributions, by the name under which each is imported. Distributions that others require are listed
#: too, because pip is called with --no-deps. The harness is included, since its version is recorded.
WHEELS = {
    "tensorbench": "tensorpeft-bench",
    "platformdirs": "platformdirs",
    "tensorly": "tensorly",
    "tltorch": "tensorly-torch",
    "scipy": "scipy",
    "ruamel.yaml": "ruamel.yaml",
    "pandas": "pandas",
    "dateutil": "python-dateutil",
    "pyarrow": "pyarrow",
    "sklearn.metrics": "scikit-learn",
    "joblib": "joblib",
    "cloudpickle": "cloudpickle",
    "narwhals": "narwhals",
    "threadpoolctl": "threadpoolctl",
}

#: Packages that a GPU machine does not need: the store, the search and the hub's data sets.
UNNEEDED = ("mlflow", "optuna", "datasets")


def missing() -> list[str]:
    """The distributions of `WHEELS` that cannot be imported here, with the reason."""
    failures = []
    for module, name in WHEELS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            failures.append(f"{name} ({error})")
    return failures


def instructions(lacking: Sequence[str]) -> str:
    """The list of missing distributions, with instructions for a machine without network."""
    return "\n".join(
        [
            f"needs, beyond torch, transformers, peft and timm: {', '.join(WHEELS.values())}",
            f"missing here: {', '.join(lacking) if lacking else 'none'}",
            "to bring them: pip download --no-deps -d wheels NAME, and for the harness itself",
            "  pip wheel --no-deps -w wheels . ; there pip install --no-index --no-deps wheels/*.whl",
        ]
    )


def refuse() -> None:
    """Makes this process fail to import `UNNEEDED`, as if they were not installed."""
    for name in UNNEEDED:
        sys.modules[name] = None  # type: ignore[assignment]
