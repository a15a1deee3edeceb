"""Everything that is stored about trials, in the form shared by training, the store and the reports.

Metrics score stored predictions.

This package imports neither MLflow nor torch. Fields that are missing in older stores have defaults, and
unknown fields of newer stores are ignored.
"""

from pydantic import BaseModel, ConfigDict


class Wired(BaseModel):
    """Base class of stored JSON content. It ignores unknown fields, so that other versions can read it."""

    model_config = ConfigDict(frozen=True, extra="ignore")
