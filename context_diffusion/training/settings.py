"""The settings of each stage's own table, by name, and what values they take; the stages' classes say what for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a setting takes.

    Attributes:
        words: for the error, behind "expected".
        fits: whether a value is one.
    """

    words: str
    fits: Callable[[object], bool]


def whole(low: int, high: int | None = None) -> Kind:
    """Whole numbers from `low` to `high`."""
    words = f"a whole number from {low} up" if high is None else f"a whole number from {low} to {high}"
    return Kind(words, lambda value: type(value) is int and low <= value and (high is None or value <= high))


def number(low: float | None = None, high: float | None = None) -> Kind:
    """Numbers from `low` to `high`."""
    words = "a number" + (f" from {low:g}" if low is not None else "") + (f" to {high:g}" if high is not None else "")
    return Kind(
        words,
        lambda value: type(value) in (int, float) and (low is None or value >= low) and (high is None or value <= high),
    )


def one_of(*choices: str) -> Kind:
    """Some words."""
    return Kind(f"one of {', '.join(choices)}", lambda value: value in choices)


def several(kind: Kind, count: int | None = None) -> Kind:
    """Lists of one kind, of `count` entries."""
    words = f"a list of {'' if count is None else f'{count} entries, each '}{kind.words}"
    return Kind(
        words,
        lambda value: (
            isinstance(value, (list, tuple))
            and (len(value) == count if count is not None else len(value) > 0)
            and all(kind.fits(entry) for entry in value)
        ),
    )


SHARE = number(0, 1)
TEXT = Kind("a text in quotes", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
# A table that takes any names and values.
ANYTHING: dict[str, Kind] = {}

# A name with names of its own is a table.
SETTINGS: dict[str, dict[str, Kind | dict[str, Kind]]] = {
    "vae": {
        "start_from": TEXT,
        "train_encoder": FLAG,
        "latent_channels": whole(1),
        "encoder_blocks": several(whole(1), 4),
        "decoder_blocks": several(whole(1), 4),
        "crop": whole(8),
        "transformed": SHARE,
        "noise": number(0),
        "feature_weights": TEXT,
        "weights": dict.fromkeys(("l2", "gradient", "features", "flat"), number(0)),
    },
    "clip": {
        **dict.fromkeys(("width", "heads", "text_layers", "vision_layers", "patch_size", "image_size"), whole(1)),
        "vocabulary": whole(1),
        "transformed": SHARE,
        "text_tokens": whole(3, 77),
    },
    "diffusion": {
        **dict.fromkeys(("vae", "clip", "start_from", "pretrained"), TEXT),
        "prediction_type": one_of("epsilon", "v_prediction", "flow"),
        "keep_layout": FLAG,
        "channels": several(whole(32)),
        **dict.fromkeys(("attention", "layout_attention"), several(FLAG)),
        **dict.fromkeys(("head_channels", "sample_size", "repeats", "members", "largest_k", "pool_groups"), whole(1)),
        "pool": TEXT,
        "pool_seed": whole(0),
        "icons": TEXT,
        **dict.fromkeys(("related", "icon_share", "other_query", "noise_uniform"), SHARE),
        **dict.fromkeys(("text_dropout", "context_dropout", "query_dropout"), SHARE),
        "noise_mean": number(),
        **dict.fromkeys(("aggregation", "cross_attention", "context_hidden_state", "null_context"), TEXT),
        **dict.fromkeys(("layout", "baseline"), TEXT),
        "shares": dict.fromkeys(("plain", "transformed", "reverse"), number(0)),
        "info": ANYTHING,
    },
}

# What the values of [run] may be, where their type does not say it all.
RUN_RANGES: dict[str, Kind] = {
    **dict.fromkeys(("steps", "batch_size", "processes"), whole(1)),
    **dict.fromkeys(("seed", "threads", "warmup_steps", "log_every", "save_every", "sample_every"), whole(0)),
    **dict.fromkeys(("learning_rate", "weight_decay", "grad_clip"), number(0)),
    **dict.fromkeys(("final_learning_rate", "ema_decay"), SHARE),
}
