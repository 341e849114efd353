# SPDX-License-Identifier: Apache-2.0
"""What is counted without a device: against closed forms and the published sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdi_gs.diffusion import cost
from sdi_gs.diffusion.cost import FusedAttention, Live, measure, parameter_bytes
from sdi_gs.diffusion.published import random_stable_diffusion
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.diffusion.tuning import bound_encoder


@pytest.fixture(scope="module")
def published() -> StableDiffusion:
    return random_stable_diffusion("meta")


def test_a_product_costs_two_for_each_pair_and_its_output() -> None:
    layer = nn.Linear(30, 20, bias=False, device="meta")
    x = torch.empty(7, 30, device="meta")
    found = measure(layer, lambda: layer(x))
    assert found.flops == 2 * 7 * 30 * 20
    assert found.kept_bytes == found.peak_bytes == 7 * 20 * 4
    assert parameter_bytes(layer) == 30 * 20 * 4


def test_the_peak_is_what_lives_at_once() -> None:
    """Ten steps of a chain need two tensors at a time, and leave one."""
    size = 1000 * 4

    def chain() -> torch.Tensor:
        x = torch.empty(1000, device="meta")
        for _ in range(10):
            x = x + 1
        return x

    found = measure(nn.Identity(), chain)
    assert (found.peak_bytes, found.kept_bytes) == (2 * size, size)


def test_a_graph_keeps_what_its_backward_needs() -> None:
    x = torch.empty(1000, device="meta", requires_grad=True)
    with_graph = measure(nn.Identity(), lambda: x.exp().exp().exp())
    assert with_graph.kept_bytes == 3 * 4000  # exp keeps its result
    with torch.no_grad():
        assert measure(nn.Identity(), lambda: x.exp().exp().exp()).kept_bytes == 4000


def test_views_of_parameters_are_no_activations() -> None:
    layer = nn.Linear(64, 64, device="meta")
    with Live(layer) as live:
        turned = layer.weight.t()
        assert live.bytes == 0
        copy = turned.clone()
        assert live.bytes == copy.numel() * 4


def test_fused_attention_is_counted_without_its_table() -> None:
    q = torch.empty(1, 2, 512, 64, device="meta", dtype=torch.float16)
    plain = measure(nn.Identity(), lambda: F.scaled_dot_product_attention(q, q, q))
    with FusedAttention():
        fused = measure(nn.Identity(), lambda: F.scaled_dot_product_attention(q, q, q))
    assert fused.flops == plain.flops == 2 * 2 * (2 * 512 * 512 * 64)
    table = 2 * 512 * 512 * 2
    assert fused.peak_bytes < table < plain.peak_bytes


def test_the_published_networks_have_their_published_numbers_of_parameters(
    published: StableDiffusion,
) -> None:
    """865.9 M, 83.7 M and 340.4 M, as the model cards and other programs count them."""
    modules = (published.unet, published.vae, published.text_encoder)
    counts = [sum(p.numel() for p in module.parameters()) for module in modules]
    assert counts == [865_910_724, 83_653_863, 340_387_840]
    assert parameter_bytes(published.unet) == 2 * counts[0]


def test_the_denoiser_costs_in_proportion_to_its_samples(published: StableDiffusion) -> None:
    one, three = (cost.of_prediction(published, n, latents=16) for n in (1, 3))
    assert three.flops == pytest.approx(3 * one.flops, rel=1e-3)
    assert three.peak_bytes == pytest.approx(3 * one.peak_bytes, rel=0.02)


def test_encoding_backwards_costs_about_as_much_as_forwards(published: StableDiffusion) -> None:
    """Frozen weights need no gradient, so a backward pass is one more product per layer."""
    forth = cost.of_encoding(published, 1, size=128)
    both = cost.of_encoding(published, 1, size=128, backward=True)
    assert both.flops == pytest.approx(2 * forth.flops, rel=0.05)
    assert forth.kept_bytes > 0.9 * forth.peak_bytes  # the graph is nearly all of it
    assert both.kept_bytes < 0.05 * forth.kept_bytes  # and gone afterwards


def test_a_bounded_encoder_needs_a_fraction_of_the_memory() -> None:
    parts = random_stable_diffusion("meta")
    full = cost.of_encoding(parts, 1, backward=True)
    kept = cost.of_encoding(parts, 1).kept_bytes
    bound_encoder(parts.vae)
    bounded = cost.of_encoding(parts, 1, backward=True)
    assert bounded.peak_bytes < 0.45 * full.peak_bytes
    assert cost.of_encoding(parts, 1).kept_bytes < 0.3 * kept
    assert 1.3 < bounded.flops / full.flops < 1.6  # forwards, forwards again, backwards
