"""The miniature's tokenizer: a CLIPTokenizer with a small byte-level BPE vocabulary of the world's captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ....models.conditioning.prompts import OBJECT_TEMPLATES, PAPER_PROMPTS, STYLE_TEMPLATES

MAX_LENGTH = 32  # token positions of the text tower; SD has 77
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def train(captions: Iterable[str], vocabulary: int, folder: Path) -> CLIPTokenizer:
    """Learn ``vocabulary`` BPE entries from captions and the toolkit's prompt templates; write the CLIP files."""
    templates = [text.replace("{}", "") for text in [*OBJECT_TEMPLATES, *STYLE_TEMPLATES, *PAPER_PROMPTS]]
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # a word seen once per byte gives every byte its end-of-word form, so that any text can be tokenised
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator([*captions, *(templates * 50)], trainer)

    trained = json.loads(bpe.to_str())["model"]
    tokens = dict.fromkeys([*alphabet, *(f"{byte}</w>" for byte in alphabet)])
    tokens.update(dict.fromkeys(sorted(trained["vocab"], key=trained["vocab"].get)))
    vocab = {token: k for k, token in enumerate([*tokens, BEGIN, END])}
    folder.mkdir(parents=True, exist_ok=True)
    _write_bpe(folder, vocab, trained["merges"])
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    special = {key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    return CLIPTokenizer.from_pretrained(folder)


def write_classic_files(folder: Path) -> None:
    """vocab.json and merges.txt beside a tokenizer.json: the two files that every version of CLIPTokenizer reads."""
    bpe = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _write_bpe(folder, bpe["vocab"], bpe["merges"])


def _write_bpe(folder: Path, vocab: dict[str, int], merges: list[str] | list[list[str]]) -> None:
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
