# SPDX-License-Identifier: Apache-2.0
"""Sentences as the text encoders of diffusion models read them. No word is cut off.

CLIP reads 77 words at once, two of which are marks. A longer sentence is read in pieces, each
between marks of its own, and what is made of the pieces stands one after the other, as is the
custom of programs around Stable Diffusion; shorter sentences of the same call are filled up with
empty pieces. T5 has no such limit: a longer sentence is read as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)


class Reader(NamedTuple):
    """A text encoder with the tokenizer that it was taught with."""

    tokenizer: Any
    encoder: Any

    def frozen(self) -> Reader:
        """The same, with weights that want no gradient."""
        return self._replace(encoder=self.encoder.eval().requires_grad_(False))


def given_away() -> RuntimeError:
    """What a model says that has no text encoder any more."""
    return RuntimeError("the text encoders of this model were given away with forget_words()")


class Read(NamedTuple):
    """What a text encoder has made of sentences."""

    hidden: Tensor  # [B, words, width]
    pooled: Tensor  # [B, width]; of the first piece, as is the custom


def clip_pieces(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Numbers of the words of ``texts``, [B, pieces, words] int64, marks and filling included."""
    longest = int(tokenizer.model_max_length)
    room = longest - 2
    words = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]
    count = max(1, *(-(-len(ids) // room) for ids in words))
    if count > 1:
        text, ids = max(zip(texts, words, strict=True), key=lambda pair: len(pair[1]))
        LOG.warning(
            "%r has %d tokens, and the text encoder reads %d at once: it is read in %d pieces, "
            "which stand one after the other", text, len(ids), room, count,
        )  # fmt: skip
    rows = []
    for ids in words:
        for k in range(count):
            piece = [
                tokenizer.bos_token_id,
                *ids[k * room : (k + 1) * room],
                tokenizer.eos_token_id,
            ]
            rows.append(piece + [tokenizer.pad_token_id] * (longest - len(piece)))
    return torch.tensor(rows).reshape(len(words), count, longest)


def read_clip(reader: Reader, texts: Sequence[str], device: torch.device) -> Tensor:
    """The last states of a ``CLIPTextModel``, [B, words, width] float32."""
    pieces = clip_pieces(reader.tokenizer, texts)
    hidden: Tensor = reader.encoder(pieces.flatten(0, 1).to(device)).last_hidden_state
    return _joined(hidden, len(texts)).float()


def read_clip_before_last(reader: Reader, texts: Sequence[str], device: torch.device) -> Read:
    """The states before the last layer, as SDXL and SD 3 want them, and the first result of the
    encoder: of a ``CLIPTextModelWithProjection`` the projected sentence. float32."""
    pieces = clip_pieces(reader.tokenizer, texts)
    out = reader.encoder(pieces.flatten(0, 1).to(device), output_hidden_states=True)
    hidden = _joined(out.hidden_states[-2], len(texts))
    pooled = out[0].unflatten(0, (len(texts), -1))[:, 0]
    return Read(hidden.float(), pooled.float())


def _joined(hidden: Tensor, texts: int) -> Tensor:
    """[texts * pieces, words, width] -> [texts, pieces * words, width]."""
    return hidden.reshape(texts, -1, hidden.shape[-1])


def read_t5(
    reader: Reader, texts: Sequence[str], device: torch.device, length: int, masked: bool
) -> Tensor:
    """States of a ``T5EncoderModel``, [B, words, width] float32, filled up to ``length`` words.

    ``masked``: filling is not attended to, as DeepFloyd IF was taught; SD 3 was taught to see it.
    """
    tokenizer = reader.tokenizer
    found = tokenizer(list(texts)).input_ids
    longest = max(len(ids) for ids in found)
    if longest > length:
        LOG.warning(
            "the prompt has %d tokens, and the model was taught with %d: it is read as a whole "
            "all the same", longest, length,
        )  # fmt: skip
    filled = [
        list(ids) + [tokenizer.pad_token_id] * (max(length, longest) - len(ids)) for ids in found
    ]
    ids = torch.tensor(filled, device=device)
    told = {}
    if masked and device.type != "meta":  # there transformers cannot look into it
        own = torch.tensor([len(ids) for ids in found], device=device)
        told["attention_mask"] = (torch.arange(ids.shape[1], device=device) < own[:, None]).long()
    hidden: Tensor = reader.encoder(ids, **told)[0]
    return hidden.float()
