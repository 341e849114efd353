# SPDX-License-Identifier: Apache-2.0
"""Programs on a pretended card:

    python -m tests.pretended_card sdi_gs ARGUMENTS
    python -m tests.pretended_card FILE.py ARGUMENTS
    python -m tests.pretended_card --jobs FILE

FILE holds a JSON list of jobs ``{"arguments": [...], "breaks": "memory@module:name@3"}``, which are
done one after the other in one process, for the sake of its imports; a job for the program FILE.py
has it as "program", and one with "gsplat" finds gsplat compiled: its twin of plain torch. What came
of each takes its place: exit code, seconds of the processor, what it said, and what it sent and
read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import kernels, make


def _run(program: str, arguments: list[str]) -> int:
    if program == "sdi_gs":
        from sdi_gs.cli.main import main

        sys.argv = ["sdi-gs", *arguments]
        return main(arguments)
    if program == "steps":
        from . import steps

        return steps.main(arguments)
    sys.path.insert(0, str(Path(program).parent))
    sys.argv = [program, *arguments]
    spec = importlib.util.spec_from_file_location(Path(program).stem, program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code: int = module.main(arguments)
    return code


def _job(job: dict[str, Any]) -> dict[str, Any]:
    from . import breaks, counting

    counting.COUNTED.clear()
    out, err = io.StringIO(), io.StringIO()
    # Warnings go to where stderr was when they were set up.
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    began = time.process_time()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        breaks.broken(job.get("breaks", "")),
        _compiled_gsplat() if job.get("gsplat") else contextlib.nullcontext(),
    ):
        code = _run(job.get("program", "sdi_gs"), job["arguments"])
    seconds = round(time.process_time() - began, 1)
    logging.getLogger().removeHandler(handler)
    crossed = [[*key, number] for key, number in counting.COUNTED.items()]
    return {
        "code": code,
        "seconds": seconds,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "crossed": crossed,
    }


@contextlib.contextmanager
def _compiled_gsplat() -> Iterator[None]:
    """gsplat as a card has it, by its twin."""
    from representations.ops.splats import gsplat_splats
    from tests.representations.gsplat_twin import rasterization

    before = gsplat_splats._rasterization
    gsplat_splats._rasterization = lambda: rasterization
    try:
        yield
    finally:
        gsplat_splats._rasterization = before


def _coarse() -> None:
    """Triangles from a lattice of 16 points in each direction instead of 128, and only the first
    job estimates the memory that it needs."""
    from sdi_gs import budget
    from sdi_gs.assets import MeshOptions

    first = [budget.require_card]
    budget.require_card = lambda *given: first.pop()(*given) if first else None

    made: Any = MeshOptions.__init__
    made.__defaults__ = (16, *made.__defaults__[1:])


def main() -> int:
    torch.set_num_threads(1)
    make()
    kernels.widen()
    first, *arguments = sys.argv[1:]
    if first != "--jobs":
        return _run(first, arguments)
    _coarse()
    path = Path(arguments[0])
    path.write_text(json.dumps([_job(job) for job in json.loads(path.read_text())]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
