"""Guidance over three branches as a guider of the host. Imported when a node runs, never at start-up."""

from __future__ import annotations

import comfy.samplers
import node_helpers
from torch import Tensor

from ...context_diffusion.model.guidance import CONTEXT_ONLY, FULL, NULL, branch_weights, guide


class ThreeBranchGuider(comfy.samplers.CFGGuider):
    """Ordinary guidance with a third conditioning: the context without the text.

    Steps that need two branches only, or one, are the host's own `sampling_function` on them. With three, all run in
    one `calc_cond_batch`, the positive as branch 0 and the negative as branch 1, as patches of the attention expect.
    Functions that other nodes put into the model's options see these two and the text scale: what they make of
    ordinary guidance is kept, the context's own share is added to it, and those that work on the finished
    prediction get it finished.
    """

    def set_conds(self, positive: list, negative: list, context_only: list) -> None:
        """The three conditionings, in the host's format."""
        # As in the host's own guiders of several conditionings: whatever is not the positive is encoded as negative.
        context_only = node_helpers.conditioning_set_values(context_only, {"prompt_type": "negative"})
        self.inner_set_conds({"positive": positive, "negative": negative, "context_only": context_only})

    def set_guidance(self, text_guidance: float, context_guidance: float) -> None:
        """The two scales; 1 means no guidance."""
        self.set_cfg(text_guidance)
        self.text_guidance, self.context_guidance = text_guidance, context_guidance

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None):
        """The guided prediction of the clean latents, (B, C, h, w) as `x`."""
        model_options = model_options or {}
        text_guidance, context_guidance = self.text_guidance, self.context_guidance
        if self.cfg != text_guidance:
            # A node overrides the scale for this step, and knows of one scale only: ordinary guidance with it.
            text_guidance = context_guidance = self.cfg
        weights = branch_weights(text_guidance, context_guidance)
        if len(weights) == 3:
            return self._predict_three(x, timestep, weights, model_options)

        positive, negative, scale = "positive", "negative", text_guidance
        if CONTEXT_ONLY in weights and FULL in weights:
            negative = "context_only"
        elif CONTEXT_ONLY in weights:
            positive, scale = "context_only", context_guidance
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds[negative],
            self.conds[positive],
            scale,
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


def make_guider(
    model: object,
    positive: list,
    negative: list,
    context_only: list | None,
    text_guidance: float,
    context_guidance: float,
) -> comfy.samplers.CFGGuider:
    """The guider for these conditionings: the host's own where both scales are the same.

    Args:
        model: the ModelPatcher of a MODEL.
        positive: text and context.
        negative: neither.
        context_only: the context without the text; None only where the scales are equal.
        text_guidance: g_txt.
        context_guidance: g_ctx.
    """
    if text_guidance == context_guidance:
        # Without the third conditioning, which no branch needs: its areas and hooks must leave no trace either.
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(text_guidance)
        return guider
    guider = ThreeBranchGuider(model)
    guider.set_conds(positive, negative, context_only)
    guider.set_guidance(text_guidance, context_guidance)
    return guider
