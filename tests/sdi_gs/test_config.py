# SPDX-License-Identifier: Apache-2.0
"""Settings: strict, typed by their fields, and the same after a round trip through a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sdi_gs import config as configs
from sdi_gs.config import Config, dump, from_plain, guidances, load, overlay, presets
from sdi_gs.guidance.noise import DDIMInversion, FixedNoise, IntervalInversion, RandomNoise
from sdi_gs.ramp import Ramp
from sdi_gs.strict import ConfigError


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [
        ("step=3", "steps"),
        ("guidance.cfgscale=2", "cfg_scale"),
        ("guidance.t.hihg.start=1", "high"),
        ("noise.entropi=0", "entropy"),
        ("representation.densify.evry=3", "every"),
        ("representation.max_cnt=3", "max_count"),
        ("views.distanc=[1,2]", "distance"),
        ("output.turntable.sise=64", "size"),
    ],
)
def test_an_unknown_key_names_the_nearest(assignment: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean '{nearest}'\?") as caught:
        load(None, [assignment])
    named = str(caught.value).split("'")[1]
    assert assignment.startswith(named)


@pytest.mark.parametrize("key", ["stepps", "guidance.cfg", "noise.sigma", "views.foo.bar"])
def test_an_unknown_key_in_a_file_is_refused_too(key: str, tmp_path: Path) -> None:
    tree: object = 1
    for part in reversed(key.split(".")):
        tree = {part: tree}
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown setting"):
        load(str(path))


@pytest.mark.parametrize(
    ("assignment", "where"),
    [
        ("steps=many", "steps"),
        ("steps=0", "steps"),
        ("steps=1.5", "steps"),
        ("seed=-1", "seed"),
        ("batch=true", "batch"),
        ("guidance.cfg_scale=high", "guidance"),
        ("guidance.t.high.start=[1, 2]", "guidance"),
        ("views.distance=3", "views"),
        ("views.distance=[3, 1]", "views"),
        ("device=gpu", "device"),
        ("model.dtype=int8", "model.dtype"),
        ("background.color=[2, 0, 0]", "background"),
        ("representation.count=a few", "representation"),
        ("representation.init.opacity=2", "representation"),
        ("output.turntable.format=avi", "output.turntable.format"),
        ("noise.kind=sds", "noise.kind"),
        ("terms.opaque=heavy", "terms.opaque"),
    ],
)
def test_a_wrong_type_or_value_names_its_field(assignment: str, where: str) -> None:
    with pytest.raises(ConfigError, match=where.replace(".", r"\.")):
        load(None, [assignment])


@pytest.mark.parametrize("word", ["steps", "=3", ""])
def test_a_word_without_a_value_is_explained(word: str) -> None:
    with pytest.raises(ConfigError, match="key=value") as caught:
        load(None, [word])
    load(None, str(caught.value).split("example ")[1].split(" or "))  # the examples exist


@pytest.mark.parametrize(
    "prompt",
    ["a b: c, [d] #e", "yes", "null", "1e-3", "#x", "${home}", "k=v=w", "'quoted\"", "*a &b", "ü"],
)
def test_a_prompt_is_never_read_as_yaml(prompt: str, tmp_path: Path) -> None:
    config = load(None, [f"prompt={prompt}"])
    assert config.prompt == prompt
    path = tmp_path / "a.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(str(path)) == config


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_survives_override_and_dump(prompt: str) -> None:
    config = load(None, [f"prompt={prompt}"])
    assert config.prompt == prompt
    assert from_plain(yaml.safe_load(dump(config))).prompt == prompt


def test_overrides_are_typed_by_their_field() -> None:
    config = load(
        None,
        ["seed=7", "guidance.cfg_scale=1e-1", "views.fov_y_deg=[30, 40]", "threads=null",
         "views.stratified=false", "terms.opaque=0.1", "guidance.t.low={start: 0.1, end: 0.2}",
         "model.source=1e-3"],
    )  # fmt: skip
    assert config.seed == 7
    assert config.guidance.cfg_scale.start == pytest.approx(0.1)
    assert config.views.fov_y_deg == (30.0, 40.0)
    assert config.threads is None
    assert config.views.stratified is False
    assert config.terms == {"opaque": Ramp(0.1, 0.1)}
    assert config.guidance.t.low == Ramp(0.1, 0.2)
    assert config.model.source == "1e-3"


def test_a_new_kind_forgets_the_fields_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("noise: {kind: ddim_inversion, entropy: 0.1}\n", encoding="utf-8")
    assert load(str(path)).noise == DDIMInversion(entropy=0.1)
    assert load(str(path), ["noise.kind=random"]).noise == RandomNoise()
    assert load(str(path), ["noise=fixed", "noise.seed=4"]).noise == FixedNoise(seed=4)
    assert load(str(path), ["noise={kind: fixed, seed: 5}"]).noise == FixedNoise(seed=5)
    with pytest.raises(ConfigError, match="entropy"):
        load(str(path), ["noise.kind=random", "noise.entropy=0.2"])


def test_a_preset_may_stand_on_another(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("steps: 5\nnoise: {kind: fixed, seed: 3}\n")
    (tmp_path / "same.yaml").write_text("base: low.yaml\nnoise: {kind: fixed}\nbatch: 2\n")
    (tmp_path / "other.yaml").write_text("base: low.yaml\nnoise: {kind: random}\n")
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    same = load(str(tmp_path / "same.yaml"))
    assert (same.steps, same.batch, same.noise) == (5, 2, FixedNoise(seed=3))
    assert load(str(tmp_path / "other.yaml")).noise == RandomNoise()
    with pytest.raises(ConfigError, match="leads back"):
        load(str(tmp_path / "loop.yaml"))


def test_overlay_leaves_its_arguments_alone() -> None:
    lower = {"a": {"b": 1, "c": 2}}
    assert overlay(lower, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert lower == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("kind", ["gaussians", "instant_ngp"])
@pytest.mark.parametrize("path", ["steps", "seed", "init.seed"])
def test_what_the_run_says_is_no_setting_of_a_part(path: str, kind: str, tmp_path: Path) -> None:
    """Steps and seed are the run's: a representation is told them when it is made."""
    if path == "init.seed" and kind == "instant_ngp":
        path = "grid.seed"
    with pytest.raises(ConfigError, match=re.escape(f"unknown setting 'representation.{path}'")):
        load(None, [f"representation.kind={kind}", f"representation.{path}=3"])
    tree: object = 3
    for part in reversed(path.split(".")):
        tree = {part: tree}
    assert isinstance(tree, dict)
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"representation": {"kind": kind, **tree}}))
    with pytest.raises(ConfigError, match="unknown setting"):
        load(str(file))
    written = configs.to_plain(load(None, [f"representation.kind={kind}"]))["representation"]
    *sections, last = path.split(".")
    for section in sections:
        written = written[section]
    assert last not in written


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_loads_says_why_it_exists_and_survives_a_round_trip(name: str) -> None:
    config = load(name)
    assert len(presets()[name].split()) > 4
    assert (configs.presets_dir() / f"{name}.yaml").read_text().startswith("# ")
    assert from_plain(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_holds_only_what_differs_from_what_lies_below(name: str) -> None:
    tree = configs.read_tree(configs.presets_dir() / f"{name}.yaml")
    base = tree.pop("base", None)
    below = configs.to_plain(load(base) if base else Config())
    assert list(repeated(tree, below)) == []


def repeated(tree: dict[str, object], below: dict[str, object], path: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        under = below.get(key)
        where = f"{path}.{key}".lstrip(".")
        ramp = isinstance(value, dict) and "start" in value  # a value, given whole or not at all
        if isinstance(value, dict) and isinstance(under, dict) and not ramp:
            if value.get("kind", under.get("kind")) == under.get("kind"):
                found += repeated(value, under, where)
        elif value == under and key != "kind":
            found.append(where)
    return found


def test_the_whole_has_the_presets_of_the_package() -> None:
    wanted = {"mini", "mini_nerf", "sdi_gaussians", "sdi_nerf", "sdi_released"}
    assert wanted <= set(presets())


@pytest.mark.parametrize("preset", ["mini", "mini_nerf", "sdi_gaussians", "sdi_nerf"])
@pytest.mark.parametrize("name", guidances())
def test_every_method_can_replace_that_of_every_preset(name: str, preset: str) -> None:
    own, changed = load(preset), load(preset, guidance=name)
    assert (changed == own) == (name == "sdi")
    assert changed.representation == own.representation
    assert changed.terms == own.terms
    assert len(guidances()[name]) > 30  # says what it is and where it is from
    assert "arXiv" in guidances()[name]


def test_a_number_stands_for_a_ramp_that_stays_there(tmp_path: Path) -> None:
    """As a file and as an override, in both directions, and in what is written."""
    for assignments, expected in (
        (["guidance.cfg_scale=2"], Ramp(2.0, 2.0)),
        (["guidance.cfg_scale=2", "guidance.cfg_scale.end=1"], Ramp(2.0, 1.0)),
        (["guidance.cfg_scale={start: 2, end: 1, over: 50}"], Ramp(2.0, 1.0, 50)),
        (["guidance.cfg_scale={start: 2, end: 1}", "guidance.cfg_scale=3e-1"], Ramp(0.3, 0.3)),
    ):
        config = load(None, assignments)
        assert config.guidance.cfg_scale == expected
        written = yaml.safe_load(dump(config))["guidance"]["cfg_scale"]
        assert written == (expected.start if expected.start == expected.end else vars(expected))
        path = tmp_path / "run.yaml"
        path.write_text(dump(config))
        assert load(str(path)) == config
    with pytest.raises(ConfigError, match=r"noise.entropy=-1"):
        load(None, ["noise.entropy={start: 0.3, end: -1}"])
    with pytest.raises(ConfigError, match="did you mean 'start'"):
        load(None, ["guidance.cfg_scale={strat: 1, end: 1}"])


def test_a_method_has_its_published_settings_except_on_mini() -> None:
    published, mini = (load(preset, guidance="ism") for preset in ("sdi_gaussians", "mini"))
    assert published.noise == IntervalInversion(interval=Ramp(0.1, 0.05, 1500))
    assert published.guidance.cfg_scale.start == 7.5
    assert published.guidance.t.high == Ramp(0.98, 0.5, 1500)
    assert mini.noise == IntervalInversion(interval=Ramp(0.1, 0.05))
    assert mini.guidance.cfg_scale == Ramp(2.0, 2.0)
    assert mini.guidance.t.high == Ramp(0.98, 0.5)
    assert load("sdi_gaussians", guidance="nfsd").negative_prompt.startswith("unrealistic, blurry")
    assert load("mini", guidance="nfsd").negative_prompt == ""
    # What is said at the command line comes last.
    assert load("mini", ["guidance.cfg_scale=5"], "ism").guidance.cfg_scale == Ramp(5.0, 5.0)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"guidance=isn: did you mean 'ism'\?"):
        load("mini", guidance="isn")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB + "prompt: *a11\n", r"aliases \(\*name\) are not read"),
        ("prompt: " + "[" * 5000, "nested too deeply"),
        ("steps: 2020-99-99\n", "cannot be read|not a readable"),
        ("steps: 0x\n", "steps"),
        ("steps: " + "9" * 5000 + "\n", "not a readable"),
        ("[1, 2]: 3\n", "a key that is no word"),
        ("noise: {kind: [1]}\n", "noise.kind"),
        ("guidance: {cfg_scale: .inf}\n", "guidance.cfg_scale: got inf"),
        ("guidance: {cfg_scale: .nan}\n", "guidance.cfg_scale: got nan"),
        ("prompt: x\n" + "# " * 2**17, "at most 262,144"),
    ],
    ids=["aliases", "deep", "date", "hexadecimal", "digits", "key", "kind", "inf", "nan", "large"],
)
def test_yaml_of_other_kinds_is_refused_at_once(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        load(str(path))


def test_a_setting_that_is_typed_has_no_aliases_either() -> None:
    with pytest.raises(ConfigError, match="is not a number, list or word"):
        load("mini", ["views.elevation_deg=[&a [1, 2], *a]"])
    with pytest.raises(ConfigError, match=r"guidance\.cfg_scale.*(inf|finite)"):
        load("mini", ["guidance.cfg_scale=.inf"])


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("prompt: a mug\n", encoding="utf-8-sig")
    assert load(str(path)).prompt == "a mug"


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, expected in [
        ("steps: 3\nsteps: 4\n", "given twice"),
        ("- a\n- b\n", "key: value"),
        ("a: [1,\n", "not a readable YAML"),
        ("schema_version: 99\n", "schema_version 99"),
        ("noise: 3\n", "kind"),
        ("guidance: 3\n", "section"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=expected):
            load(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        load(str(path))
    with pytest.raises(ConfigError, match="did you mean 'mini'"):
        load("minni")
    with pytest.raises(ConfigError, match="no such file"):
        load("no/such.yaml")
