"""Measuring C on a file of captions: streaming, in float64, and going on where an interrupted run stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ....utils.config.choices import Choice
from ....utils.errors import UserError
from ....utils.files import write_atomically
from ...backbone.text import TextStack
from .covariance import Covariance, probe

SAVE_EVERY = 50  # batches
METADATA_KEY = "neti_second_moments"


class TokenRule(Choice):
    """Whose encodings count: those of a caption from its begin to its end token, or all T with the padding behind."""

    nonpad = "nonpad"
    all = "all"


@dataclass
class Moments:
    """What has been summed so far: `total` [D, D] float64 over `tokens` encodings of the first `captions` captions.

    cut: how many of these were longer than the model reads. source: what it is a sum of, by name.
    """

    total: Tensor
    source: dict[str, Any]
    captions: int = 0
    tokens: int = 0
    cut: int = 0

    def save(self, path: Path) -> None:
        record = json.dumps([self.source, self.captions, self.tokens, self.cut], sort_keys=True)
        content = safetensors.torch.save({"total": self.total}, metadata={METADATA_KEY: record})
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    def resume(cls, path: Path, source: dict[str, Any], width: int) -> Moments:
        """The sum in `path`, or an empty one if there is none. UserError for one of another source."""
        if not path.exists():
            return cls(torch.zeros(width, width, dtype=torch.float64), source)
        with safe_open(path, framework="pt") as file:
            theirs, captions, tokens, cut = json.loads((file.metadata() or {})[METADATA_KEY])
            if changed := sorted(key for key in source if theirs.get(key) != source[key]):
                raise UserError(
                    f"{path}: a run with another {', '.join(changed)} was interrupted there; remove that file, or "
                    "choose another output"
                )
            return cls(file.get_tensor("total"), source, captions, tokens, cut)


@dataclass(frozen=True)
class Captions:
    """A text file with one caption per line; empty lines do not count. limit: only so many from its beginning."""

    path: Path
    limit: int | None = None
    digest: str = field(init=False)
    count: int = field(init=False)

    def __post_init__(self) -> None:
        """Reads the file once. Raises UserError if it is missing, empty or not UTF-8 text."""
        digest, count = hashlib.sha256(), 0
        try:
            for caption in self:
                digest.update(caption.encode() + b"\n")
                count += 1
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"captions {self.path}: cannot be read as UTF-8 text, one caption a line ({error})"
            ) from None
        if not count:
            raise UserError(f"captions {self.path}: holds no caption; write one a line")
        object.__setattr__(self, "digest", digest.hexdigest())
        object.__setattr__(self, "count", count)

    def __iter__(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8-sig", newline="\n") as lines:
            yield from itertools.islice((line.strip() for line in lines if line.strip()), self.limit)


@torch.no_grad()
def measure(
    text: TextStack,
    model: str,
    captions: Captions,
    partial: Path,
    *,
    tokens: TokenRule = TokenRule.nonpad,
    ridge: float = 0.0,
    batch_size: int = 256,
    on_batch: Callable[[Moments], object] | None = None,
) -> Covariance:
    """C of a text encoder (best in float32) over captions, each read as the model reads a prompt.

    partial: where the sum is kept every SAVE_EVERY batches; called again with the same captions after any interruption,
    it goes on from there, to the same bits. ridge: times the mean eigenvalue, added to the diagonal: a floor for
    directions that no caption reaches.
    The scale of C has no meaning. Raises UserError for captions that are too few: then C has no inverse.
    """
    source = {
        "model": model,
        "text encoder": encoder_digest(text),
        "captions": captions.digest,
        "tokens": tokens.value,
        "batch size": batch_size,
    }
    moments = Moments.resume(partial, source, sum(text.widths))
    stream = itertools.islice(captions, moments.captions, None)
    for number in itertools.count(1):
        batch = list(itertools.islice(stream, batch_size))
        if not batch:
            break
        encodings, cut = encode(text, batch, tokens)
        moments.total += encodings.T @ encodings
        moments.captions += len(batch)
        moments.tokens += len(encodings)
        moments.cut += cut
        if number % SAVE_EVERY == 0:
            moments.save(partial)
        if on_batch is not None:
            on_batch(moments)
    moments.save(partial)  # with another ridge, nothing has to be encoded again
    matrix = moments.total / moments.tokens
    matrix = matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
    found = {"captions": moments.captions, "tokens": moments.tokens, "cut": moments.cut, "ridge": ridge}
    metadata = {**found, "token_rule": tokens.value, "model": model, "text_encoder": source["text encoder"]}
    covariance = Covariance(((matrix + matrix.T) / 2).float(), probe(text), metadata)
    try:
        _ = covariance.inverse
    except UserError as error:
        raise UserError(f"{captions.path}, {moments.captions} captions, {moments.tokens} tokens: {error}") from None
    return covariance


def encode(text: TextStack, captions: list[str], tokens: TokenRule) -> tuple[Tensor, int]:
    """The encodings [n, D] in float64, on the CPU, of the tokens that count, and how many captions had to be cut."""
    tokenizer = text.tokenizer
    ids, cut = _ids(tokenizer, captions, whole=tokens is TokenRule.all)
    counted = torch.ones_like(ids, dtype=torch.bool)
    if tokens is TokenRule.nonpad:
        ends = ids == tokenizer.eos_token_id
        counted = ends.cumsum(dim=1) - ends.long() == 0  # up to the first end token; padding may look like it
    states = text.states(text.embeddings(ids.to(text.device)))
    return text.finish(states)[counted.to(text.device)].cpu().double(), cut


def encoder_digest(text: TextStack) -> str:
    """`sha256:<hex>` of the weights of all towers."""
    digest = hashlib.sha256()
    for tower in text.towers:
        for name, tensor in sorted(tower.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _ids(tokenizer: PreTrainedTokenizerBase, captions: list[str], whole: bool) -> tuple[Tensor, int]:
    """ids [B, T], and how many captions were cut. Unless `whole`, T is the longest caption's: these text encoders never
    look behind a token, so that padding changes nothing in front of it."""
    length = tokenizer.model_max_length
    rows = tokenizer(captions, verbose=False).input_ids
    cut = sum(len(row) > length for row in rows)
    rows = [row if len(row) <= length else [*row[: length - 1], tokenizer.eos_token_id] for row in rows]
    longest = length if whole else max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]), cut
