"""A point of a search: ranks, and the rates and scale that are searched with them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench.plan.settings import Setting
from bench.search.space import Ranks


@dataclass(frozen=True)
class Point:
    """What one trial of the search tries."""

    ranks: Ranks
    setting: Setting

    @property
    def key(self) -> str:
        """A text that is equal for equal points, and that `of` reads."""
        return json.dumps([self.ranks, self.setting.model_dump(exclude_none=True)])

    @classmethod
    def of(cls, key: str) -> Point:
        """The point of this key."""
        ranks, setting = json.loads(key)
        return cls(tuple(ranks), Setting.model_validate(setting))
