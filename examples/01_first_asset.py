# SPDX-License-Identifier: Apache-2.0
"""A 3D asset from a sentence, and its files.

    python examples/01_first_asset.py "a red mug"

One to three minutes on two CPU cores: the small diffusion model that ships with the package is
enough, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

try:
    import sdi_gs
except ImportError:
    raise SystemExit("sdi_gs is not installed: run 'make setup', then .venv/bin/python") from None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="a red mug")
    parser.add_argument("--steps", type=int, help="of the optimisation; default: the preset's")
    parser.add_argument("--out", type=Path, default=Path("first_asset"), help="a new folder")
    options = parser.parse_args()

    # Progress is shown as it goes; Ctrl-C saves, and sdi_gs.resume(folder) goes on.
    asset = sdi_gs.generate(
        options.prompt, preset="mini", seed=3, steps=options.steps, out=options.out / "run"
    )

    # The ending of a file says its format.
    for name in ("asset.ply", "asset.splat", "asset.glb"):
        print(options.out / name, "holds", asset.save(options.out / name))
    print(asset.turntable(options.out / "turntable.gif", frames=24, size=192))


if __name__ == "__main__":
    main()
