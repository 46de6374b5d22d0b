"""Text and visual context into the three conditionings that guidance needs."""

from __future__ import annotations

from comfy_api.latest import io

from .category import CATEGORY

# Tokens of a piece of text: CLIP encodes longer texts in several.
_PIECE = 77


class ContextDiffusionCombine(io.ComfyNode):
    """y = [h^c, h^V] (eq. 3) for each branch of guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionCombine",
            display_name="Combine Text and Visual Context",
            category=CATEGORY,
            description="Puts the visual context behind the text, for the sampler. Leave out the text (context only) "
            "or the visual context (text only), not both. positive is what Apply Style Model gives; negative gets an "
            "empty context of the same length, so that all branches run in one model call.",
            search_aliases=[
                "context diffusion",
                "visual context",
                "in-context",
                "apply style model",
                "style",
                "image prompt",
                "conditioning",
                "combine",
                "redux",
                "null context",
            ],
            # The conditionings first and in the order of the outputs: the host bypasses a node by the place of its
            # sockets. It puts required ones before optional ones, so that none is required.
            inputs=[
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The prompt, from CLIP Text Encode. Not connected (context only): the empty prompt that "
                    "clip encodes, or without clip the negative's text.",
                ),
                io.Conditioning.Input(
                    "context_only",
                    optional=True,
                    tooltip="The text of context_only, the branch with the visual context alone. Not connected: the "
                    "negative's text.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt, from CLIP Text Encode. Not connected: an empty text, for which clip "
                    "is needed.",
                ),
                io.StyleModel.Input(
                    "style_model",
                    optional=True,
                    tooltip="The projector from images to text: STYLE_MODEL of Load Context Diffusion, or Flux Redux. "
                    "Always needed.",
                ),
                io.ClipVisionOutput.Input(
                    "visual_context",
                    optional=True,
                    tooltip="From Encode Visual Context or Load Visual Context. Not connected: the text alone. A batch "
                    "from CLIP Vision Encode is laid end to end, as Apply Style Model does; Encode Visual Context "
                    "averages.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Encodes the empty text where positive or negative is not connected: CLIP of the loader.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strong the visual context is. 0 is exactly as if none were connected.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt with the visual context."),
                io.Conditioning.Output(
                    "context_only",
                    tooltip="The visual context without the prompt: for Context Diffusion Sampler, when its two "
                    "guidance scales differ.",
                ),
                io.Conditioning.Output("negative", tooltip="The negative (or empty) prompt without a visual context."),
            ],
        )

    @classmethod
    def execute(
        cls,
        strength,
        positive=None,
        context_only=None,
        negative=None,
        style_model=None,
        visual_context=None,
        clip=None,
    ) -> io.NodeOutput:
        from .checks import check_present, check_text
        from .fits import check_style_model, check_text_width

        check_present(
            style_model, "style_model", "connect STYLE_MODEL of Load Context Diffusion or of Load Style Model"
        )
        if visual_context is not None:
            check_style_model(style_model, visual_context)
        texts = _texts(positive, context_only, negative, clip, visual_context)
        for text, source in texts:
            check_text(text, source)
            check_text_width(style_model, text, source)
        positive, context_only, negative = (text for text, _ in texts)

        heard = visual_context is not None and strength != 0
        context = _project(style_model, visual_context, strength) if heard else None
        if not hasattr(getattr(style_model, "model", None), "n_tokens"):
            # Not a projector of ours: what its model was trained with as no context is no context at all.
            return io.NodeOutput(_append(positive, context), _append(context_only, context), negative)
        positive, context_only, negative = _equally_long(positive, context_only, negative)
        null = _null_context(negative, context.shape[1] if heard else _n_tokens(style_model, visual_context))
        context = context if heard else null
        return io.NodeOutput(_append(positive, context), _append(context_only, context), _append(negative, null))


def _texts(positive, context_only, negative, clip, visual_context):
    """The texts of the three branches, each with the input it came from: the empty one where none is connected."""
    from ..context_diffusion.errors import ContextDiffusionError

    if positive is None and visual_context is None:
        raise ContextDiffusionError(
            "neither a text nor a visual context: connect CLIP Text Encode to positive, Encode Visual Context to "
            "visual_context, or both (for a query image alone: CLIP Text Encode with an empty text)"
        )
    if negative is None and clip is None:
        raise ContextDiffusionError(
            "negative is not connected, and neither is clip to encode an empty text for it: connect CLIP of Load "
            "Context Diffusion to clip, or CLIP Text Encode to negative"
        )
    empty = None
    if clip is not None and (positive is None or negative is None):
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    without = (negative, "negative") if negative is not None else (empty, "clip")
    if positive is None:
        prompt = without if empty is None else (empty, "clip")
    else:
        prompt = (positive, "positive")
    return prompt, without if context_only is None else (context_only, "context_only"), without


def _project(style_model, visual_context, strength):
    """h^V (1, tokens of all rows, d_c), scaled."""
    tokens = style_model.get_cond(visual_context).flatten(0, 1).unsqueeze(0)
    return tokens * strength


def _n_tokens(style_model, visual_context):
    """N, the length of a visual context that says nothing."""
    from ..context_diffusion.errors import ContextDiffusionError

    if style_model.model.n_tokens:
        return style_model.model.n_tokens
    if visual_context is None:
        raise ContextDiffusionError(
            "style_model is from a file without an image encoder, so that the length of its empty visual context is "
            "not known: connect any visual context to visual_context and set strength to 0"
        )
    return visual_context.last_hidden_state.shape[1]


def _null_context(text, n_tokens):
    """The visual context that says nothing, (1, n_tokens, d_c)."""
    from ..context_diffusion.model.visual_context import null_context

    like = text[0][0]
    return null_context(1, n_tokens, like.shape[-1], like)


def _append(conditioning, context):
    """The context behind the tokens of every entry; everything else in an entry stays as it is. None: the same."""
    import torch

    from ..context_diffusion.model.conditioning import combine

    if context is None:
        return conditioning
    appended = []
    for text, options in conditioning:
        options = options.copy()
        if options.get("attention_mask") is not None:
            options["attention_mask"] = _widen_mask(options["attention_mask"], text.shape[1], context.shape[1])
            options.setdefault("attention_mask_img_shape", (1, 1))
        # The wider type of the two, so that neither is rounded.
        text = text.to(torch.promote_types(text.dtype, context.dtype))
        appended.append([combine(text, context), options])
    return appended


def _widen_mask(mask, n_text, n_context):
    """Make room for the context behind the text in an attention bias (B, text + image, text + image).

    Text, context and image see the context without a bias. A mask of booleans becomes a bias, as the host does.
    """
    import torch

    bias = mask.to(torch.float16)
    if mask.dtype == torch.bool:
        bias = torch.log(bias)
    size = mask.shape[-1] + n_context
    wide = bias.new_zeros(mask.shape[0], size, size)
    old = torch.tensor([i for i in range(size) if not n_text <= i < n_text + n_context], device=bias.device)
    wide[:, old[:, None], old[None, :]] = bias
    return wide


def _equally_long(*conditionings):
    """Repeat shorter texts up to the length of the longest, where whole pieces of text go into it.

    A prompt of more than 75 words or so comes in several pieces of 77 tokens. With texts of unequal length the host
    cannot run all branches in one model call, and the visual context would have another share of the attention in
    each. Attention over a text and over the same text repeated are the same.
    """
    import torch

    longest = max(text.shape[1] for conditioning in conditionings for text, _ in conditioning)
    out = []
    for conditioning in conditionings:
        entries = []
        for text, options in conditioning:
            length = text.shape[1]
            pieces = longest % length == 0 or (longest % _PIECE == 0 and length % _PIECE == 0)
            if length < longest and pieces and options.get("attention_mask") is None:
                text = text[:, torch.arange(longest, device=text.device) % length]
            entries.append([text, options])
        out.append(entries)
    return out


NODES = [ContextDiffusionCombine]
