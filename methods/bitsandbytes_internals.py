"""What bitsandbytes, which peft imports, has no public switch for."""

from __future__ import annotations

import logging
import os

#: The kernels that bitsandbytes asks the package `kernels` for when it is imported, and who logs that they
#: are missing.
KERNELS, LOGGER = "kernels-community/quantization-bitsandbytes", "bitsandbytes.backends.cpu.ops"


def use_own_code() -> None:
    """Keeps bitsandbytes from downloading compiled kernels, and from warning that it has none.

    `kernels` is told to take them from a place with nothing in it.
    """
    places = dict.fromkeys([*os.environ.get("LOCAL_KERNELS", "").split(":"), f"{KERNELS}={os.devnull}"])
    os.environ["LOCAL_KERNELS"] = ":".join(filter(None, places))
    # The message names the owner of the kernels only.
    owner, _, _ = KERNELS.partition("/")
    logging.getLogger(LOGGER).addFilter(lambda record: owner not in record.getMessage())
