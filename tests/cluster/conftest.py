# SPDX-License-Identifier: Apache-2.0
"""Sweeps on a real SLURM of one node that is started for them. ``make test-cluster`` runs them;
``make test`` does not, since they take minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..sdi_gs.conftest import sdi_gs
from . import one_node

__all__ = ["sdi_gs"]

WANTED = "SDI_GS_TEST_CLUSTER"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of one node with two processors, in the environment of this process and its children;
    the folder of its files."""
    if os.environ.get(WANTED) != "1":
        pytest.skip("takes minutes: make test-cluster runs it")
    lacking = one_node.lacking()
    if lacking:
        pytest.skip(lacking)
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    with one_node.running(folder) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        one_node.wait_until_idle()
        yield folder
