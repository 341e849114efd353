# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion and SDXL with MV-Adapter: beside diffusers' UNet with attention processors that
are written here in another manner, and its T2IAdapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sdi_gs
from sdi_gs import budget
from sdi_gs.config import load
from sdi_gs.diffusion import cost
from sdi_gs.diffusion.base import ToldOfCameras
from sdi_gs.diffusion.compiled import compile_unet
from sdi_gs.diffusion.folder import ModelError
from sdi_gs.diffusion.latents import Prior
from sdi_gs.diffusion.load import load_prior, look
from sdi_gs.diffusion.mv_layers import RowAttention, directions
from sdi_gs.diffusion.plain_unet import PlainUNet
from sdi_gs.diffusion.published import KNOWN, SD21, shaped, sizes_of, with_adapter
from sdi_gs.diffusion.schedule import less_signal
from sdi_gs.diffusion.source import How
from sdi_gs.diffusion.tuning import Tuning, tune
from sdi_gs.errors import UserError
from sdi_gs.guidance import Viewpoints

from ..tiny_priors import ADAPTED, ADAPTER, how, unet
from .test_priors import louder, question, randn

Folders = Callable[[str], Path]
VIEWS = 6
ENGINES = [("mva", "plain"), ("mva", "diffusers"), ("mvaxl", "auto")]
each_engine = pytest.mark.parametrize(("family", "engine"), ENGINES)


def loaded(folder: Path, engine: Any = "auto") -> Prior:
    return load_prior(folder, how(folder, engine=engine))


# --- the same, written in another manner ----------------------------------------------------------


def across_rows(x: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """Attention of each pixel of x [G views, side^2, width] to its row in the group, by loops over
    groups, rows and heads, float64."""
    side = round(x.shape[1] ** 0.5)
    y = x.double().reshape(-1, VIEWS, side, side, x.shape[2])
    q, k, v = (torch.einsum("gnrcw,ow->gnrco", y, weights[each].double())
               for each in ("to_q_mv.weight", "to_k_mv.weight", "to_v_mv.weight"))  # fmt: skip
    out = torch.zeros_like(q)
    size = q.shape[-1] // heads
    for group in range(len(y)):
        for row in range(side):
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                one, other, value = (each[group, :, row, :, part] for each in (q, k, v))
                score = torch.einsum("nce,mde->ncmd", one, other) / size**0.5
                share = score.flatten(2).softmax(-1).reshape(score.shape)
                out[group, :, row, :, part] = torch.einsum("ncmd,mde->nce", share, value)
    made = torch.einsum("gnrci,oi->gnrco", out, weights["to_out_mv.0.weight"].double())
    return (made + weights["to_out_mv.0.bias"].double()).reshape(x.shape)


class Rows:
    """A processor of diffusers: attention as it is there, and that over rows."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        from diffusers.models.attention_processor import AttnProcessor

        own = AttnProcessor()(attn, hidden_states)
        return own + across_rows(hidden_states, self.weights, attn.heads).to(own)


def told(azimuth_deg: Tensor, elevation_deg: Tensor) -> Tensor:
    """What is told of cameras that look at the middle, by sines and cosines, [B, 6]: azimuth 0 is
    the front, which is towards -y."""
    a, e = (np.radians(each.double().numpy()) for each in (azimuth_deg - 90.0, elevation_deg))
    place = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], 1)
    return torch.from_numpy((np.concatenate([-place, place], 1) + 1.0) / 2.0).float()


def published(folder: Path, xl: bool) -> tuple[Any, Any]:
    """UNet and encoder of diffusers with the weights of the folder."""
    from diffusers import T2IAdapter, UNet2DConditionModel

    network: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    state = load_file(folder / ADAPTER)
    for name, module in network.named_modules():
        if name.endswith(".attn1"):
            start = f"{name}.processor."
            own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            module.set_processor(Rows(own))
    widths = list(network.config.block_out_channels)
    encoder = T2IAdapter(
        in_channels=6, channels=[*widths, widths[-1]] if xl else widths, num_res_blocks=2,
        downscale_factor=4 if xl else 2, adapter_type="full_adapter_xl" if xl else "full_adapter",
    )  # fmt: skip
    encoder.load_state_dict({k: v for k, v in state.items() if k.startswith("adapter.")})
    return network, encoder


@each_engine
def test_it_answers_as_its_pieces_do_in_diffusers(
    family: str, engine: str, prior_folders: Folders
) -> None:
    """Attention over rows, features of the camera and where they are added, together."""
    xl, folder = family == "mvaxl", prior_folders(family)
    model = loaded(folder, engine)
    assert isinstance(model, ToldOfCameras)
    network, encoder = published(folder, xl)
    around = torch.tensor([0.0, 45.0, 90.0, 180.0, -90.0, -45.0]).repeat(2)
    up = torch.tensor([0.0, 35.0]).repeat_interleave(6)
    views = Viewpoints.orbit(around, up, torch.full((12,), 1.7))
    words = model.seen_from(louder(model.embed(["a red mug"] * 12)), views.camera_to_world)
    side = model.image_size // 2
    x_t, t = randn(12, 4, side, side), torch.tensor([321, 77]).repeat_interleave(6)
    maps = told(around, up)[:, :, None, None].expand(-1, -1, 2 * side, 2 * side)
    added = {"text_embeds": words["pooled"], "time_ids": words["time_ids"]} if xl else None
    with torch.no_grad():
        features = encoder(maps)
        expected = network(
            x_t, t, encoder_hidden_states=words["hidden"], added_cond_kwargs=added,
            down_intrablock_additional_residuals=[feature.clone() for feature in features],
        ).sample  # fmt: skip
        got = model.predict_noise(x_t, t, words)
    assert len(features) == 3 + xl
    assert float(features[-1].abs().mean()) > 1e-2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


@each_engine
def test_attention_over_rows_is_that_of_loops(
    family: str, engine: str, prior_folders: Folders
) -> None:
    folder = prior_folders(family)
    model, state = loaded(folder, engine), load_file(folder / ADAPTER)
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    layer: Any = model.network.get_submodule(name).across.double()
    start = f"{name}.processor."
    own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    x = randn(2 * VIEWS, 25, 16, seed=3).double()
    with torch.no_grad():
        got = layer(x)
    torch.testing.assert_close(got, across_rows(x, own, layer.heads), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attends_first", [True, False])
def test_the_plain_network_adds_features_where_diffusers_adds_them(attends_first: bool) -> None:
    """In the order of Stable Diffusion and in that of SDXL, with a feature for the middle."""
    torch.manual_seed(5)
    kinds = ("CrossAttnDownBlock2D", "DownBlock2D")
    down = (kinds[0], kinds[0], kinds[1]) if attends_first else (kinds[1], kinds[0], kinds[0])
    theirs = unet(
        block_out_channels=(8, 16, 16), down_block_types=down, layers_per_block=2,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
    ).eval()  # fmt: skip
    ours = PlainUNet(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    x, t, words = randn(2, 4, 8, 8), torch.tensor([7, 700]), randn(2, 5, 16)
    sides = [(8, 8), (16, 4), (16, 2)] if attends_first else [(8, 4), (16, 4), (16, 2), (16, 2)]
    features = [randn(2, w, s, s, seed=k) for k, (w, s) in enumerate(sides)]
    with torch.no_grad():
        got, alone, expected = (
            network(x, t, words, down_intrablock_additional_residuals=added).sample
            for network, added in (
                (ours, features), (ours, []), (theirs, [each.clone() for each in features]),
            )
        )  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert float((got - alone).abs().max()) > 1e-2


def test_a_pixel_sees_its_row_in_all_views_of_its_group_and_nothing_else() -> None:
    layer = RowAttention(8, 2, VIEWS).double()
    x = randn(2 * VIEWS, 16, 8, seed=4).double()
    before = layer(x)
    x[2, 5] += 1.0  # of the first group, in row 1 of 4
    moved = (layer(x) - before).abs().amax(2) > 1e-9
    expected = torch.zeros(2 * VIEWS, 4, 4, dtype=torch.bool)
    expected[:VIEWS, 1] = True
    assert torch.equal(moved, expected.flatten(1))
    for shape in ((VIEWS, 15, 8), (VIEWS + 1, 16, 8)):
        with pytest.raises(ValueError, match="square pictures in groups of 6"):
            layer(torch.zeros(shape).double())


# --- cameras --------------------------------------------------------------------------------------


def test_cameras_are_told_as_directions_in_a_world_with_the_front_at_minus_y() -> None:
    around, up = torch.tensor([0.0, 45.0, 90.0, 180.0, 200.0]), torch.tensor([0.0, 0, 0, 0, 40.0])
    views = Viewpoints.orbit(around, up, torch.tensor([1.0, 1.8, 3.0, 0.5, 2.0]))
    got = directions(views.camera_to_world.flatten(1).float())
    torch.testing.assert_close(got, told(around, up), rtol=0, atol=1e-6)
    # From the front, at -y, one looks along +y; from the side, at +x, along -x.
    torch.testing.assert_close(got[0], torch.tensor([0.5, 1, 0.5, 0.5, 0, 0.5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[2], torch.tensor([0, 0.5, 0.5, 1, 0.5, 0.5]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ADAPTED)
def test_where_a_picture_was_taken_from_counts_for_it(family: str, prior_folders: Folders) -> None:
    model = loaded(prior_folders(family))
    assert isinstance(model, ToldOfCameras)
    around, up = torch.arange(6.0) * 60.0, torch.full((6,), 10.0)
    words = louder(model.embed(["a red mug"] * 6))
    near, far, turned = (
        model.seen_from(words, Viewpoints.orbit(a, up, torch.full((6,), d)).camera_to_world)
        for a, d in ((around, 1.0), (around, 7.0), (around + 30.0, 1.0))
    )
    side = model.image_size // 2
    x_t, t = randn(6, 4, side, side), torch.full((6,), 500)
    eps = [model.predict_noise(x_t, t, each) for each in (near, far, turned, words)]
    torch.testing.assert_close(eps[0], eps[1])
    assert float((eps[0] - eps[2]).abs().max()) > 1e-3
    # No camera, and one of zeros, are no features at all.
    nowhere = model.seen_from(words, torch.zeros(6, 4, 4))
    torch.testing.assert_close(model.predict_noise(x_t, t, nowhere), eps[3], rtol=0, atol=0)
    assert all(float(f.abs().max()) == 0 for f in told_features(model, nowhere, x_t))
    assert all(float(f.abs().max()) > 0 for f in told_features(model, near, x_t))


def told_features(model: Any, words: Any, x_t: Tensor) -> list[Tensor]:
    found = model._beside(model.network, x_t, words, None)
    return list(found["down_intrablock_additional_residuals"])


@pytest.mark.parametrize("family", ADAPTED)
def test_the_schedule_has_less_signal_towards_its_end(family: str, prior_folders: Folders) -> None:
    """SNR / 8^(t / (T - 1)), beside the table that betas make of it, as the pipeline samples."""
    folder = prior_folders(family)
    base = load_prior(folder, How()).alpha_bar.double()
    snr = base / (1 - base)
    lower = torch.tensor([float(s) / 8 ** (k / 999) for k, s in enumerate(snr)]).double()
    levels = lower / (1 + lower)
    betas = 1 - levels / torch.cat([torch.ones(1).double(), levels[:-1]])
    table = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(loaded(folder).alpha_bar.double(), table, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(less_signal(base, 1.0), base)
    assert float(loaded(folder).alpha_bar[0]) == pytest.approx(float(base[0]), rel=1e-6)


# --- the whole, and nothing ---------------------------------------------------------------------


@each_engine
def test_every_weight_of_the_file_is_in_the_network(
    family: str, engine: str, prior_folders: Folders
) -> None:
    folder = prior_folders(family)
    model, state = loaded(folder, engine), load_file(folder / ADAPTER)
    base = load_prior(folder, How(engine=engine))  # type: ignore[arg-type]
    ours, theirs = model.network.state_dict(), base.network.state_dict()
    assert len(ours) - len(theirs) == len(state)
    for name, tensor in state.items():
        here = name.replace("adapter.", "rays.", 1).replace(".processor.", ".across.")
        assert torch.equal(ours[here.replace("_mv.", ".")], tensor), name
    assert not any(p.is_meta or p.requires_grad for p in model.network.parameters())


@each_engine
def test_an_adapter_of_zeros_is_the_model_without_it(
    family: str, engine: str, prior_folders: Folders, tmp_path: Path
) -> None:
    folder = prior_folders(family)
    state = load_file(folder / ADAPTER)
    silent = {
        name: tensor if "_mv." in name and "to_out_mv" not in name else torch.zeros_like(tensor)
        for name, tensor in state.items()
    }
    save_file(silent, tmp_path / ADAPTER)
    base, model, other = (
        load_prior(folder, How(engine=engine, adapter=path))  # type: ignore[arg-type]
        for path in (None, str(tmp_path / ADAPTER), str(folder / ADAPTER))
    )
    x_t, t, words = question(model)
    expected = base.predict_noise(x_t, t, words)
    assert torch.equal(model.predict_noise(x_t, t, words), expected)
    assert float((other.predict_noise(x_t, t, words) - expected).abs().max()) > 1e-2


def test_both_engines_answer_alike(prior_folders: Folders) -> None:
    folder = prior_folders("mva")
    plain, other = (loaded(folder, engine) for engine in ("plain", "diffusers"))
    x_t, t, words = question(plain)
    torch.testing.assert_close(
        plain.predict_noise(x_t, t, words), other.predict_noise(x_t, t, words), rtol=1e-4, atol=2e-5
    )


@each_engine
def test_what_is_seen_has_the_gradient_of_its_answer(
    family: str, engine: str, prior_folders: Folders
) -> None:
    """Through network and adapter, beside finite differences in float64."""
    model = loaded(prior_folders(family), engine)
    model.network.double()
    x_t, t, words = question(model)
    x_t, t, words = x_t[:6].double(), t[:6], words.rows(torch.arange(6))
    along, weight = randn(*x_t.shape, seed=2).double(), randn(*x_t.shape, seed=3).double()
    x_t.requires_grad_()
    (model.predict_noise(x_t, t, words) * weight).sum().backward()
    assert x_t.grad is not None
    h = 1e-5
    with torch.no_grad():
        there, back = (model.predict_noise(x_t + s * h * along, t, words) for s in (1, -1))
        numeric = float(((there - back) * weight).sum() / (2 * h))
    assert float((x_t.grad * along).sum()) == pytest.approx(numeric, rel=1e-5)
    # A view's answer depends on the others of its group.
    model.predict_noise(x_t[:6], t, words)[0].sum().backward()
    assert float(x_t.grad[5].abs().max()) > 0


def test_views_of_a_group_see_each_other_and_no_others(prior_folders: Folders) -> None:
    model = loaded(prior_folders("mva"))
    assert model.views_together == VIEWS
    x_t, t, words = question(model)
    t = torch.full_like(t, 300)
    before = model.predict_noise(x_t, t, words)
    x_t[8] += randn(*x_t.shape[1:], seed=4)
    moved = (model.predict_noise(x_t, t, words) - before).flatten(1).abs().amax(1)
    assert bool((moved[6:12] > 1e-5).all())
    assert float(moved[:6].max()) < 1e-6
    assert float(moved[12:].max()) < 1e-6


def test_rows_part_no_group_and_nothing_is_compiled_halfway(prior_folders: Folders) -> None:
    model = loaded(prior_folders("mva"))
    with pytest.raises(ValueError, match=r"sees 6 views .* write model\.rows=6$"):
        tune(model, Tuning(rows=4))
    assert tune(model, Tuning(rows=12)).rows == 12
    pytest.importorskip("openvino")
    with pytest.raises(ModelError, match=r"model\.adapter.*write model\.compile=no"):
        compile_unet(model.network, "float32")


def test_a_lora_and_half_precision_go_with_it(prior_folders: Folders, tmp_path: Path) -> None:
    folder = prior_folders("mva")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{layer}.lora_{k}.weight": randn(*s) for k, s in (("A", (2, 16)), ("B", (16, 2)))}
    save_file(pair, tmp_path / "style.safetensors")
    plain, styled = (
        loaded(folder),
        load_prior(folder, how(folder, lora=str(tmp_path / "style.safetensors"))),
    )
    x_t, t, words = question(plain)
    one, other = (each.predict_noise(x_t, t, words) for each in (plain, styled))
    assert float((one - other).abs().max()) > 1e-4
    half = load_prior(folder, how(folder, dtype="bfloat16"))
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half.predict_noise(x_t, t, words), one, rtol=0.1, atol=0.15)


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("xl", [False, True])
def test_what_is_added_to_the_published_sizes(xl: bool) -> None:
    """Four matrices and a bias for each attention of pictures to themselves: of 16 layers and of
    70; and what T2IAdapter has."""
    from diffusers import T2IAdapter

    sizes = KNOWN["stabilityai/stable-diffusion-xl-base-1.0"] if xl else SD21
    base, model = shaped(sizes), shaped(with_adapter(sizes))
    with torch.device("meta"):
        encoder = T2IAdapter(
            in_channels=6, channels=[320, 640, 1280, 1280], num_res_blocks=2,
            downscale_factor=16 if xl else 8,
            adapter_type="full_adapter_xl" if xl else "full_adapter",
        )  # fmt: skip
    layers = {640: 2 * 2 + 3 * 2, 1280: 10 * (2 + 1 + 3)} if xl else {320: 5, 640: 5, 1280: 6}
    rows = sum(count * (4 * width**2 + width) for width, count in layers.items())
    count = rows + sum(p.numel() for p in encoder.parameters())
    assert cost.parameter_bytes(model.network) - cost.parameter_bytes(base.network) == 2 * count
    assert count == (490_923_200 if xl else 127_496_320)  # as docs/priors.md says
    added = len(model.network.state_dict()) - len(base.network.state_dict())
    assert added == (388 if xl else 118)
    assert (model.views_together, model.image_size) == (6, 768 if xl else 512)


def test_a_budget_counts_the_adapter_and_spares_whole_groups(
    prior_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prior_folders("mva")
    settings = [f"model.source={folder}", "batch=12", "resolution=16"]
    without = load("sdi_gaussians", settings)
    config = load("sdi_gaussians", [*settings, f"model.adapter={folder / ADAPTER}"])
    found, bare = budget.estimate(config), budget.estimate(without)
    state = load_file(folder / ADAPTER)
    assert found.weights - bare.weights == 2 * sum(v.numel() for v in state.values())
    assert found.activations > bare.activations
    assert budget.savings(config).same[:2] == ["micro_batch=6", "model.rows=6"]
    other = sizes_of(str(prior_folders("mv")))
    assert with_adapter(other) == other
    # A preset would fit, and is without the adapter.
    monkeypatch.setattr(budget, "estimate", lambda c, *_: found if c.model.adapter else bare)
    with pytest.raises(UserError, match=r"write batch=6 model\.rows=6 "):
        budget.require_card(config, bare.total)


def test_python_names_the_same(prior_folders: Folders) -> None:
    folder = prior_folders("mva")
    assert sdi_gs.load_prior(folder, adapter=folder / ADAPTER).views_together == 6
    with pytest.raises(UserError, match=r"model: model\.adapter=nowhere"):
        sdi_gs.load_prior(folder, adapter="nowhere")


# --- what is refused ------------------------------------------------------------------------------


def changed(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    some = next(name for name in state if name.endswith("to_k_mv.weight"))
    match kind:
        case "lacks":
            state.pop(some)
        case "shape":
            state[some] = torch.zeros(3, 3)
        case "more":
            state["up_blocks.9.attn1.processor.to_q_mv.weight"] = torch.zeros(2, 2)
        case "picture":
            state[some.replace("_mv", "_ref")] = state[some].clone()
        case "unknown":
            state["to_q_loc.weight"] = torch.zeros(2, 2)
        case "numbers":
            state[some] = torch.full_like(state[some], float("nan"))
        case "nothing":
            state.clear()
    return state


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("lacks", ADAPTER, r"1 are lacking \(.*attn1\.across\.to_k\.weight"),
        ("shape", ADAPTER, r"1 have no place there, or one of another shape.*to_k_mv.* \(3, 3\)"),
        ("more", ADAPTER, r"up_blocks\.9\.attn1"),
        ("picture", ADAPTER, r"from a picture to views \(i2mv\).*mvadapter_t2mv_sd21"),
        ("none", "mvadapter_tg2mv_sd21.safetensors", r"from a mesh to views \(tg2mv"),
        ("none", "mvadapter_ig2mv_sd21.safetensors", "from a mesh to views"),
        ("unknown", ADAPTER, r"holds to_q_loc\.weight, which is no weight of MV-Adapter"),
        ("numbers", ADAPTER, "no numbers, in .*to_k_mv"),
        ("nothing", ADAPTER, "holds nothing"),
        ("none", "adapter.bin", r"only \.safetensors files"),
    ],
)
def test_a_file_that_is_no_whole_adapter_of_this_model(
    kind: str, name: str, said: str, prior_folders: Folders, tmp_path: Path
) -> None:
    folder = prior_folders("mva")
    save_file(changed(load_file(folder / ADAPTER), kind), tmp_path / name)
    with pytest.raises(ModelError, match=said):
        load_prior(folder, How(adapter=str(tmp_path / name)))


def test_an_adapter_for_another_family_or_nowhere(prior_folders: Folders, tmp_path: Path) -> None:
    file = prior_folders("mva") / ADAPTER
    with pytest.raises(ModelError, match=r"does not fit .*t2mv_sdxl\.safetensors for SDXL"):
        load_prior(prior_folders("mvaxl"), How(adapter=str(file)))
    for family, named in (("sd35", "StableDiffusion3Pipeline"), ("if", "IFPipeline"),
                          ("mv", "MultiViewStableDiffusionPipeline")):  # fmt: skip
        folder = prior_folders(family)
        for door in (load_prior, look):
            with pytest.raises(ModelError, match=f"holds a {named}: leave out model.adapter"):
                door(folder, How(adapter=str(file)))
    with pytest.raises(ModelError, match=r"nothing\.safetensors does not exist: give a file"):
        look(prior_folders("mva"), How(adapter=str(tmp_path / "nothing.safetensors")))
    first = Path(shutil.copytree(prior_folders("mva"), tmp_path / "first"))
    config = json.loads((first / "unet" / "config.json").read_text())
    changed = json.dumps(config | {"cross_attention_dim": 768})
    (first / "unet" / "config.json").write_text(changed)
    with pytest.raises(ModelError, match=r"Stable Diffusion 1\.x.*folder of Stable Diffusion 2\.1"):
        look(first, How(adapter=str(file)))
    assert look(prior_folders("mva"), How(adapter=str(file))) is None
