"""Every setting of training, once: its name, default, what it takes and what it is for.

The tables [run], [vae], [clip] and [diffusion] of a config are the dataclasses below. To add a setting, add a field; to
add some from elsewhere, put a subclass into `SETTINGS`. `python -m context_diffusion.training.settings` prints them as
docs/training.md has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from ..choices import AGGREGATIONS, PRECISIONS
from ..errors import ContextDiffusionError
from ..ranges import SHARE, Range, number, whole_number


@dataclass(frozen=True)
class Kind:
    """What a setting takes that is no number.

    Attributes:
        words: for the error, behind "expected".
        fits: whether a value is one.
    """

    words: str
    fits: Callable[[object], bool]

    def __str__(self) -> str:
        return self.words

    def __contains__(self, value: object) -> bool:
        return self.fits(value)


def one_of(*choices: str | int) -> Kind:
    """Some words, or some numbers."""
    words = f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
    return Kind(words, lambda value: type(value) is type(choices[0]) and value in choices)


def several(kind: Kind | Range, count: int | None = None) -> Kind:
    """Lists of one kind, of `count` entries."""
    words = f"a list, each entry {kind}" if count is None else f"a list of {count} entries, each {kind}"
    return Kind(
        words,
        lambda value: (
            isinstance(value, (list, tuple))
            and (len(value) == count if count is not None else len(value) > 0)
            and all(entry in kind for entry in value)
        ),
    )


TEXT = Kind("a text in quotes", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NAMES = Kind("a table of any names", lambda value: isinstance(value, dict))
_BLOCKS = several(whole_number(1), 4)

# What an autoencoder, and a model, is made with in place of being new.
_START, _TRAINED = ("start_from",), ("start_from", "pretrained")


def setting(default: Any, takes: Kind | Range | type, help: str, own: tuple[str, ...] = ()) -> Any:
    """A field of a table.

    Args:
        default: when the config does not name it; MISSING where it must.
        takes: the values; a dataclass for a table in the table.
        help: what it is for, behind its name.
        own: settings that name something trained. Where one of them is given, the default is None: that thing's own.
    """
    metadata = {"takes": takes, "help": help, "own": own}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """What every stage shares, [run], and the stage's own table as the config has it."""

    stage: str = setting(MISSING, one_of("vae", "clip", "diffusion"), "which stage this is")
    data: str = setting(MISSING, TEXT, "folder that `context-diffusion data` wrote")
    out: str = setting(MISSING, TEXT, "folder for weights, resume state, logs and sample grids")
    steps: int = setting(MISSING, whole_number(1), "optimizer steps in all")
    batch_size: int = setting(MISSING, whole_number(1), "unique images a step and process; rows in stage `diffusion`")
    learning_rate: float = setting(MISSING, number(0), "peak of the cosine schedule")
    final_learning_rate: float = setting(0.05, SHARE, "its end, as a share of the peak")
    warmup_steps: int = setting(100, whole_number(0), "linear warm-up")
    weight_decay: float = setting(0.0, number(0), "decoupled, of the weight matrices")
    grad_clip: float = setting(1.0, number(0), "largest gradient norm")
    ema_decay: float = setting(0.999, SHARE, "decay of the averaged weights, which are the stage's result")
    precision: str = setting(
        "fp32", one_of(*PRECISIONS), "fp32, bf16 (autocast), bf16_matmul (products of layers alone)"
    )
    seed: int = setting(0, whole_number(0), "of weights, batches and noise")
    processes: int = setting(
        1, whole_number(1), "batches a step, a process each where possible; gradients are averaged"
    )
    threads: int = setting(0, whole_number(0), "CPU threads a process; 0 leaves it to torch")
    log_every: int = setting(20, whole_number(0), "steps between two lines of the log; 0 for none")
    save_every: int = setting(500, whole_number(0), "steps between two saved states; 0 for the last one alone")
    sample_every: int = setting(500, whole_number(0), "steps between two sample grids; 0 for none")
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class MoreData:
    """What every stage may draw from beside `data`."""

    icons: str = setting("", TEXT, "folder of another data set, such as `data icons` wrote")
    icon_share: float = setting(0.0, SHARE, "share of the draws that are from `icons`")
    own: str = setting("", TEXT, "folder of one more, such as `data folder` wrote")
    own_share: float = setting(0.0, SHARE, "share of the draws that are from `own`")

    def __post_init__(self) -> None:
        for name, share_name in (("icons", "icon_share"), ("own", "own_share")):
            folder, share = getattr(self, name), getattr(self, share_name)
            if share and not folder:
                raise ContextDiffusionError(f"{share_name} is {share} and {name} names no data set: give both")
            if folder and not share:
                raise ContextDiffusionError(f"{name} is {folder!r} and {share_name} {share}: give a share up to 1")
        if self.icon_share + self.own_share > 1:
            raise ContextDiffusionError(
                f"icon_share is {self.icon_share} and own_share {self.own_share}: give shares of 1 in all, or less"
            )

    @property
    def more_data(self) -> dict[str, tuple[str, float]]:
        """Name -> folder and share of the data sets that are given."""
        every = {"icons": (self.icons, self.icon_share), "own": (self.own, self.own_share)}
        return {name: (folder, share) for name, (folder, share) in every.items() if folder}


@dataclass(frozen=True)
class VAEWeights:
    """[vae.weights]: the terms of the loss beside L1, which counts 1."""

    l2: float = setting(1.0, number(0), "squared error")
    gradient: float = setting(1.0, number(0), "L1 of the differences between neighbouring pixels")
    features: float = setting(0.1, number(0), "distance in `feature_weights`")
    flat: float = setting(0.0, number(0), "L1 once more where the truth has one color")


@dataclass(frozen=True)
class VAESettings(MoreData):
    """[vae]: the small autoencoder."""

    start_from: str = setting("", TEXT, "folder of an earlier run to go on from, whose `latent_channels` win")
    train_encoder: bool = setting(True, FLAG, "false: the decoder alone, so that the latents stay as they are")
    latent_channels: int = setting(8, whole_number(1), "channels of the latents")
    encoder_blocks: tuple[int, ...] | None = setting(
        (1, 3, 3, 3),
        _BLOCKS,
        "residual blocks a level, from the input on; of `start_from` its own, or more",
        own=_START,
    )
    decoder_blocks: tuple[int, ...] | None = setting((3, 3, 3, 1), _BLOCKS, "likewise, from the latents on", own=_START)
    crop: int = setting(64, whole_number(8), "side of the crops in pixels, a multiple of 8")
    transformed: float = setting(0.3, SHARE, "share of the crops in transformed styles")
    noise: float = setting(0.2, number(0), "most noise that the decoder meets, in units of the latents' spread")
    feature_weights: str = setting("", TEXT, "SqueezeNet file for the term `features`; none without")
    weights: VAEWeights = setting(VAEWeights(), VAEWeights, "of the terms of the loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % 8:
            raise ContextDiffusionError(f"[vae] crop is {self.crop}: give a multiple of 8")


@dataclass(frozen=True)
class CLIPSettings(MoreData):
    """[clip]: the small CLIP and its vocabulary."""

    width: int = setting(192, whole_number(1), "of both encoders, a multiple of `heads`")
    heads: int = setting(3, whole_number(1), "attention heads of both")
    text_layers: int = setting(4, whole_number(1), "layers of the text encoder")
    vision_layers: int = setting(4, whole_number(1), "layers of the image encoder")
    patch_size: int = setting(16, whole_number(1), "side of a patch in pixels")
    image_size: int = setting(128, whole_number(1), "side of what the image encoder sees, a multiple of `patch_size`")
    vocabulary: int = setting(4096, whole_number(1), "sub-words that are learned from the captions")
    transformed: float = setting(0.5, SHARE, "share of the pictures in transformed styles")
    text_tokens: int = setting(32, whole_number(3, 77), "positions that captions may fill; the mask hides the rest")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ContextDiffusionError(
                f"[clip] width is {self.width} and heads {self.heads}: give a width that heads divide"
            )
        if self.image_size % self.patch_size:
            raise ContextDiffusionError(
                f"[clip] image_size is {self.image_size} and patch_size {self.patch_size}: give a size that it divides"
            )


@dataclass(frozen=True)
class Shares:
    """[diffusion.shares]: how many of the pool's groups are of a kind; what is left out of the table, none."""

    plain: float | None = setting(None, number(0), "pictures of one style")
    transformed: float | None = setting(None, number(0), "pictures of one style, redrawn by one transform")
    reverse: float | None = setting(None, number(0), "maps of one kind, the pictures being the queries")


@dataclass(frozen=True)
class DiffusionSettings(MoreData):
    """[diffusion]: UNet, layout encoder, projector and the CLIP encoders together, on in-context episodes."""

    vae: str = setting("", TEXT, "folder of the vae stage; beside a checkpoint it takes the place of that one's")
    clip: str = setting("", TEXT, "folder of the clip stage; not read beside a checkpoint")
    start_from: str = setting("", TEXT, "checkpoint to go on from, a file or a bundled name")
    pretrained: str = setting("", TEXT, "checkpoint whose UNet and encoders a new model begins with")
    lora_rank: int = setting(
        0, whole_number(0), "above 0 a LoRA of that rank in the UNet's attention is trained, and nothing else"
    )
    keep_layout: bool = setting(False, FLAG, "and with the ControlNet of `pretrained` too")
    prediction_type: str = setting("flow", one_of("epsilon", "v_prediction", "flow"), "what a new UNet predicts")
    channels: tuple[int, ...] = setting(
        (64, 128, 128), several(whole_number(32)), "of a new UNet's resolutions, multiples of 32 and `head_channels`"
    )
    attention: tuple[bool, ...] | None = setting(
        (False, True, True), several(FLAG), "which resolutions have it; of a checkpoint its own, or more", own=_TRAINED
    )
    layout_attention: tuple[bool, ...] | None = setting(
        None, several(FLAG), "a new layout encoder's: the UNet's, or less"
    )
    head_channels: int = setting(32, whole_number(1), "width of an attention head of a new UNet")
    sample_size: int = setting(16, whole_number(1), "side of a new UNet's usual latents")
    repeats: int = setting(4, whole_number(1), "noise levels a target in a batch")
    members: int = setting(4, one_of(4, 8, 16), "pictures of a group in a batch, each other's context")
    largest_k: int = setting(3, whole_number(1), "most context images of a row, fewer than `members`")
    related: float = setting(0.6, SHARE, "share of the draws that take whole runs of one subgroup; the others take any")
    pool: str = setting("", TEXT, "folder of the episode pool, which like runs may share; without, `pool` in `out`")
    pool_seed: int | None = setting(None, whole_number(0), "of the pool; without, the run's `seed`")
    pool_groups: int = setting(700, whole_number(1), "groups of 16 pictures in the pool")
    shares: Shares = setting(Shares(0.45, 0.47, 0.08), Shares, "of the kinds of groups")
    text_dropout: float = setting(0.45, SHARE, "share of the rows without text")
    context_dropout: float = setting(0.12, SHARE, "share of the rows without context")
    query_dropout: float = setting(0.05, SHARE, "share of the rows without query")
    other_query: float = setting(0.35, SHARE, "share of the pictures whose query is another map or style's drawing")
    noise_mean: float = setting(0.4, number(), "where the noise levels gather; above 0 is high noise")
    noise_uniform: float = setting(0.2, SHARE, "share of them drawn evenly")
    aggregation: str | None = setting(None, one_of(*AGGREGATIONS), "how k context images are joined; without, the mean")
    info: dict = setting({}, NAMES, "what the checkpoint says of itself; its `name` is the file's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.largest_k >= self.members:
            raise ContextDiffusionError(
                f"[diffusion] largest_k is {self.largest_k} with {self.members} members of a group: a context is drawn "
                f"from the others, give 1 to {self.members - 1}"
            )
        if self.start_from and self.pretrained:
            raise ContextDiffusionError(
                "[diffusion] start_from goes on with a model and pretrained begins a new one: give one of them"
            )
        if self.keep_layout and not self.pretrained:
            raise ContextDiffusionError(
                "[diffusion] keep_layout keeps the ControlNet of pretrained, which is not given: give pretrained, or "
                "leave keep_layout out"
            )


# Stage -> its own table.
SETTINGS: dict[str, type] = {"vae": VAESettings, "clip": CLIPSettings, "diffusion": DiffusionSettings}


def table_fields(kind: type) -> list[Field]:
    """The settings of a table."""
    return [item for item in fields(kind) if item.metadata]


def is_needed(item: Field) -> bool:
    """Whether a config must name the setting."""
    return item.default is MISSING and item.default_factory is MISSING


def describe(table: str, kind: type, defaults: object | None = None) -> Iterator[str]:
    """Lines of markdown: a table's settings, and those of the tables in it."""
    yield from ("", f"`[{table}]`", "", "| setting | default | takes | what it is |", "|---|---|---|---|")
    tables = []
    for item in table_fields(kind):
        takes, default = item.metadata["takes"], getattr(defaults or kind, item.name, None)
        if isinstance(takes, type):
            tables.append((f"{table}.{item.name}", takes, default))
            continue
        words = "needed" if is_needed(item) else "" if default in (None, "") else f"`{json.dumps(default)}`"
        yield f"| `{item.name}` | {words} | {takes} | {item.metadata['help']} |"
    for inner in tables:
        yield from describe(*inner)


def document() -> str:
    """All tables as docs/training.md has them."""
    tables = {"run": RunConfig, **SETTINGS}
    return "\n".join(line for name, kind in tables.items() for line in describe(name, kind)).strip() + "\n"


if __name__ == "__main__":
    print(document(), end="")
