"""The stored words and records shared by training, the store and the reports.

Nothing here knows MLflow or torch. Fields missing in older stores have defaults, and unknown fields of newer
stores are ignored.
"""

from pydantic import BaseModel, ConfigDict


class Wired(BaseModel):
    """A stored record that other versions can read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
