"""Where a pipeline comes from: a model, one file, a folder that diffusers wrote, another pipeline."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from packaging.version import Version

from ..devices import pick_device, pick_dtype
from ..errors import ContextDiffusionError
from ..ranges import LORA_STRENGTH
from .scheduler import make_scheduler

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from typing_extensions import Self

    from ..model.context_diffusion import ContextDiffusion

# diffusers' word for it; the older one warns since.
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

# Beside model_index.json, which names it: how diffusers finds the class of a pipeline that is not its own. Without it
# `DiffusionPipeline.from_pretrained(FOLDER)` has nothing to say but an AttributeError.
_CLASS_FILE = "pipeline.py"
_CLASS_FILE_TEXT = '''\
"""For DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True); the class itself does without this file:
ContextDiffusionPipeline.from_pretrained(FOLDER)."""

from context_diffusion import ContextDiffusionPipeline  # noqa: F401
'''


class LoadingMixin:
    """The ways to a `ContextDiffusionPipeline`, before `DiffusionPipeline` among its bases.

    Weights from a file are turned to what `pick_dtype` says for the device, unless another number format is asked for:
    the file's half precision saves room on a disk, but most CPUs compute in it many times as slowly.
    """

    @classmethod
    def from_model(cls, model: ContextDiffusion, scheduler: SchedulerMixin | None = None) -> Self:
        """A pipeline around a model's own parts, as they are; its scheduler is the model's unless given."""
        if model.wants_context_queries:
            raise ContextDiffusionError(
                "the model's context is example pairs, which the pipeline does not show: sample it with "
                "sampling.flow.FlowSampler"
            )
        return cls(
            unet=model.unet,
            projector=model.projector,
            scheduler=scheduler or make_scheduler(model.schedule),
            layout_encoder=model.layout_encoder,
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            image_encoder=model.image_encoder,
            schedule=dict(model.schedule),
            info=dict(model.info),
            model_variant=dict(model.reading.changes) or None,
        )

    @classmethod
    def from_single_file(
        cls,
        path: str | PathLike,
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device = "cpu",
        scheduler: SchedulerMixin | None = None,
        **parts: object,
    ) -> Self:
        """A pipeline from one .safetensors checkpoint.

        Args:
            path: the file, or the name of a bundled model.
            dtype: of the weights, whatever the file's; what `pick_dtype` says for the device when None.
            torch_dtype: diffusers' older name of `dtype`.
            device: where the weights go, see `pick_device`.
            scheduler: in place of the model's own.
            parts: vae, text_encoder, tokenizer, image_encoder or layout_encoder, in place of the file's or
                where the file leaves them out.

        Raises:
            ContextDiffusionError: no such file or name, not such a checkpoint, an unknown part, device or dtype.
        """
        from ..checkpoint.read import load_checkpoint
        from ..pretrained import find_model

        unknown = sorted(set(parts) - set(cls._optional_components))
        if unknown:
            raise ContextDiffusionError(
                f"from_single_file got {', '.join(unknown)}; parts are {', '.join(cls._optional_components)}"
            )
        device = pick_device(device)
        dtype = pick_dtype(device, _asked(dtype, torch_dtype))
        model = load_checkpoint(find_model(path), device=device, dtype=dtype)
        for name, part in parts.items():
            setattr(model, name, part)
        return cls.from_model(model.eval(), scheduler)

    def load_lora(self, path: str | PathLike, strength: float = 1.0) -> Self:
        """Add a LoRA of this model (kohya's names) to its weights; several add up, see `checkpoint.lora.apply_lora`.

        Args:
            path: the file.
            strength: factor of the change, -100 to 100; minus the strength it has takes it away again.

        Returns:
            The pipeline.

        Raises:
            ContextDiffusionError: the file cannot be read or is no LoRA of this model, or the strength no such number.
        """
        from ..checkpoint.lora import apply_lora

        (strength,) = LORA_STRENGTH.check(strength=strength)
        apply_lora(self, path, strength)
        return self

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike,
        *,
        dtype: str | torch.dtype | dict | None = None,
        torch_dtype: str | torch.dtype | dict | None = None,
        **options: Any,
    ) -> Self:
        """A pipeline from a folder that `save_pretrained` wrote, see `DiffusionPipeline.from_pretrained`.

        Args:
            path: the folder, or a repository's name.
            dtype: of the weights, as in `from_single_file`; a dict has one for each part.
            torch_dtype: diffusers' older name of `dtype`.
            options: diffusers'.
        """
        place = options.get("device_map")
        device = pick_device({None: "cpu", "balanced": None}.get(place, place))
        dtype = _asked(dtype, torch_dtype)
        if isinstance(dtype, dict):
            dtype = {part: pick_dtype(device, each) for part, each in dtype.items()}
        else:
            dtype = pick_dtype(device, dtype)
        return super().from_pretrained(path, **{_DTYPE: dtype}, **options)

    @classmethod
    def from_pipe(
        cls,
        pipeline: diffusers.DiffusionPipeline,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Another pipeline around the parts of one, which the two share, see `DiffusionPipeline.from_pipe`.

        Args:
            pipeline: keeps its parts.
            dtype: what they are turned to, in both pipelines; they stay as they are when None.
            torch_dtype: diffusers' older name of `dtype`.
            options: parts in place of the other pipeline's.
        """
        dtype = pick_dtype(pipeline.device, _asked(dtype, torch_dtype) or pipeline.dtype)
        return super().from_pipe(pipeline, **{_DTYPE: dtype}, **options)

    def save_config(self, save_directory: str | PathLike, **options: Any) -> None:
        """Write model_index.json, and beside it how diffusers finds the class."""
        super().save_config(save_directory, **options)
        folder = Path(save_directory)
        index = folder / self.config_name
        named = {**json.loads(index.read_text()), "_class_name": [Path(_CLASS_FILE).stem, type(self).__name__]}
        index.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n")
        (folder / _CLASS_FILE).write_text(_CLASS_FILE_TEXT)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike) -> dict:
        """model_index.json with this very class's name: no code of the folder is run for it."""
        return {**super()._dict_from_json_file(json_file), "_class_name": cls.__name__}


def _asked(dtype: Any, torch_dtype: Any) -> Any:
    if dtype is not None and torch_dtype is not None:
        raise ContextDiffusionError("got dtype and torch_dtype, its older name: give dtype alone")
    return torch_dtype if dtype is None else dtype
