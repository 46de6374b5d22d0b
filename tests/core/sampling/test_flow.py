"""The plain sampler against its formula."""

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.sampling.flow import FlowSampler, SamplingBatch

from ..tiny import IMAGE_SIZE, tiny_model


@pytest.mark.parametrize("name", ["lcm", "euler"])
def test_flow_sampler_is_guided_and_batches_equal_singles(name):
    model = tiny_model(prediction_type="flow")
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    context = torch.rand(2, 2, 3, 40, 40, generator=generator)
    prompts = ("a red flag", "the moon")
    sampler = FlowSampler(model, steps=2, text_guidance=3.0, context_guidance=2.0, sampler=name)
    both = sampler.generate(SamplingBatch((5, 6), query, context, prompts, IMAGE_SIZE))
    single = sampler.generate(SamplingBatch((6,), query[1:], context[1:], prompts[1:], IMAGE_SIZE))
    assert torch.allclose(both[1:], single, atol=1e-4)
    noise = torch.Generator().manual_seed(6)
    z = torch.randn((4, 8, 8), generator=noise)[None]
    text, null_text = model.encode_prompts([prompts[1]]), model.encode_prompts([""])
    seen = model.encode_context(context[1])
    for s in (1.0, 0.5):
        t = torch.tensor([1000.0 * s])
        full = model.predict(z, t, torch.cat([text, seen], 1), query[1:])
        middle = model.predict(z, t, torch.cat([null_text, seen], 1), query[1:])
        nothing = model.predict(z, t, torch.cat([null_text, torch.zeros_like(seen)], 1), query[1:])
        guided = nothing + 2.0 * (middle - nothing) + 3.0 * (full - middle)
        # Half a step of the flow is left after s = 0.5, and the predicted image is then the result.
        z = z - 0.5 * guided
        if name == "lcm" and s == 1.0:
            clean = z - 0.5 * guided
            z = 0.5 * clean + 0.5 * torch.randn((4, 8, 8), generator=noise)[None]
    assert torch.allclose(model.decode_latents(z), single, atol=1e-4)


def test_flow_sampler_without_anything_but_a_query_runs_one_branch():
    model = tiny_model(prediction_type="flow")
    calls = []
    model.unet.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    query = torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert FlowSampler(model, steps=2).generate(SamplingBatch((1, 2, 3), query, size=IMAGE_SIZE)).shape[0] == 3
    assert calls == [3, 3]
    with pytest.raises(ContextDiffusionError, match="'epsilon'"):
        FlowSampler(tiny_model())
    with pytest.raises(ContextDiffusionError, match="sampler is 'ddim': give one of lcm, euler"):
        FlowSampler(model, sampler="ddim")
