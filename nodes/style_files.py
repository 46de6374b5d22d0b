"""Visual contexts into style files and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .category import CATEGORY
from .folders import BUNDLED, STYLES, file_state, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

# What is noted of a visual context beside its features, and goes into a style file with them.
_NOTES = ("images", "aggregation", "encoder")


class _Saved:
    """What this process knows of a style file that it has written."""

    def __init__(self, path: Path) -> None:
        self.path, self.replacements, self.state = path, 0, ""

    def note(self, replaced: bool) -> None:
        """It was written, or holds the style already."""
        self.replacements += replaced
        self.state = file_state(self.path)

    def changes(self) -> str:
        """Another text after each replacement, and when the file is not what was written last; empty until then."""
        state = file_state(self.path)
        return f"{self.replacements or ''}{'' if state == self.state else state}"


# Name -> file. As long-lived as the host's memory of results.
_saved: dict[str, _Saved] = {}


class ContextDiffusionSaveVisualContext(io.ComfyNode):
    """A visual context as a style file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionSaveVisualContext",
            display_name="Save Visual Context",
            category=CATEGORY,
            description="Saves a visual context as a style in models/visual_context, for Load Visual Context: the "
            "context images are not needed again, and neither is the image encoder.",
            search_aliases=["context diffusion", "save style", "export style", "embedding", "save clip vision output"],
            inputs=[
                io.ClipVisionOutput.Input(
                    "visual_context", tooltip="What to save: visual_context of Encode Visual Context."
                ),
                io.String.Input(
                    "name",
                    default="my-style",
                    tooltip='The style\'s name. A "/" makes a sub-folder: "emoji/line art".',
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    advanced=True,
                    tooltip="Replace a style of this name. Off, a name that holds another style is an error.",
                ),
            ],
            outputs=[io.ClipVisionOutput.Output("visual_context", tooltip="The same visual context, to go on with.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: object) -> str:
        # The host may hold on to what a node gave for inputs of long ago: it must not be taken for a file that was
        # written over since, or is gone.
        saved = _saved if name is None else {name: _saved[name]} if name in _saved else {}
        return "\n".join(f"{each} {file.changes()}" for each, file in saved.items() if file.changes())

    @classmethod
    def execute(cls, visual_context, name, overwrite) -> io.NodeOutput:
        import folder_paths
        import torch

        from ..context_diffusion.checkpoint.style import FEATURES, TOKENS, save_style, style_path
        from .checks import check_visual_context

        check_visual_context(visual_context)
        # The first of the folders, where Load Visual Context looks first as well.
        folder = folder_paths.get_folder_paths(STYLES)[0]
        path = style_path(folder, name)
        features = {feature: getattr(visual_context, feature, None) for feature in FEATURES}
        tensors = {feature: value for feature, value in features.items() if isinstance(value, torch.Tensor)}
        info = dict(getattr(visual_context, "context_diffusion", {"images": len(tensors[TOKENS])}))
        info["image_sizes"] = [list(size) for size in getattr(visual_context, "image_sizes", [])]
        replaced = os.path.exists(path)  # says no where Path.exists raises, on names too long
        written = save_style(path, tensors, info, overwrite)
        _saved.setdefault(name, _Saved(path)).note(replaced and written)
        file_name = path.relative_to(folder).as_posix()
        text = f"Saved as {file_name}" if written else f"{file_name} holds this style already"
        return io.NodeOutput(visual_context, ui=ui.PreviewText(text))


class ContextDiffusionLoadVisualContext(io.ComfyNode):
    """A style file as a visual context."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionLoadVisualContext",
            display_name="Load Visual Context",
            category=CATEGORY,
            description="Loads a style that Save Visual Context wrote, in place of context images and their encoder. "
            "It fits models with the image encoder that it was made with.",
            search_aliases=["context diffusion", "load style", "saved style", "embedding", "load clip vision output"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=_style_names(),
                    tooltip="A style that comes with the pack, or a file in models/visual_context. Press R after "
                    "saving a new one.",
                )
            ],
            outputs=[io.ClipVisionOutput.Output("visual_context", tooltip="For Combine Text and Visual Context.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        # A style that was saved anew is loaded again.
        return fingerprint(_style_names() if name is None else [name], _style_file)

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        import comfy.clip_vision
        import comfy.model_management
        import torch

        from ..context_diffusion.checkpoint.style import FEATURES, load_style

        tensors, info = load_style(_style_file(name))
        device = comfy.model_management.intermediate_device()
        output = comfy.clip_vision.Output()
        for feature in FEATURES:
            output[feature] = tensors[feature].to(device) if feature in tensors else None
        if output["all_hidden_states"] is None:
            del output.all_hidden_states
        output["image_sizes"] = [torch.Size(size) for size in info.pop("image_sizes", [])]
        output["context_diffusion"] = {key: info[key] for key in _NOTES if key in info}
        return io.NodeOutput(output)


def _style_names():
    """What the list of styles shows: those that come with the pack first."""
    import folder_paths

    from ..context_diffusion.pretrained import bundled_styles

    return [name + BUNDLED for name in bundled_styles()] + folder_paths.get_filename_list(STYLES)


def _style_file(name):
    """The path of a style from its name in the list."""
    from pathlib import Path

    import folder_paths

    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.pretrained import bundled_styles

    bundled = bundled_styles().get(name.removesuffix(BUNDLED)) if name.endswith(BUNDLED) else None
    path = bundled or folder_paths.get_full_path(STYLES, name)
    if path is None:
        raise ContextDiffusionError(
            f"there is no style {name!r} in models/{STYLES}: choose another name, or save it with Save Visual Context"
        )
    return Path(path)


NODES = [ContextDiffusionSaveVisualContext, ContextDiffusionLoadVisualContext]
