"""Prompts to ids, with placeholders."""

from __future__ import annotations

import logging

import pytest
from transformers import PreTrainedTokenizerBase

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.conditioning import tokenize
from neti.models.conditioning.tokens import check_placeholder
from neti.utils.errors import UserError


@pytest.fixture
def tokenizer(tiny_backbone: Backbone) -> PreTrainedTokenizerBase:
    return tiny_backbone.tokenizer


def test_plain_prompts_are_tokenized_as_the_tokenizer_does(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = ["", "A photo of a teddy", "in the style of Monet, 4k!"]
    expected = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert tokenize(tokenizer, prompts, []).ids.equal(expected)


def test_a_placeholder_takes_one_position(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(tokenizer, ["A photo of a <toy> in the style of Monet"], ["<toy>"])
    slot = tokens.slots["<toy>"][0]
    assert slot.nonzero().flatten().tolist() == [5]
    around = tokenizer("A photo of a teddy in the style of Monet", padding="max_length", return_tensors="pt").input_ids
    assert tokens.ids[0][~slot].equal(around[0][~slot])


def test_several_placeholders_and_one_twice(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(tokenizer, ["<toy> of <cat> of <toy>", "a photo of <cat>,<cat>"], ["<toy>", "<cat>"])
    assert tokens.slots["<toy>"].nonzero().tolist() == [[0, 1], [0, 5]]
    assert tokens.slots["<cat>"].nonzero().tolist() == [[0, 3], [1, 4], [1, 6]]


def test_of_two_overlapping_placeholders_the_longer_one_is_meant(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(tokenizer, ["a photo of S*2"], ["S*", "S*2"])
    assert tokens.slots["S*"].sum() == 0
    assert tokens.slots["S*2"].sum() == 1


def test_the_tokenizer_is_never_modified(tokenizer: PreTrainedTokenizerBase) -> None:
    before = (len(tokenizer), tokenizer("a <toy>").input_ids)
    tokenize(tokenizer, ["a <toy>"], ["<toy>"])
    assert (len(tokenizer), tokenizer("a <toy>").input_ids) == before


@pytest.mark.parametrize("prompt", ["a photo of a cat", "a photo of a <Toy>", "a photo of a < toy>", ""])
def test_a_prompt_without_the_placeholder_is_named(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    with pytest.raises(UserError, match=f"prompt '{prompt}': names none of the concepts; write one of <toy>"):
        tokenize(tokenizer, ["a photo of a <toy>", prompt], ["<toy>"])


def test_a_long_prompt_is_cut_with_a_warning(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "a photo of a <toy>" + " of a photo" * 30
    with caplog.at_level(logging.WARNING):
        tokens = tokenize(tokenizer, [prompt], ["<toy>"])
    assert "95 tokens, the model reads 75" in caplog.text
    assert tokens.ids.shape == (1, 77)
    plain = tokenizer(prompt.replace("<toy>", "teddy"), truncation=True, max_length=77, return_tensors="pt").input_ids
    slot = tokens.slots["<toy>"]
    assert tokens.ids[~slot].equal(plain[~slot])


@pytest.mark.parametrize(("words_before", "fits"), [(74, True), (75, False)])
def test_a_placeholder_is_never_cut_off(tokenizer: PreTrainedTokenizerBase, words_before: int, fits: bool) -> None:
    prompt = "a " * words_before + "<toy> of a photo"
    if fits:
        assert tokenize(tokenizer, [prompt], ["<toy>"]).slots["<toy>"].nonzero().tolist() == [[0, 75]]
    else:
        with pytest.raises(UserError, match=r"a placeholder would be cut off"):
            tokenize(tokenizer, [prompt], ["<toy>"])


@pytest.mark.parametrize(
    ("placeholder", "reason"), [("teddy", "already a word"), ("", "must be one word"), ("my toy", "must be one word")]
)
def test_unusable_placeholders_are_refused(tokenizer: PreTrainedTokenizerBase, placeholder: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"placeholder '{placeholder}': {reason}"):
        check_placeholder(tokenizer, placeholder)
    check_placeholder(tokenizer, "<teddy>")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("it’s a “photo” of a {}", 'it\'s a "photo" of a {}'),
        ("a teddy &amp; a {}", "a teddy & a {}"),
        ("a ﬁne photo of a {}", "a fine photo of a {}"),
        ("ａ ｐｈｏｔｏ of a {}", "a photo of a {}"),
        ("a cafÃ© and a {}", "a café and a {}"),
    ],
)
def test_text_is_repaired_as_the_public_codes_tokenizer_did(
    tokenizer: PreTrainedTokenizerBase, written: str, meant: str
) -> None:
    repaired, plain = (tokenize(tokenizer, [text], ["{}"]) for text in (written, meant))
    assert repaired.ids.equal(plain.ids)
    assert repaired.slots["{}"].equal(plain.slots["{}"])
