"""Damaged files through every reader: an error of ours or the right result, soon and in little memory.

    python -m tests.core.checkpoint.fuzz --count 5000

damages as many styles and as many checkpoints, each by its number and the seed, and leaves with 1 if any went wrong.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from context_diffusion.checkpoint import header
from context_diffusion.checkpoint.parts import present_parts
from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.checkpoint.stored import read_stored
from context_diffusion.checkpoint.style import load_style, save_style
from context_diffusion.checkpoint.tokenizer import tokenizer_from_json
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.errors import ContextDiffusionError

KINDS = ("style", "checkpoint")
CPU_SECONDS, MOST_BYTES = 5, 2**30
CHECKSUM = "context_diffusion.crc32"
DESCRIPTIONS = ("context_diffusion.config", "context_diffusion.tokenizer", "context_diffusion.visual_context")

# What JSON can say and json.dumps does not: texts that stand for these are replaced behind it.
RAW = ["1e999", "-Infinity", "NaN", "9" * 5000, "[" * 1000 + "]" * 1000, '"\\ud800"', "{]", '"\\u0000\\u001b[2J\\n"']
NASTY = [None, True, 0, -1, 1, 2, 7, 33, 64.0, 1e-7, 100_000, 10**9, 2**63, 1e308, "", "x" * 20_000, "gelu", [], {}]
NASTY += [f"@RAW{number}@" for number in range(len(RAW))]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I8", "U8", "BOOL", "C64", "F4", "", "\x1b", 7]


@dataclass
class Case:
    """A damaged file.

    Attributes:
        damage: how it came about.
        content: the file.
        while_read: what happens to the file after so many reads, or None.
    """

    damage: str
    content: bytes
    while_read: tuple[int, Callable[[Path], None]] | None = None

    @property
    def carries_checksum(self) -> bool:
        return f'"{CHECKSUM}"'.encode() in self.content


def make_style(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {"last_hidden_state": torch.randn(1, 5, 8, generator=generator)}
    tensors["image_embeds"] = torch.randn(1, 8, generator=generator).half()
    info = {"images": 3, "aggregation": "mean", "encoder": "0123456789abcdef", "image_sizes": [[3, 32, 32]]}
    save_style(path, tensors, info, overwrite=True)
    return path


def make_checkpoint(path: Path) -> Path:
    """Every part, and as little of each as there can be."""
    from diffusers import ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPVisionModel

    from ..tiny import taesd_vae, text_config, tiny_model, tiny_tokenizer, vision_config

    model = tiny_model(prediction_type="flow")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
        )
        model.layout_encoder = ControlNetModel.from_unet(model.unet)
        model.vae = taesd_vae(num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))
        configs = text_config(tiny_tokenizer()), vision_config()
        for config in configs:
            config.num_hidden_layers = 1
        model.text_encoder, model.image_encoder = CLIPTextModel(configs[0]), CLIPVisionModel(configs[1])
    return save_checkpoint(model, path, torch.float16)


MAKERS = {"style": make_style, "checkpoint": make_checkpoint}


def damage(content: bytes, seed: int, number: int) -> Case:
    """The `number`-th damaged file of a seed, from the bytes of a whole one."""
    rng = random.Random(f"{seed} {number}")
    way = rng.choice(WAYS)
    done = way(content, rng)
    case = done if isinstance(done, Case) else Case("", done)
    case.damage = f"{way.__name__}{case.damage and ' '}{case.damage}"
    return case


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    end = rng.choice([8, 300, _data_start(content), len(content)])
    start = rng.choice([0, _data_start(content)]) if end == len(content) else 0
    for _ in range(rng.choice([1, 1, 1, 3, 40])):
        changed[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    run = rng.choice([bytes(64), b"\xff" * 64, rng.randbytes(64), content[:64]])
    return content[:start] + run + content[start + len(run) :]


def lengthened(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice([b"\x00", b"more", content])


def another_header_length(content: bytes, rng: random.Random) -> bytes:
    length = rng.choice([0, 1, 7, len(content), len(content) - 8, 2**24, 2**24 + 1, 10**8, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + content[8:]


def edited_entries(content: bytes, rng: random.Random) -> bytes:
    """dtypes, shapes, places and names of tensors."""

    def edit(entries: dict[str, Any]) -> None:
        names = [name for name in entries if name != "__metadata__"]
        name, other = rng.choice(names), rng.choice(names)
        entry = entries[name]
        action = rng.randrange(8)
        if action == 0:
            entry["dtype"] = rng.choice(DTYPES)
        elif action == 1:
            _edit_leaf(entry["shape"], rng)
        elif action == 2:
            _edit_leaf(entry["data_offsets"], rng)
        elif action == 3:
            entries[rng.choice(["unet.x", "\x1b[31m\n", "y" * 5000, "", ".", name.upper()])] = entries.pop(name)
        elif action == 4:
            del entries[name]
        elif action == 5:
            entries[name], entries[other] = entries[other], entries[name]
        elif action == 6:
            entry["shape"] = rng.choice([entry["shape"][::-1], [1, *entry["shape"]], [1] * 50 + entry["shape"]])
        else:
            entries[name] = rng.choice([*NASTY, *entries.values()])

    return _with_header(content, edit)


def edited_metadata(content: bytes, rng: random.Random) -> bytes:
    def edit(entries: dict[str, Any]) -> None:
        metadata = entries["__metadata__"]
        key = rng.choice(list(metadata))
        if rng.random() < 0.3:
            del metadata[key]
        elif rng.random() < 0.2:
            entries["__metadata__"] = rng.choice(NASTY)
        else:
            metadata[key] = rng.choice([*NASTY, metadata[rng.choice(list(metadata))], metadata[key][:-1]])

    return _with_header(content, edit)


def edited_description(content: bytes, rng: random.Random) -> bytes:
    """Values in the config, the tokenizer or a style's description; mostly in a file without a checksum."""

    def edit(entries: dict[str, Any]) -> None:
        metadata = entries["__metadata__"]
        if rng.random() < 0.8:
            metadata.pop(CHECKSUM)
        key = rng.choice([key for key in DESCRIPTIONS if key in metadata])
        described = json.loads(metadata[key])
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            _edit_leaf(described, rng)
        metadata[key] = _dump(described)

    return _with_header(content, edit)


def without_checksum_and_flipped(content: bytes, rng: random.Random) -> bytes:
    plain = _with_header(content, lambda entries: entries["__metadata__"].pop(CHECKSUM))
    return flipped_bits(plain, rng)


def another_file(content: bytes, rng: random.Random) -> bytes:
    kinds = [b"", b"{}", b"PK\x03\x04" + content, b"\x80\x04" + content, b"GGUF" + content, b"<html>" + content]
    header_only = [b"{}", b"[]", b"null", b'"x"', b"[" * 5000, RAW[4].encode(), b'{"a": 1}', b'{"__metadata__": {}}']
    text = rng.choice(header_only)
    return rng.choice([*kinds, struct.pack("<Q", len(text)) + text])


def changed_while_read(content: bytes, rng: random.Random) -> Case:
    after, size = rng.randrange(2, 12), len(content)
    action, name = rng.choice(
        [
            (lambda path: os.truncate(path, size // 2), "cut"),
            (lambda path: os.truncate(path, 0), "emptied"),
            (lambda path: path.write_bytes(content + content), "grown"),
            (lambda path: path.write_bytes(flipped_bits(content, rng)), "written over"),
            (lambda path: path.unlink(), "removed"),
        ]
    )
    return Case(name, content, (after, action))


WAYS = [truncated, flipped_bits, flipped_bits, overwritten, lengthened, another_header_length, edited_entries]
WAYS += [edited_entries, edited_metadata, edited_description, edited_description, edited_description]
WAYS += [without_checksum_and_flipped, another_file, changed_while_read]


def _data_start(content: bytes) -> int:
    return 8 + struct.unpack("<Q", content[:8])[0]


def _with_header(content: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    start = _data_start(content)
    entries = json.loads(content[8:start])
    edit(entries)
    text = _dump(entries).encode()
    return struct.pack("<Q", len(text)) + text + content[start:]


def _dump(value: Any) -> str:
    text = json.dumps(value)
    for number, raw in enumerate(RAW):
        text = text.replace(f'"@RAW{number}@"', raw)
    return text


def _edit_leaf(value: Any, rng: random.Random) -> None:
    """Change something in nested lists and tables, in place."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if not keys:
            value.append(0) if isinstance(value, list) else value.update(more=0)
            return
        key = rng.choice(keys)
        # The sizes of a config lie deeper than the rest, and are fewer.
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.9:
            value = value[key]
            continue
        break
    action = rng.randrange(6)
    if action == 0:
        del value[key]
    elif action == 1 and isinstance(value, list):
        value.extend(value * rng.choice([1, 1000]))
    elif action == 2 and isinstance(value, dict):
        value[rng.choice(["more", "class", "\x1b"])] = rng.choice(NASTY)
    elif action == 3 and type(value[key]) in (int, float):
        value[key] = rng.choice([value[key] + 1, value[key] * 2, -value[key], value[key] * 10**6, float(value[key])])
    else:
        value[key] = copy.deepcopy(rng.choice(NASTY))


def read_checkpoint(path: Path) -> dict[str, Any]:
    model = load_checkpoint(path)
    weights = {
        f"{name} {key}": value
        for name, part in present_parts(model).items()
        for key, value in part.state_dict().items()
    }
    vocabulary = model.tokenizer and model.tokenizer.get_vocab()
    return weights | {"schedule": model.schedule, "info": model.info, "vocabulary": vocabulary}


def read_native(path: Path) -> dict[str, Any]:
    stored = read_stored(path)
    weights = {f"{name} {key}": value for name, part in stored.weights.items() for key, value in part.items()}
    return weights | {"rest": (stored.configs, stored.schedule, stored.info, stored.tokenizer, stored.limits)}


def read_tokenizer(path: Path) -> dict[str, Any]:
    return tokenizer_from_json(read_stored(path, ()).tokenizer or "").get_vocab()


def read_info(path: Path) -> dict[str, Any]:
    found = read_metadata(path)
    # Anybody may change the card.
    return {key: value for key, value in found.items() if key not in ("path", "size", "modelspec")}


def read_style(path: Path) -> dict[str, Any]:
    tensors, info = load_style(path)
    return {**tensors, "info": info}


READERS: dict[str, tuple[Callable[[Path], dict[str, Any]], ...]] = {
    "style": (read_style,),
    "checkpoint": (read_info, read_native, read_tokenizer, read_checkpoint),
}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], torch.Tensor) else left[key] == right[key]
        for key in left
    )


class TookTooLong(BaseException):
    pass


@contextmanager
def limited() -> Iterator[None]:
    """So many seconds of the processor, and a minute of the clock for what waits."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 60))
    for number, timer, seconds in timers:
        signal.signal(number, stop)
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)


@contextmanager
def changed(path: Path, while_read: tuple[int, Callable[[Path], None]] | None) -> Iterator[None]:
    """Let something happen to a file between two reads of it."""
    if while_read is None:
        yield
        return
    after, action = while_read
    fill, count = header.TensorFile._fill, 0

    def counted(self: Any, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == after:
            action(path)
        fill(self, *arguments)

    with mock.patch.object(header.TensorFile, "_fill", counted):
        yield


def run(
    kind: str, count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda line: None, first: int = 0
) -> list[str]:
    """Damage and read `count` files from the `first` on.

    Returns:
        What went wrong, a line each.
    """
    whole = MAKERS[kind](folder / f"whole {kind}.safetensors")
    content = whole.read_bytes()
    right = {reader: reader(whole) for reader in READERS[kind]}
    before, started, slowest = _peak(), time.monotonic(), 0.0
    faults, ends, said = [], Counter(), 0
    path = folder / f"damaged {kind}.safetensors"
    for number in range(first, first + count):
        case = damage(content, seed, number)
        for reader in READERS[kind]:
            path.write_bytes(case.content)
            where = f"{kind} {number} ({case.damage}) by {reader.__name__}"
            clock = time.process_time()
            try:
                with limited(), changed(path, case.while_read):
                    result = reader(path)
                ends["read"] += 1
                if case.carries_checksum and not same(result, right[reader]):
                    faults.append(f"{where}: taken with other values in it")
            except ContextDiffusionError as error:
                ends["refused"] += 1
                if not str(error).isprintable() or len(str(error)) > 2000:
                    faults.append(f"{where}: {str(error)[:300]!r} cannot be shown")
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                last = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(f"{where}: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"[:400])
            slowest = max(slowest, time.process_time() - clock)
        if _peak() - before > MOST_BYTES:
            faults.append(f"{kind} {number} ({case.damage}): {(_peak() - before) / 2**20:.0f} MiB of memory")
            before = _peak()
        for fault in faults[said:]:
            say(fault)
        said = len(faults)
        if number % 500 == 499:
            say(f"{kind} {number + 1}: {len(faults)} faults so far")
    say(
        f"{count} damaged {kind} files, {sum(ends.values())} readings: {ends['refused']} refused, {ends['read']} read, "
        f"{len(faults)} faults; slowest {slowest:.2f} s of CPU, {(_peak() - before) / 2**20:.0f} MiB more at the peak, "
        f"{time.monotonic() - started:.0f} s in all"
    )
    return faults


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="files of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first: what a fault names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="one kind alone")
    arguments = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.kind or KINDS:
            say = partial(print, flush=True)
            faults += run(kind, arguments.count, arguments.seed, Path(folder), say, arguments.first)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
