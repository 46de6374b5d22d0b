"""What diffusers checks on its own pipelines, written out for this one."""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchHeunDiscreteScheduler

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.model.visual_context import ContextProjector
from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

from ..tiny import tiny_model
from ..tiny_pipeline import INPUTS, make_pipe, picture, run, seeded

PARTS = [
    "unet",
    "projector",
    "scheduler",
    "layout_encoder",
    "vae",
    "text_encoder",
    "tokenizer",
    "image_encoder",
]

# What is asked of a file in half precision, and what its weights are on a CPU.
DTYPES = [
    ({}, torch.float32),
    ({"dtype": "bf16"}, torch.bfloat16),
    ({"dtype": torch.float16}, torch.float16),
    ({"torch_dtype": torch.float16}, torch.float16),
]

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to run the parts on")


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


@pytest.fixture(scope="module")
def pipe():
    return make_pipe(prediction_type="flow")


def test_components_and_parameters_make_the_same_pipeline(pipe):
    assert set(pipe.components) == set(PARTS)
    other = quiet(ContextDiffusionPipeline(**pipe.components, **pipe.parameters))
    assert torch.equal(run(other), run(pipe))
    assert other.unet is pipe.unet and other.projector is pipe.projector


def test_signature_has_what_users_of_diffusers_expect(pipe):
    parameters = inspect.signature(pipe.__call__).parameters
    expected = ["num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"]
    assert set(expected) <= set(parameters)
    assert {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= set(parameters)
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())


def test_a_plain_projector_is_taken_with_its_weights():
    model = tiny_model()
    assert type(model.projector) is ContextProjector
    pipe = ContextDiffusionPipeline.from_model(model)
    assert isinstance(pipe.projector, ContextProjector)
    assert pipe.projector.linear is model.projector.linear
    again = pipe.to_model()
    assert isinstance(again, ContextDiffusion) and type(again.projector) is ContextProjector
    assert again.schedule == model.schedule and again.info == model.info
    assert {name: value.data_ptr() for name, value in again.state_dict().items()} == {
        name: value.data_ptr() for name, value in model.state_dict().items()
    }


def test_making_a_pipeline_draws_no_random_numbers():
    model = tiny_model()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    ContextDiffusionPipeline.from_model(model).to_model()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prediction_type", ["flow", "epsilon"])
def test_save_and_load(tmp_path, prediction_type):
    pipe = make_pipe(prediction_type=prediction_type)
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = quiet(ContextDiffusionPipeline.from_pretrained(tmp_path))
    assert loaded.config.schedule["prediction_type"] == prediction_type
    assert loaded.config.info["title"] == "tiny"
    for name, part in modules(pipe).items():
        assert not getattr(loaded, name).training
        for key, value in part.state_dict().items():
            assert torch.equal(getattr(loaded, name).state_dict()[key], value), f"{name}.{key}"
    assert torch.equal(run(loaded), run(pipe))


def test_save_and_load_without_the_optional_parts(tmp_path):
    pipe = make_pipe(prediction_type="flow")
    prompt, negative = pipe.encode_prompt("a moon")
    context = pipe.encode_context([picture(1)])
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    inputs = {
        "num_inference_steps": 2,
        "prompt_embeds": prompt,
        "negative_prompt_embeds": negative,
        "output_type": "latent",
    }
    expected = pipe(context_embeds=context, generator=seeded(), **inputs).images
    alone = pipe(generator=seeded(), **inputs).images
    pipe.save_pretrained(tmp_path)
    loaded = quiet(ContextDiffusionPipeline.from_pretrained(tmp_path))
    assert all(getattr(loaded, name) is None for name in pipe._optional_components)
    assert torch.equal(loaded(context_embeds=context, generator=seeded(), **inputs).images, expected)
    # The null context keeps its length although the image encoder is gone.
    assert torch.equal(loaded(generator=seeded(), **inputs).images, alone)


def test_parts_given_on_load_take_the_saved_ones_place(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    loaded = ContextDiffusionPipeline.from_pretrained(tmp_path, vae=None, unet=pipe.unet)
    assert loaded.vae is None and loaded.unet is pipe.unet


def test_save_and_load_with_a_variant_and_a_dtype(tmp_path, pipe):
    half = copy.deepcopy(pipe).to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    assert list((tmp_path / "projector").glob("*.fp16.safetensors"))
    for asked, expected in DTYPES:
        loaded = ContextDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", **asked)
        assert {part.dtype for part in modules(loaded).values()} == {expected}
    mixed = ContextDiffusionPipeline.from_pretrained(
        tmp_path, variant="fp16", dtype={"default": "fp32", "unet": torch.bfloat16}
    )
    assert (mixed.unet.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.float32)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["projector"] == ["context_diffusion.projector", "PretrainedContextProjector"]


def test_single_file_round_trip(tmp_path, pipe):
    from context_diffusion.checkpoint.write import save_checkpoint

    path = tmp_path / "tiny.safetensors"
    save_checkpoint(pipe.to_model(), path)
    loaded = quiet(ContextDiffusionPipeline.from_single_file(path))
    assert torch.equal(run(loaded), run(pipe))
    half = ContextDiffusionPipeline.from_single_file(path, dtype=torch.bfloat16, vae=pipe.vae)
    assert half.unet.dtype == torch.bfloat16 and half.vae is pipe.vae
    with pytest.raises(ContextDiffusionError, match="from_single_file got refiner"):
        ContextDiffusionPipeline.from_single_file(path, refiner=None)
    with pytest.raises(ContextDiffusionError, match="no bundled model 'nameless'"):
        ContextDiffusionPipeline.from_single_file("nameless")


@pytest.mark.filterwarnings("error")
def test_a_file_in_half_precision_is_computed_in_what_the_device_is_good_at(tmp_path, pipe):
    from context_diffusion.checkpoint.write import save_checkpoint

    path = save_checkpoint(pipe.to_model(), tmp_path / "half.safetensors", dtype=torch.float16)
    for asked, expected in DTYPES:
        loaded = quiet(ContextDiffusionPipeline.from_single_file(path, **asked))
        assert {part.dtype for part in modules(loaded).values()} == {expected}
        latents = run(loaded)
        assert loaded.vae.decode(latents).sample.dtype == latents.dtype == expected
    for load in (ContextDiffusionPipeline.from_single_file, ContextDiffusionPipeline.from_pretrained):
        with pytest.raises(ContextDiffusionError, match="got dtype and torch_dtype"):
            load(path, dtype=torch.float16, torch_dtype=torch.float16)
        with pytest.raises(ContextDiffusionError, match="dtype is 'int8'; use one of"):
            load(path, dtype="int8")


def test_from_pipe_shares_the_parts(pipe):
    scheduler = FlowMatchHeunDiscreteScheduler()
    other = quiet(ContextDiffusionPipeline.from_pipe(pipe, scheduler=scheduler))
    assert all(part is modules(pipe)[name] for name, part in modules(other).items())
    assert other.scheduler is scheduler and other.config.schedule == pipe.config.schedule
    assert torch.equal(run(quiet(ContextDiffusionPipeline.from_pipe(pipe))), run(pipe))
    half = copy.deepcopy(pipe).to(torch.bfloat16)
    assert ContextDiffusionPipeline.from_pipe(half).dtype == half.dtype == torch.bfloat16
    assert ContextDiffusionPipeline.from_pipe(half, torch_dtype=torch.float32).dtype == half.dtype == torch.float32


def test_diffusers_own_class_says_how_to_load_a_folder(tmp_path, pipe, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path / "saved")
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True))
    assert type(loaded) is ContextDiffusionPipeline and torch.equal(run(loaded), run(pipe))
    # Our own class runs nothing that lies in the folder, and takes those of earlier releases, which have no such file.
    (tmp_path / "saved" / "pipeline.py").write_text("raise SystemExit")
    ContextDiffusionPipeline.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "pipeline.py").unlink()
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    (tmp_path / "saved" / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "ContextDiffusionPipeline"})
    )
    assert torch.equal(run(quiet(ContextDiffusionPipeline.from_pretrained(tmp_path / "saved"))), run(pipe))


def test_dict_and_tuple_outputs_are_equal(pipe):
    inputs = {**INPUTS, "num_inference_steps": 2, "output_type": "pt"}
    as_dict = pipe(**inputs, generator=seeded())
    as_tuple = pipe(**inputs, generator=seeded(), return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_dict.images, as_tuple[0])
    assert torch.equal(as_dict[0], as_tuple[0])


def test_pil_np_pt_and_latent_outputs_agree(pipe):
    tensor, array = run(pipe, output_type="pt"), run(pipe, output_type="np")
    latents, image = run(pipe, output_type="latent"), run(pipe, output_type="pil")[0]
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert torch.equal(torch.from_numpy(array), tensor.permute(0, 2, 3, 1))
    pixels = torch.from_numpy(np.array(image)) / 255
    torch.testing.assert_close(pixels, tensor[0].permute(1, 2, 0), rtol=0, atol=0.51 / 255)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(decoded.clamp(0, 1), tensor)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("per_prompt", [1, 2])
def test_number_of_images(pipe, batch, per_prompt):
    prompts = ["a moon", "a flag"][:batch]
    seeds = [seeded(i) for i in range(batch * per_prompt)]
    images = run(pipe, prompt=prompts, num_images_per_prompt=per_prompt, generator=seeds)
    assert len(images) == batch * per_prompt
    for i, image in enumerate(images):
        alone = run(pipe, prompt=prompts[i // per_prompt], generator=seeded(i))
        torch.testing.assert_close(image, alone[0], rtol=0, atol=1e-4)


def test_callback_gets_and_changes_tensors(pipe):
    seen = []

    def change(caller, step, timestep, tensors):
        assert caller is pipe
        seen.append((step, float(timestep), set(tensors)))
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    names = pipe._callback_tensor_inputs
    out = run(pipe, callback_on_step_end=change, callback_on_step_end_tensor_inputs=names)
    assert seen == [(0, 1000.0, set(names)), (1, 500.0, set(names))] and not out.any()


def test_callback_may_look_and_return_nothing(pipe):
    assert torch.equal(run(pipe, callback_on_step_end=lambda *args: None), run(pipe))


def test_callback_changes_guidance_midway(pipe):
    batches = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))

    def cut_off(caller, step, timestep, tensors):
        caller._text_guidance = caller._context_guidance = 1.0

    run(pipe, num_inference_steps=3, text_guidance=4.0, callback_on_step_end=cut_off)
    hook.remove()
    assert batches == [3, 1, 1] and pipe.text_guidance == pipe.context_guidance == 1.0


def test_callback_interrupts(pipe):
    latents = []

    def stop(caller, step, timestep, tensors):
        latents.append(tensors["latents"])
        caller._interrupt = step == 1

    out = run(pipe, num_inference_steps=6, callback_on_step_end=stop)
    assert len(latents) == 2 and torch.equal(out, latents[-1]) and pipe.interrupt
    run(pipe)
    assert not pipe.interrupt  # the next run starts afresh


def test_progress_bar_counts_the_steps(capsys):
    pipe = make_pipe(prediction_type="flow")
    pipe.set_progress_bar_config(disable=False)
    run(pipe, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float32(dtype):
    pipe = make_pipe(prediction_type="flow")
    full = run(pipe, output_type="pt")
    pipe.to(dtype=dtype)
    assert {part.dtype for part in modules(pipe).values()} == {dtype}
    half = run(pipe, output_type="pt")
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert (half - full).abs().mean() < 0.02
    assert not torch.equal(half, full)


def test_device_moves_reach_every_part(pipe):
    pipe.to("cpu")
    assert {part.device.type for part in modules(pipe).values()} == {"cpu"}
    moved = quiet(ContextDiffusionPipeline.from_model(tiny_model(prediction_type="flow"))).to("meta")
    assert {part.device.type for part in modules(moved).values()} == {"meta"}


@NEEDS_GPU
def test_gpu_equals_cpu(pipe):
    expected = run(pipe, output_type="pt")
    moved = make_pipe(prediction_type="flow").to("cuda")
    torch.testing.assert_close(run(moved, output_type="pt").cpu(), expected, rtol=0, atol=2e-3)


# On "cpu" the hooks run in full, from and to the same memory.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_model_offload_changes_nothing(pipe, device):
    accelerate = pytest.importorskip("accelerate")
    changes = {"image": picture(1), "output_type": "pt"}
    expected = run(pipe, **changes)
    offloaded = make_pipe(prediction_type="flow")
    offloaded.enable_model_cpu_offload(device=device)
    for _ in range(2):
        torch.testing.assert_close(run(offloaded, **changes).cpu(), expected, rtol=0, atol=2e-4)
        for name, part in modules(offloaded).items():
            assert part.device.type == "cpu" and isinstance(part._hf_hook, accelerate.hooks.CpuOffload), name


@NEEDS_GPU  # accelerate cannot bring weights from the CPU to the CPU
def test_sequential_offload_changes_nothing(pipe):
    pytest.importorskip("accelerate")
    changes = {"image": picture(1), "output_type": "pt"}
    expected = run(pipe, **changes)
    offloaded = make_pipe(prediction_type="flow")
    offloaded.enable_sequential_cpu_offload(device="cuda")
    for _ in range(2):
        torch.testing.assert_close(run(offloaded, **changes).cpu(), expected, rtol=0, atol=2e-4)
        assert {part.device.type for part in modules(offloaded).values()} == {"meta"}


def test_attention_and_vae_slicing_change_nothing(pipe):
    expected = run(pipe, prompt=["a", "b"], output_type="pt", generator=[seeded(0), seeded(1)])
    sliced = make_pipe(prediction_type="flow")
    sliced.enable_attention_slicing()
    sliced.vae.enable_slicing()
    got = run(sliced, prompt=["a", "b"], output_type="pt", generator=[seeded(0), seeded(1)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_another_class_of_scheduler_survives_saving(tmp_path):
    from diffusers import UniPCMultistepScheduler

    pipe = make_pipe(prediction_type="flow")
    pipe.scheduler = UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    pipe.save_pretrained(tmp_path)
    loaded = quiet(ContextDiffusionPipeline.from_pretrained(tmp_path))
    assert isinstance(loaded.scheduler, UniPCMultistepScheduler)
    assert torch.equal(run(loaded), run(pipe))
