"""The host's own Save nodes on our objects: what they write is read back, by our loader and by the core."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.pretrained import bundled_model_path
from tests.core.tiny import tiny_model

from .graph import MODEL_NAME, SamplingGraph
from .hosts import Host
from .native import velocity_model
from .prompt import Link
from .server import NodeError, Server
from .test_contracts import _with_lora, _write_lora


def test_a_lora_and_a_merge_are_in_the_saved_checkpoint(host: Server) -> None:
    graph = SamplingGraph(host)
    model, clip = _with_lora(graph, _write_lora(host))
    if not _hands_over_clip(host):
        clip = graph.clip
    graph.model = graph.add("ModelMergeSimple", model1=graph.model, model2=model, ratio=0.5)[0]
    graph.clip = clip
    graph.positive, graph.negative = graph.text("a red flag"), graph.text("")
    drawn, file = _draw_and_save(graph, "CheckpointSave", clip=graph.clip, vae=graph.vae)
    assert torch.equal(_draw(_graph(host, file.name)), drawn)

    _same_but(bundled_model_path(), file, {"unet", "text_encoder"} if _hands_over_clip(host) else {"unet"})
    # What was saved merges with what it came from, and is saved again.
    graph = _graph(host, file.name)
    other = graph.add("ContextDiffusionLoader", model_name=MODEL_NAME)
    graph.model = graph.add("ModelMergeSimple", model1=graph.model, model2=other[0], ratio=0.5)[0]
    _, again = _draw_and_save(graph, "CheckpointSave", clip=graph.clip, vae=graph.vae)
    first, merged, second = (_conv_in(each) for each in (bundled_model_path(), again, file))
    torch.testing.assert_close(merged, (first + second) / 2)


def test_a_model_that_is_saved_alone_is_a_whole_one(host: Server) -> None:
    models = host.base / "models" / "context_diffusion"
    first, second = velocity_model(), velocity_model()
    with torch.no_grad():
        for weight in second.unet.parameters():
            weight.mul_(0.9)
    save_checkpoint(first, models / "first.safetensors")
    save_checkpoint(second, models / "second.safetensors")
    graph = _graph(host, "first.safetensors")
    other = graph.add("ContextDiffusionLoader", model_name="second.safetensors")
    graph.model = graph.add("ModelMergeSimple", model1=graph.model, model2=other[0], ratio=0.25)[0]
    drawn, file = _draw_and_save(graph, "ModelSave")
    assert torch.equal(_draw(_graph(host, file.name)), drawn)
    _same_but(models / "first.safetensors", file, {"unet"})


def test_weights_in_eight_bits_are_saved_in_sixteen(comfyui: Host, start_server: Callable[..., Server]) -> None:
    host = start_server(comfyui, ("--fp8_e4m3fn-unet", "--fp8_e4m3fn-text-enc"))
    graph = SamplingGraph(host)
    _, file = _draw_and_save(graph, "CheckpointSave", clip=graph.clip, vae=graph.vae)
    _same_but(bundled_model_path(), file, {"unet", "text_encoder"} if _hands_over_clip(host) else {"unet"})


def test_parts_of_another_kind_are_not_saved(host: Server) -> None:
    models = host.base / "models" / "context_diffusion"
    save_checkpoint(tiny_model(), models / "strange.safetensors")
    graph = SamplingGraph(host)
    other = graph.add("ContextDiffusionLoader", model_name="strange.safetensors")
    printed = len(host.log)
    _, file = _draw_and_save(graph, "CheckpointSave", clip=other[1], vae=other[2])
    _same_but(bundled_model_path(), file, set())
    if _hands_over_clip(host):
        for socket in ("CLIP", "VAE"):
            assert f"has the {socket} of {bundled_model_path().name}: the one that is connected" in host.log[printed:]


def test_a_part_that_the_model_has_none_of_is_not_saved(host: Server) -> None:
    model, file = tiny_model(), host.base / "models" / "context_diffusion" / "no vae.safetensors"
    model.vae = None
    save_checkpoint(model, file)
    graph = _graph(host, file.name)
    other = graph.add("ContextDiffusionLoader", model_name=MODEL_NAME)
    name, printed = uuid.uuid4().hex, len(host.log)
    prefix = f"context_diffusion/{name}"
    graph.add("CheckpointSave", model=graph.model, clip=graph.clip, vae=other[2], filename_prefix=prefix)
    host.run(graph)
    (saved,) = (host.base / "output" / "context_diffusion").glob(f"{name}*")
    _same_but(file, saved, set())
    if _hands_over_clip(host):
        assert f"{file.name} has no VAE: the one that is connected is not saved" in host.log[printed:]


def test_saving_says_that_the_file_was_replaced(host: Server) -> None:
    file = host.base / "models" / "context_diffusion" / "replaced later.safetensors"
    save_checkpoint(tiny_model(), file)
    graph = _graph(host, file.name)
    touched = graph.add("ProbeTouch", value=graph.model, path=str(file))
    graph.add("ModelSave", model=touched[0], filename_prefix="context_diffusion/never")
    with pytest.raises(NodeError, match="another file than MODEL was loaded from.*load the model anew"):
        host.run(graph)


def test_a_saved_vae_is_read_by_the_hosts_loader(host: Server) -> None:
    graph = SamplingGraph(host)
    latent = graph.encoded(1)
    name = uuid.uuid4().hex
    graph.add("VAESave", vae=graph.vae, filename_prefix=f"vae/{name}")
    probe = graph.save(graph.add("VAEDecode", samples=latent, vae=graph.vae)[0])
    decoded = host.tensors(host.run(graph), probe)["value"]
    (file,) = (host.base / "output" / "vae").glob(f"{name}*")
    graph = SamplingGraph(host)
    vae = graph.add("VAELoader", vae_name=file.name)[0]
    probe = graph.save(graph.add("VAEDecode", samples=graph.encoded(1), vae=vae)[0])
    assert torch.equal(host.tensors(host.run(graph), probe)["value"], decoded)


def _graph(host: Server, model_name: str) -> SamplingGraph:
    graph = SamplingGraph(host)
    graph.nodes[graph.loader.id]["inputs"]["model_name"] = model_name
    return graph


def _draw(graph: SamplingGraph) -> torch.Tensor:
    graph.positive, graph.negative = graph.text("a red flag"), graph.text("")
    graph.context_conditionings()
    image = graph.add("VAEDecode", samples=graph.ours(4.0, 2.0)[0], vae=graph.vae)
    probe = graph.save(image[0])
    return graph.server.tensors(graph.server.run(graph), probe)["value"]


def _draw_and_save(graph: SamplingGraph, node: str, **parts: Link) -> tuple[torch.Tensor, Path]:
    """A picture, and the file that the host's node writes of the model in the same run."""
    name = uuid.uuid4().hex
    graph.add(node, model=graph.model, filename_prefix=f"context_diffusion/{name}", **parts)
    drawn = _draw(graph)
    assert drawn.isfinite().all() and drawn.std() > 0
    (file,) = (graph.server.base / "output" / "context_diffusion").glob(f"{name}*")
    return drawn, file


def _same_but(source: Path, saved: Path, changed: set[str]) -> None:
    """Whether a file is a checkpoint of ours like another, the weights of some parts apart."""
    for key in ("config", "schedule", "info", "modelspec", "tokens", "variant"):
        assert read_metadata(saved)[key] == read_metadata(source)[key], key
    before, after = (load_checkpoint(file).state_dict() for file in (source, saved))
    assert before.keys() == after.keys()
    differ = {key.partition(".")[0] for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert differ == changed


def _conv_in(file: Path) -> torch.Tensor:
    return load_checkpoint(file).unet.conv_in.weight.float()


def _hands_over_clip(host: Server) -> bool:
    """Older hosts forget the CLIP and the VAE that are connected to Save Checkpoint."""
    patcher = (host.host.path / "comfy" / "model_patcher.py").read_text()
    return "return self.model.state_dict_for_saving(unet_state_dict)\n" not in patcher
