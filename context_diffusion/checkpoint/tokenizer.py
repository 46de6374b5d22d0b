"""CLIP tokenizers of our own size: trained from captions, carried inside the checkpoint as JSON."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ContextDiffusionError, brief
from ..files import parse_json

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

logger = logging.getLogger(__name__)

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MAX_LENGTH = 77

# What CLIP calls a word: a contraction, a run of letters, one digit, a run of other signs.
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# 256 bytes, each inside a word and at its end: with them no text is unknown.
_N_BYTES = 256
SMALLEST_VOCABULARY = 2 * _N_BYTES + 2

_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
_LONGEST = 1_000_000
_FIELDS = {"tokens": list, "merges": list, "model_max_length": int, **dict.fromkeys(_SPECIALS, str)}


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary in CLIP's format from captions.

    The order of ids is CLIP's: 256 bytes, 256 bytes that end a word, the merges as they were learned, start
    of text, end of text (which is also the padding). Captions are lower-cased.

    Args:
        captions: the training texts.
        vocab_size: the most tokens to have, at least 514. Few captions may give fewer.

    Returns:
        A tokenizer with `model_max_length` 77.

    Raises:
        ContextDiffusionError: `vocab_size` has no room for the bytes.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    if vocab_size < SMALLEST_VOCABULARY:
        raise ContextDiffusionError(
            f"vocab_size is {vocab_size}: bytes and special tokens alone need {SMALLEST_VOCABULARY}"
        )
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    tokens = dict.fromkeys([*alphabet, *(byte + END_OF_WORD for byte in alphabet)])
    merges = []
    for left, right in _learn_merges(words):
        if left + right not in tokens and len(tokens) + 2 >= vocab_size:
            break
        tokens[left + right] = None
        merges.append((left, right))
    tokens = [*tokens, START, END]
    logger.info("tokenizer: %d tokens, %d merges", len(tokens), len(merges))
    return _build(
        {
            "tokens": tokens,
            "merges": [f"{left} {right}" for left, right in merges],
            "model_max_length": MAX_LENGTH,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        }
    )


def tokenizer_to_json(tokenizer: CLIPTokenizer) -> str:
    """Write a tokenizer as JSON: tokens in id order, merges, special tokens, greatest length.

    Raises:
        ContextDiffusionError: the tokenizer has ids that a CLIP vocabulary cannot have (gaps, added tokens).
    """
    return json.dumps(_describe(tokenizer), ensure_ascii=True, separators=(",", ":"))


def tokenizer_from_json(text: str) -> CLIPTokenizer:
    """Read what `tokenizer_to_json` wrote; the ids of any text are the same.

    Raises:
        ContextDiffusionError: as `read_description`.
    """
    return _build(read_description(text))


def read_description(text: str) -> dict[str, Any]:
    """What `tokenizer_to_json` wrote, checked, without a tokenizer made of it.

    Raises:
        ContextDiffusionError: not JSON, or fields missing or of the wrong kind.
    """
    try:
        description = parse_json(text)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"the tokenizer cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise ContextDiffusionError(f"the tokenizer's JSON is a {type(description).__name__}, not an object")
    for key, kind in _FIELDS.items():
        if not isinstance(description.get(key), kind):
            raise ContextDiffusionError(f"the tokenizer's JSON needs a {kind.__name__} named {key!r}")
    if not 1 <= description["model_max_length"] <= _LONGEST:
        raise ContextDiffusionError(f"the tokenizer's model_max_length is {description['model_max_length']}")
    tokens = description["tokens"]
    known = {token for token in tokens if isinstance(token, str)}
    if len(known) != len(tokens):
        raise ContextDiffusionError("the tokenizer's tokens are not distinct strings")
    for merge in description["merges"]:
        # Other white space than the one between the two would break the lines of the vocabulary files.
        pair = merge.split() if isinstance(merge, str) else []
        if len(pair) != 2 or " ".join(pair) != merge or not {*pair, "".join(pair)} <= known:
            raise ContextDiffusionError(f"the tokenizer's merge {brief(merge)} is not made of its tokens")
    for name in _SPECIALS:
        if description[name] not in known:
            raise ContextDiffusionError(f"the tokenizer's {name} {brief(description[name])} is not in its tokens")
    return description


def _learn_merges(words: Counter[str]) -> Iterator[tuple[str, str]]:
    """Join the most frequent pair of neighbours in all words, again and again, while one appears twice.

    Ties go to the first pair in the alphabet. The trainer of the `tokenizers` library breaks them anew in
    each run: two runs over the same captions would not share their ids.
    """
    spellings = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    counts = list(words.values())
    total: Counter[tuple[str, str]] = Counter()
    homes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, symbols in enumerate(spellings):
        for pair in pairwise(symbols):
            total[pair] += counts[index]
            homes[pair].add(index)
    queue = [(-count, pair) for pair, count in total.items()]
    heapify(queue)
    while queue:
        negative, best = heappop(queue)
        if total[best] != -negative:
            continue  # an older count: the newer one is in the queue too
        if total[best] < 2:
            return
        yield best
        changed = set()
        for index in homes.pop(best):
            for pair in pairwise(spellings[index]):
                total[pair] -= counts[index]
                changed.add(pair)
            spellings[index] = _join(spellings[index], best)
            for pair in pairwise(spellings[index]):
                total[pair] += counts[index]
                homes[pair].add(index)
                changed.add(pair)
        for pair in changed - {best}:
            heappush(queue, (-total[pair], pair))


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's symbols with every occurrence of the pair made one, from the left."""
    joined, index = [], 0
    while index < len(symbols):
        width = 2 if tuple(symbols[index : index + 2]) == pair else 1
        joined.append("".join(symbols[index : index + width]))
        index += width
    return joined


def _build(description: dict) -> CLIPTokenizer:
    """The tokenizer of a description, by way of the vocabulary files: what transformers 4 and 5 both read."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        _write_files(description, Path(folder))
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.name_or_path = ""
    return tokenizer


def _write_files(description: dict, folder: Path) -> None:
    vocabulary = {token: index for index, token in enumerate(description["tokens"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    # Readers of merges.txt skip its first line.
    lines = ["#version: 0.2", *description["merges"], ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
        "model_max_length": description["model_max_length"],
        **{name: description[name] for name in _SPECIALS},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _describe(tokenizer: CLIPTokenizer) -> dict:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())["model"]
        vocabulary, merges = model["vocab"], _read_merges(model["merges"])
    else:  # transformers 4's tokenizer in Python
        vocabulary = dict(tokenizer.encoder)
        merges = [pair for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    added = sorted(set(tokenizer.get_vocab()) - set(vocabulary))
    if added:
        raise ContextDiffusionError(
            f"the tokenizer has {len(added)} added tokens ({', '.join(added[:3])}): take them out, "
            "a checkpoint carries a plain CLIP vocabulary"
        )
    tokens = sorted(vocabulary, key=vocabulary.get)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ContextDiffusionError("the tokenizer's ids are not 0, 1, 2, ...: a CLIP vocabulary has no gaps")
    return {
        "tokens": tokens,
        "merges": [f"{left} {right}" for left, right in merges],
        # Tokenizers without a limit of their own carry a huge number; CLIP's text encoder has 77 positions.
        "model_max_length": min(int(tokenizer.model_max_length), _LONGEST),
        **{name: str(getattr(tokenizer, name)) for name in _SPECIALS},
    }


def _read_merges(merges: list) -> list[tuple[str, str]]:
    """Merges as pairs: older releases of `tokenizers` write them as "left right"."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
