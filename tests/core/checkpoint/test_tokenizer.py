"""The tokenizer against CLIP's published layout, transformers' own reader, and a count by hand."""

import json

import pytest

from context_diffusion.checkpoint.tokenizer import (
    tokenizer_from_json,
    tokenizer_to_json,
    train_tokenizer,
)
from context_diffusion.errors import ContextDiffusionError

from ..tiny import CAPTIONS, tiny_tokenizer

TEXTS = [
    *CAPTIONS,
    "",
    "FULL Moon's camp!!",
    "日本 straße 😀",
    "2024",
    "a  \n b",
    "<|endoftext|> a",
    "qzx" * 60,
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_layout_of_ids_is_clips(tokenizer):
    # From OpenAI's vocabulary: the 256 bytes from "!", the same with "</w>" from 256, merges, start, end.
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == len(tokenizer) == 540
    assert [vocabulary[token] for token in ("!", "a", "!</w>", "a</w>")] == [0, 64, 256, 320]
    assert sorted(vocabulary.values()) == list(range(540))
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (538, 539)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 539
    assert tokenizer.model_max_length == 77


def test_merges_are_the_most_frequent_pairs():
    # "ab" appears 6 times, "cd" 3 times, "ef" 2 times, "gh" once: room for two merges.
    tokenizer = train_tokenizer(["ab ab ab ab ab ab cd cd cd ef ef gh"], 514 + 2)
    assert tokenizer.convert_ids_to_tokens([512, 513]) == ["ab</w>", "cd</w>"]
    assert tokenizer("ab ef").input_ids == [514, 512, *tokenizer.convert_tokens_to_ids(["e", "f</w>"]), 515]


def test_special_tokens_case_and_padding(tokenizer):
    assert tokenizer("").input_ids == [538, 539]
    assert tokenizer("FULL Moon").input_ids == tokenizer("full   moon").input_ids
    ids = tokenizer("moon", padding="max_length", truncation=True).input_ids
    assert len(ids) == 77 and ids[0] == 538 and set(ids[2:]) == {539}
    assert len(tokenizer("qzx " * 200, truncation=True).input_ids) == 77


def test_no_text_is_unknown(tokenizer):
    ids = tokenizer("日本 straße 😀 ×").input_ids
    assert 539 not in ids[:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "日本 straße 😀 ×"


def test_few_captions_give_few_tokens():
    tokenizer = train_tokenizer(["ab ab"], 4000)
    assert len(tokenizer) == 515  # one pair is all there is
    assert tokenizer("ab").input_ids == [513, 512, 514]


def test_json_round_trip(tokenizer):
    text = tokenizer_to_json(tokenizer)
    again = tokenizer_from_json(text)
    assert [again(each).input_ids for each in TEXTS] == [tokenizer(each).input_ids for each in TEXTS]
    assert (again.model_max_length, again.pad_token) == (77, "<|endoftext|>")
    assert tokenizer_to_json(again) == text


def test_padding_token_survives(tokenizer):
    # Stable Diffusion 2 pads with "!".
    again = tokenizer_from_json(tokenizer_to_json(tokenizer))
    again.pad_token = "!"
    assert tokenizer_from_json(tokenizer_to_json(again)).pad_token_id == 0


def test_training_is_repeatable():
    assert tokenizer_to_json(tiny_tokenizer()) == tokenizer_to_json(tiny_tokenizer())


def test_too_small_a_vocabulary():
    with pytest.raises(ContextDiffusionError, match="vocab_size is 300.*514"):
        train_tokenizer(CAPTIONS, 300)


def test_added_tokens_are_refused(tokenizer):
    again = tokenizer_from_json(tokenizer_to_json(tokenizer))
    again.add_tokens(["<my-style>"])
    with pytest.raises(ContextDiffusionError, match="1 added tokens .<my-style>"):
        tokenizer_to_json(again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("merges"), "list named 'merges'"),
        (lambda d: d.update(tokens="abc"), "list named 'tokens'"),
        (lambda d: d["tokens"].append("a"), "not distinct"),
        (lambda d: d["merges"].append("a never-seen"), "never-seen"),
        (lambda d: d.update(pad_token="<pad>"), "pad_token '<pad>'"),
    ],
)
def test_damaged_json(tokenizer, change, message):
    description = json.loads(tokenizer_to_json(tokenizer))
    change(description)
    with pytest.raises(ContextDiffusionError, match=message):
        tokenizer_from_json(json.dumps(description))


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_not_a_tokenizer_at_all(text):
    with pytest.raises(ContextDiffusionError, match="JSON"):
        tokenizer_from_json(text)
