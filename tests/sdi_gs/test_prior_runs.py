# SPDX-License-Identifier: Apache-2.0
"""A run of the program with a prior of every family, on splats and on a field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ..tiny import FIELD, FIELD_TERMS, save_settings


@pytest.mark.parametrize("representation", ["splats", "field"])
@pytest.mark.parametrize("family", ["sd15", "sd21v", "sdxl"])
def test_the_command_takes_a_step(
    family: str, representation: str, tmp_path: Path, prior_folders: Any, sdi_gs: Any
) -> None:
    more = {} if representation == "splats" else {"representation": FIELD, "terms": FIELD_TERMS}
    config = save_settings(tmp_path / "fast.yaml", tmp_path / "nothing", **more)
    folder, out = prior_folders(family), tmp_path / "run"
    said = sdi_gs(
        "generate", "a red mug", "--config", config, "--out", out, f"model.source={folder}",
        "steps=1", "output.turntable.frames=1", "output.preview_every=0",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert (out / "final.ply").exists() or (out / "final.glb").exists()
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["source"] == str(folder)
