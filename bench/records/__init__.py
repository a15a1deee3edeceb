"""The stored words and records that training, the store and the reports share.

Nothing here knows MLflow or torch. Fields that a store of an earlier version lacks have a default, and fields
that a later one adds are passed over.
"""

from pydantic import BaseModel, ConfigDict


class Wired(BaseModel):
    """A stored record, which other versions read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
