# SPDX-License-Identifier: Apache-2.0
"""The sizes of mini's networks, and its tokenizer. Everything is an ordinary diffusers or
transformers class, so that the saved folder loads wherever Stable Diffusion does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from .corpus import SIZE, vocabulary

TEXT_LENGTH = 16  # tokens
LATENT_SIZE = SIZE // 4
TEXT_WIDTH = 96


def _apply(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: the earliest merge that fits goes first, until none fits."""
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        fitting = [(rank[pair], k) for k, pair in enumerate(pairwise(pieces)) if pair in rank]
        if not fitting:
            return pieces
        k = min(fitting)[1]
        pieces = [*pieces[:k], pieces[k] + pieces[k + 1], *pieces[k + 2 :]]


def make_tokenizer() -> Any:
    """The tokenizer of mini: every word of the corpus is one token."""
    return word_tokenizer(vocabulary())


def word_tokenizer(words: list[str]) -> Any:
    """A byte-pair tokenizer in which each of ``words`` is one token.

    Other words fall apart into letters and syllables, so any prompt is legal. Each word gets the
    merges that it still lacks after those of the words before it; since these have precedence,
    no later word can break an earlier one.
    """
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    vocab = {s: i for i, s in enumerate(letters + [f"{c}</w>" for c in letters])}
    merges: list[tuple[str, str]] = []
    for word in words:
        left, *rest = _apply([*word[:-1], word[-1] + "</w>"], merges)
        for right in rest:
            merges.append((left, right))
            left += right
            vocab.setdefault(left, len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def make_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 48, 80),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def make_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 144),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def make_scheduler() -> Any:
    """Stable Diffusion's schedule: scaled-linear betas, 1000 steps, epsilon prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
