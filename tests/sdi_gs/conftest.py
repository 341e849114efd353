# SPDX-License-Identifier: Apache-2.0
"""A model folder of random weights, for tests of everything around the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from ..programs import Forked, Here, started_by
from ..stopping import interrupt, stop_at
from ..tiny import FIELD, FIELD_TERMS, save_model, save_settings
from ..tiny_priors import ADAPTED, FAMILIES


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder as save_pretrained writes it: 16-pixel pictures, 8x8 latents."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def prior_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each family, made when it is first asked for."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def made(name: str) -> Path:
        return (FAMILIES | ADAPTED)[name](root / name)

    return made


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def sdi_gs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run the command line in this process, as the installed script does."""
    from sdi_gs.cli.main import main

    monkeypatch.setattr("sys.argv", ["sdi-gs"])

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def fast(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose whole run takes well under a second."""
    return save_settings(tmp_path_factory.mktemp("configs") / "fast.yaml", tiny_model)


@pytest.fixture(scope="session")
def field_config(fast: Path) -> Path:
    """The fast configuration of the splat tests with a field in place of the splats."""
    source = Path(yaml.safe_load(fast.read_text())["model"]["source"])
    path = fast.with_name("field.yaml")
    return save_settings(path, source, representation=FIELD, terms=FIELD_TERMS)


@pytest.fixture
def interrupted(
    sdi_gs: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """The command line with a Ctrl-C after the third step of the run that it starts."""

    def run(*arguments: object) -> Said:
        with monkeypatch.context() as patch:
            stop_at(patch, 2, interrupt)
            said = sdi_gs(*arguments)
        assert said.code == 130, said.err
        return said

    return run


@pytest.fixture
def programs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of studies run in this process; tests of sweeps and of stops have others."""
    started_by(monkeypatch, Here)


@pytest.fixture
def programs_forked(monkeypatch: pytest.MonkeyPatch) -> type[Forked]:
    """Our programs are forks of this process, also those that they start themselves."""
    started_by(monkeypatch, Forked)
    return Forked
