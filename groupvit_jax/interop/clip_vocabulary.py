"""CLIP's byte-pair vocabulary as the two files that Hugging Face's tokenizer reads.

The tokenizer's wheel holds the vocabulary but doesn't hand it out, so it is recovered from what
each token decodes to. Ids are bytes, bytes that end a word, merges in order, start and end.
"""

import functools
import itertools
from pathlib import Path

import instant_clip_tokenizer

from groupvit_jax.runs.files import write_json

START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Printable bytes stand for themselves and come first, in CLIP's and GPT-2's vocabulary.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_SYMBOLS = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + i) for i, byte in enumerate(_OTHERS)
}
_BYTE_IDS = {byte: i for i, byte in enumerate(_PRINTABLE + _OTHERS)}
# Bytes that may complete a character whose last or first bytes a token lacks.
_BEFORE = ["", "c3", "e3", "e381", "f1", "f180", "f18080", "f0", "f09f", "f09f80"]
_AFTER = ["", *("80", "90", "a0"), *("8080", "9080", "a080"), *("808080", "908080")]


def write_tokenizer(directory: Path, context_length: int) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json`."""
    tokens, merges = read_vocabulary()
    write_json(directory / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **special}
    write_json(directory / "tokenizer_config.json", config)


@functools.cache
def read_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens by id, in Hugging Face's spelling, and the pairs that were merged in order."""
    tokenizer = instant_clip_tokenizer.Tokenizer()
    symbols = [_SYMBOLS[byte] for byte in _BYTE_IDS]
    tokens = symbols + [symbol + _END_OF_WORD for symbol in symbols]
    ranks: dict[tuple[str, str], int] = {}
    for token_id in range(len(tokens), tokenizer.start_of_text()):
        token = _spell(tokenizer, token_id)
        tokens.append(token)
        ranks[_last_merge(token, ranks)] = token_id
    return [*tokens, START, END], list(ranks)


def _spell(tokenizer: instant_clip_tokenizer.Tokenizer, token_id: int) -> str:
    """The token's bytes, each as one character, with the mark of a word's end."""
    ends_word = tokenizer.decode([token_id]).endswith(" ")
    # Text ends with whole characters, so only inside a word is anything missing after.
    for before, after in itertools.product(_BEFORE, [""] if ends_word else _AFTER):
        first, last = bytes.fromhex(before), bytes.fromhex(after)
        ids = [*(_BYTE_IDS[b] for b in first), token_id, *(_BYTE_IDS[b] for b in last)]
        text = tokenizer.decode(ids).removesuffix(" ")
        if _REPLACEMENT not in text:
            content = text.encode()
            break
    else:  # the replacement character itself is a token
        content, first, last = _REPLACEMENT.encode(), b"", b""
    content = content[len(first) : len(content) - len(last)]
    return "".join(_SYMBOLS[byte] for byte in content) + _END_OF_WORD * ends_word


def _last_merge(token: str, ranks: dict[tuple[str, str], int]) -> tuple[str, str]:
    """The two tokens that the merges so far make of a token's characters."""
    ends_word = token.endswith(_END_OF_WORD)
    parts = list(token.removesuffix(_END_OF_WORD))
    parts[-1] += _END_OF_WORD * ends_word
    while len(parts) > 2:
        pairs = list(itertools.pairwise(parts))
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks) + 512))
        parts[best : best + 2] = ["".join(pairs[best])]
    first, second = parts
    return first, second
