# SPDX-License-Identifier: Apache-2.0
"""What the page and the server share."""

from __future__ import annotations

from dataclasses import dataclass

from .gallery import Gallery
from .outputs import Outputs
from .queue import Queue


@dataclass(frozen=True)
class Studio:
    """One outputs folder with what is made in it and what lies there."""

    outputs: Outputs
    queue: Queue
    gallery: Gallery
