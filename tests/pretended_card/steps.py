# SPDX-License-Identifier: Apache-2.0
"""What one step of a run sends to the card and reads from it, as JSON."""

from __future__ import annotations

import json

from . import counting


def main(arguments: list[str]) -> int:
    """``CONFIG METHOD [KEY=VALUE]...``: the third step, in which no structure changes."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.trainer import train_step

    config, method, *more = arguments
    training = build.training(load(config, ["prompt=a mug", "batch=2", "steps=50", *more], method))
    train_step(training, 1)
    counting.COUNTED.clear()
    train_step(training, 2)
    print(json.dumps([[*key, number] for key, number in sorted(counting.COUNTED.items())]))
    return 0
