"""Guidance over three branches as a guider of the host. Imported when a node runs, never at start-up."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.samplers
import node_helpers
from torch import Tensor

from ...context_diffusion.model.guidance import CONTEXT_ONLY, FULL, NULL, branch_weights, guide

# The branches of guidance, in the order in which they stand in for one another, and the conditionings they are made by.
_CONDITIONINGS = {FULL: "positive", CONTEXT_ONLY: "context_only", NULL: "negative"}
# Options of a conditioning's entry that may leave steps out.
_RANGES = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")


class ThreeBranchGuider(comfy.samplers.CFGGuider):
    """Ordinary guidance with a third conditioning: the context without the text.

    Steps that need two branches only, or one, are the host's own `sampling_function` on them. With three, all run in
    one `calc_cond_batch`, the positive as branch 0 and the negative as branch 1, as patches of the attention expect;
    the third in one of its own where another pack replaces the attention, or how batches are made.
    Functions that other nodes put into the model's options see these two and the text scale: what they make of
    ordinary guidance is kept, the context's own share is added to it, and those that work on the finished
    prediction get it finished.

    A conditioning is absent in the steps that the timestep ranges of all its entries leave out. The host predicts
    zeros for it, which no guidance means. Here the others take over, with the weights of `branch_weights`:

    - positive, (c, V): there is no text, (c, V) is (0, V). The context is guided by g_ctx.
    - context_only, (0, V): there is no context to tell from the text, (0, V) is (0, 0). The text is guided by g_txt.
    - negative, (0, 0): there is nothing to steer the context away from, g_ctx is 1. The text is guided by g_txt.
    - two of them: the prediction of the third as it is, unguided. All three: the host's zeros.
    """

    def set_conds(self, positive: list, negative: list, context_only: list | None) -> None:
        """The conditionings, in the host's format; None for a context_only that is never asked for."""
        conditionings = {"positive": positive, "negative": negative}
        if context_only is not None:
            # As in the host's own guiders of several conditionings: what is not the positive is encoded as negative.
            values = {"prompt_type": "negative"}
            conditionings["context_only"] = node_helpers.conditioning_set_values(context_only, values)
        self.inner_set_conds(conditionings)

    def set_guidance(self, text_guidance: float, context_guidance: float) -> None:
        """The two scales; 1 means no guidance."""
        self.set_cfg(text_guidance)
        self.text_guidance, self.context_guidance = text_guidance, context_guidance

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None):
        """The guided prediction of the clean latents, (B, C, h, w) as `x`."""
        model_options = model_options or {}
        scales = self.text_guidance, self.context_guidance
        if self.cfg != self.text_guidance:
            # A node overrides the scale for this step, and knows of one scale only: ordinary guidance with it.
            scales = self.cfg, self.cfg
        known = [branch for branch, name in _CONDITIONINGS.items() if name in self.conds]
        present = [branch for branch in known if _is_present(self.conds[_CONDITIONINGS[branch]], timestep)] or known
        weights = weights_of_present(present, *scales)
        if len(weights) == 3:
            return self._predict_three(x, timestep, weights, model_options)

        if len(weights) == 2:
            first, second = weights
        else:
            (only,) = weights
            first = present[0] if only == NULL else only
            second = present[-1]
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds[_CONDITIONINGS[second]],
            self.conds[_CONDITIONINGS[first]],
            weights.get(first, 0.0),
            model_options=model_options,
            seed=seed,
        )

    def _predict_three(self, x: Tensor, timestep: Tensor, weights: dict[str, float], model_options: dict) -> Tensor:
        model, scale = self.inner_model, weights[FULL]
        pair = [self.conds["positive"], self.conds["negative"]]
        third = self.conds["context_only"]
        common = {"input": x, "sigma": timestep, "model": model, "model_options": model_options}
        if "sampler_calc_cond_batch_function" in model_options:
            # Such functions take two branches apart by name.
            out = model_options["sampler_calc_cond_batch_function"]({**common, "conds": pair})
            (context_only,) = comfy.samplers.calc_cond_batch(model, [third], x, timestep, model_options)
        elif any(model_options.get("transformer_options", {}).get("patches_replace", {}).values()):
            # Another pack's attention has something for the positive and something for the negative, and looks both
            # up by the number of the branch: the third is a positive of its own.
            out = comfy.samplers.calc_cond_batch(model, pair, x, timestep, model_options)
            (context_only,) = comfy.samplers.calc_cond_batch(model, [third], x, timestep, model_options)
        else:
            *out, context_only = comfy.samplers.calc_cond_batch(model, [*pair, third], x, timestep, model_options)
        for function in model_options.get("sampler_pre_cfg_function", []):
            out = function({**common, "conds": pair, "conds_out": out, "cond_scale": scale, "timestep": timestep})
        positive, negative = out

        if "sampler_cfg_function" in model_options:
            before_post = {**model_options, "sampler_post_cfg_function": []}
            guided = comfy.samplers.cfg_function(
                model, positive, negative, scale, x, timestep, model_options=before_post, cond=pair[0], uncond=pair[1]
            )
            guided = guided + (context_only - negative) * weights[CONTEXT_ONLY]
        else:
            guided = guide({FULL: positive, CONTEXT_ONLY: context_only, NULL: negative}, weights)

        for function in model_options.get("sampler_post_cfg_function", []):
            guided = function(
                {
                    **common,
                    "denoised": guided,
                    "cond": pair[0],
                    "uncond": pair[1],
                    "cond_scale": scale,
                    "cond_denoised": positive,
                    "uncond_denoised": negative,
                }
            )
        return guided


def weights_of_present(present: Sequence[str], text_guidance: float, context_guidance: float) -> dict[str, float]:
    """`branch_weights` over the branches that a step has.

    Args:
        present: of `full`, `context_only` and `null`, in this order, at least one.
        text_guidance: g_txt.
        context_guidance: g_ctx.

    Returns:
        The needed ones of them in the same order, each with its weight; the weights add up to 1.
    """
    if len(present) == 1:
        return {present[0]: 1.0}
    if NULL not in present:
        context_guidance = 1.0
    has_text, has_context = FULL in present, CONTEXT_ONLY in present
    weights = branch_weights(text_guidance, context_guidance, has_text, has_context)
    # Without a text the two are one branch, which the weights call by the first name.
    return weights if has_text else {CONTEXT_ONLY if name == FULL else name: each for name, each in weights.items()}


def _is_present(conditioning: list[dict], timestep: Tensor) -> bool:
    """Whether the host runs any entry of it at this noise level, by the host's own comparisons."""
    sigma = timestep[0]
    for entry in conditioning:
        start, end = entry.get("timestep_start"), entry.get("timestep_end")
        if (start is None or sigma <= start) and (end is None or sigma >= end):
            return True
    return False


def _may_be_absent(conditioning: list) -> bool:
    """Whether there may be steps that every entry leaves out."""
    return all(any(name in options for name in _RANGES) for _, options in conditioning)


def make_guider(
    model: object,
    positive: list,
    negative: list,
    context_only: list | None,
    text_guidance: float,
    context_guidance: float,
) -> comfy.samplers.CFGGuider:
    """The guider for these conditionings: the host's own where both scales are the same and no step may lack one.

    Args:
        model: the ModelPatcher of a MODEL.
        positive: text and context.
        negative: neither.
        context_only: the context without the text; None only where the scales are equal.
        text_guidance: g_txt.
        context_guidance: g_ctx.
    """
    ranged = _may_be_absent(positive) or _may_be_absent(negative)
    if text_guidance == context_guidance and not ranged:
        # Without the third conditioning, which no branch needs: its areas and hooks must leave no trace either.
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(text_guidance)
        return guider
    guider = ThreeBranchGuider(model)
    guider.set_conds(positive, negative, context_only)
    guider.set_guidance(text_guidance, context_guidance)
    return guider
