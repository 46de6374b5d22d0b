"""Kill and resume, damaged states, steps that are left out, averaging over processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.config import RunConfig
from context_diffusion.training.run import state as state_module
from context_diffusion.training.run.launch import launch
from context_diffusion.training.run.loop import train
from context_diffusion.training.stages.clip import CLIPStage
from context_diffusion.training.stages.diffusion import DiffusionStage
from context_diffusion.training.stages.vae import VAEStage

from ..tiny_data import clip_config, diffusion_config, vae_config, write_tiny_data, write_tiny_encoders

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_thread():
    """The runs set it; the other tests shall not notice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved_step(folder):
    with safe_open(folder / "state.safetensors", "pt") as file:
        return json.loads(file.metadata()["training_state"])["step"]


def assert_same_state(first, second):
    """Weights, averaged weights and moments, bit for bit."""
    one, other = (load_file(folder / "state.safetensors") for folder in (first, second))
    assert one.keys() == other.keys() and {name.split(".")[0] for name in one} == {"module", "ema", "optimizer"}
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# Kill and resume


def test_vae_stage_resumes_to_the_same_bits(data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(vae_config(data, whole, steps=6), VAEStage(vae_config(data, whole, steps=6)))
    start = load_file(whole / "state.safetensors")
    for stop in (2, 3, None):
        # A fresh stage each time, as a new process would have.
        config = vae_config(data, broken, steps=6)
        train(config, VAEStage(config), stop_after=stop)
        assert saved_step(broken) == (stop or 6)
        if stop:
            now = load_file(broken / "state.safetensors")
            assert any(not torch.equal(start[name], now[name]) for name in start)
    assert_same_state(whole, broken)
    written = [folder / "vae" / "diffusion_pytorch_model.safetensors" for folder in (whole, broken)]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_clip_stage_resumes_to_the_same_bits_and_its_result_loads(data, tmp_path):
    from transformers import CLIPTextModel, CLIPVisionModel

    from context_diffusion.checkpoint.tokenizer import tokenizer_from_json

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = clip_config(data, whole, steps=5)
    train(config, CLIPStage(config))
    for stop in (2, None):
        config = clip_config(data, broken, steps=5)
        train(config, CLIPStage(config), stop_after=stop)
        assert saved_step(broken) == (stop or 5)
    assert_same_state(whole, broken)
    state = load_file(whole / "state.safetensors")
    fresh = CLIPStage(config).module
    untrained = [name for name, value in fresh.named_parameters() if torch.equal(value, state[f"module.{name}"])]
    assert all("post_layernorm" in name for name in untrained), untrained
    result = {}
    for name, kind in (("text_encoder", CLIPTextModel), ("image_encoder", CLIPVisionModel)):
        result[name] = kind.from_pretrained(whole / name)
        for key, value in result[name].named_parameters():
            # The averaged weights; the norm that nothing reads is not trained and has no average.
            expected = state[f"{'module' if 'post_layernorm' in key else 'ema'}.{name}.{key}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
    tokenizer = tokenizer_from_json((whole / "tokenizer.json").read_text())
    assert (broken / "tokenizer.json").read_text() == (whole / "tokenizer.json").read_text()
    assert len(tokenizer) == result["text_encoder"].config.vocab_size
    caption = "red circle, circle shapes"
    assert tokenizer(caption).input_ids == CLIPStage(config).tokenizer(caption).input_ids


def test_diffusion_stage_resumes_to_the_same_bits_and_its_result_loads(data, tmp_path):
    encoders = write_tiny_encoders(tmp_path / "encoders")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = diffusion_config(data, encoders, whole, steps=3, sample_every=3)
    train(config, DiffusionStage(config))
    for stop in (2, None):
        config = diffusion_config(data, encoders, broken, steps=3)
        train(config, DiffusionStage(config), stop_after=stop)
    assert_same_state(whole, broken)
    results = [load_file(folder / "tiny.safetensors") for folder in (whole, broken)]
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    assert len(list((whole / "samples").iterdir())) == 1

    from context_diffusion.checkpoint.read import load_checkpoint

    model = load_checkpoint(whole / "tiny.safetensors")
    # The result is the averaged weights, in half precision.
    ema = load_file(whole / "state.safetensors")
    for name, value in model.unet.named_parameters():
        torch.testing.assert_close(value.float(), ema[f"ema.model.unet.{name}"].half().float(), rtol=0, atol=0)


def test_a_killed_process_loses_nothing(data, tmp_path):
    """A real SIGKILL in the middle of a run, resumed here, against an unbroken run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = vae_config(data, broken, steps=100_000, save_every=2)
    run = {name: value for name, value in vars(config).items() if name != "settings"}
    lines = ["[run]", *(f"{name} = {_toml(value)}" for name, value in run.items())]
    lines += ["[vae]", *(f"{name} = {_toml(value)}" for name, value in config.settings.items())]
    (tmp_path / "vae.toml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "context_diffusion.training", str(tmp_path / "vae.toml")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (broken / "state.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = saved_step(broken)
    assert reached >= 2
    last = reached + 3
    train(config, VAEStage(config), stop_after=last)
    config = vae_config(data, whole, steps=100_000)
    train(config, VAEStage(config), stop_after=last)
    assert saved_step(broken) == saved_step(whole) == last
    assert_same_state(whole, broken)


def _toml(value):
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value) if isinstance(value, tuple) else value)


# A toy stage: a line, and two matrices that Muon takes


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.slope, self.offset = torch.nn.Parameter(torch.tensor([0.3])), torch.nn.Parameter(torch.tensor([0.1]))
        self.first, self.second = torch.nn.Linear(16, 16, bias=False), torch.nn.Linear(16, 16, bias=False)

    def forward(self, batch):
        line = self.slope * batch["x"][:, 0] + self.offset
        loss = (line + self.second(self.first(batch["x"])).mean(1) - batch["y"]).square().mean()
        return loss * batch.get("factor", 1.0), {"loss": loss.detach()}


class ToyStage:
    """`joined` processes' batches in one; `broken_step` has a loss that is not finite."""

    def __init__(self, joined=1, broken_step=None):
        self.module, self.joined, self.broken_step = Line(), joined, broken_step
        self.weights = []

    def batch(self, step, rank, world):
        self.weights.append({name: value.detach().clone() for name, value in self.module.named_parameters()})
        parts = []
        for number in range(rank, rank + self.joined):
            generator = torch.Generator().manual_seed(100 * step + number)
            parts.append((torch.randn(4, 16, generator=generator), torch.randn(4, generator=generator)))
        batch = {"x": torch.cat([x for x, _ in parts]), "y": torch.cat([y for _, y in parts])}
        if step == self.broken_step:
            batch["factor"] = torch.tensor(float("nan"))
        return batch

    def sample(self):
        return None

    def finish(self, out):
        (out / "finished").touch()


def toy_config(out, **values):
    run = {"steps": 5, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 0, "grad_clip": 1e6, "save_every": 0}
    run |= {"log_every": 0, "sample_every": 0, "threads": 1}
    return RunConfig(stage="vae", data="", out=str(out), **{**run, **values})


def test_a_gradient_that_is_not_finite_leaves_its_step_out(tmp_path, caplog):
    stage = ToyStage(broken_step=2)
    train(toy_config(tmp_path), stage)
    before, after, later = stage.weights[2:5]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["slope"], later["slope"])
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "state.safetensors").values())
    assert "step 2" in caplog.text and "not finite" in caplog.text
    assert (tmp_path / "finished").exists()


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="two processes on the CPU")
def test_averaging_over_two_processes_is_one_process_with_both_batches(tmp_path):
    """Moments are linear in the gradients, so that a sum in place of a mean would show."""
    code = f"""
        import sys
        sys.path.insert(0, r"{ROOT}")
        from tests.core.training.test_resume import ToyStage, toy_config, train
        train(toy_config(r"{tmp_path / "two"}", processes=2), ToyStage())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert launch(command, 2, {**os.environ, "OMP_NUM_THREADS": "1"}) == 0
    train(toy_config(tmp_path / "one"), ToyStage(joined=2))
    two, one = (load_file(tmp_path / name / "state.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name in two:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    train(toy_config(tmp_path / "half"), ToyStage())
    half = load_file(tmp_path / "half" / "state.safetensors")
    # As where there are fewer GPUs than that: one process has both batches in turn.
    train(toy_config(tmp_path / "turns", processes=2), ToyStage())
    turns = load_file(tmp_path / "turns" / "state.safetensors")
    for name in two:
        torch.testing.assert_close(two[name], turns[name], rtol=1e-4, atol=1e-6)
    assert (half["module.offset"] - one["module.offset"]).abs() > 1e-4


# State files


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def damage_garbage(path):
    path.write_bytes(b"\x07" * 400)


def damage_empty(path):
    path.write_bytes(b"")


def damage_other_model(path):
    module = torch.nn.Linear(3, 3)
    ema = dict(module.named_parameters())
    state_module.save_state(path, module, ema, torch.optim.SGD(module.parameters()), 2)


def damage_no_state(path):
    from safetensors.torch import save_file

    save_file({"module.weight": torch.zeros(2)}, path)


@pytest.mark.parametrize("damage", [damage_cut, damage_garbage, damage_empty, damage_other_model, damage_no_state])
def test_a_damaged_state_is_one_clear_line(tmp_path, damage):
    train(toy_config(tmp_path), ToyStage(), stop_after=2)
    damage(tmp_path / "state.safetensors")
    with pytest.raises(ContextDiffusionError) as caught:
        train(toy_config(tmp_path), ToyStage())
    message = str(caught.value)
    assert "\n" not in message and "state.safetensors" in message and "--out" in message


def test_a_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    train(toy_config(tmp_path), ToyStage(), stop_after=2)
    good = (tmp_path / "state.safetensors").read_bytes()

    def dies_half_way(tensors, path, metadata):
        Path(path).write_bytes(good[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", dies_half_way)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config(tmp_path), ToyStage(), stop_after=3)
    assert (tmp_path / "state.safetensors").read_bytes() == good
    # What was left behind does not get in the way.
    train(toy_config(tmp_path), ToyStage())
    train(toy_config(tmp_path / "whole"), ToyStage())
    assert_same_state(tmp_path, tmp_path / "whole")


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ContextDiffusionError, match="the disk is full"):
        train(toy_config(tmp_path), ToyStage())


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(toy_config(tmp_path), ToyStage())
    (tmp_path / "finished").unlink()
    stage = ToyStage()
    train(toy_config(tmp_path), stage)
    # No batch was asked for; the result is written again.
    assert stage.weights == [] and (tmp_path / "finished").exists()


# What a state is for


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 9}, ["seed 3 (now 9)"]),
        ({"batch_size": 3}, ["batch_size 2 (now 3)"]),
        ({"settings": {"crop": 24}}, ["[vae] crop 16 (now 24)"]),
        ({"settings": {"weights": {"flat": 3.0}}}, ["[vae] weights", "not given", "'flat': 3.0"]),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(data, tmp_path, change, words):
    config = vae_config(data, tmp_path, steps=2)
    train(config, VAEStage(config))
    before = (tmp_path / "state.safetensors").read_bytes()
    settings = change.pop("settings", {})
    config = vae_config(data, tmp_path, steps=2, **change)
    config.settings.update(settings)
    with pytest.raises(ContextDiffusionError) as caught:
        train(config, VAEStage(config))
    message = str(caught.value)
    assert "\n" not in message and "--out" in message and all(word in message for word in words)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_what_a_run_may_go_on_with_changed(tmp_path, caplog):
    train(toy_config(tmp_path), ToyStage())
    with caplog.at_level("INFO"):
        train(toy_config(tmp_path), ToyStage())
        train(toy_config(tmp_path, steps=7, learning_rate=0.1, save_every=1), ToyStage())
    assert saved_step(tmp_path) == 7
    assert "step 5 is already done" in caplog.text and "goes on after step 5" in caplog.text


def test_latents_of_another_autoencoder_are_another_run(data, tmp_path):
    """Even when the pool of the first is gone: the result would be the old UNet with the new autoencoder."""
    import shutil

    config = diffusion_config(data, write_tiny_encoders(tmp_path / "encoders"), tmp_path / "run", steps=1)
    train(config, DiffusionStage(config))
    from context_diffusion.training.begin.vae import new_vae

    new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1)).save_pretrained(tmp_path / "encoders" / "vae")
    shutil.rmtree(tmp_path / "run" / "pool")
    stage = DiffusionStage(config)
    with pytest.raises(ContextDiffusionError, match="vae's latents"):
        train(config, stage)


def test_a_state_from_before_settings_were_kept_goes_on(tmp_path):
    train(toy_config(tmp_path), ToyStage(), stop_after=2)
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    save_file(load_file(path), path, metadata={"training_state": json.dumps({"step": 2})})
    train(toy_config(tmp_path, seed=4), ToyStage())
    assert saved_step(tmp_path) == 5


def test_two_runs_do_not_share_a_folder(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / "run.lock"), pytest.raises(ContextDiffusionError, match="another run is at work"):
        train(toy_config(tmp_path), ToyStage())
    assert not (tmp_path / "state.safetensors").exists()
    train(toy_config(tmp_path), ToyStage())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_models_that_only_the_pipeline_samples_train_past_a_grid(data, tmp_path, kind):
    config = diffusion_config(data, write_tiny_encoders(tmp_path / "encoders"), tmp_path / "run", steps=2)
    config.sample_every = 1
    config.settings["prediction_type"] = kind
    train(config, DiffusionStage(config))
    from context_diffusion.checkpoint.read import load_checkpoint

    assert load_checkpoint(tmp_path / "run" / "tiny.safetensors").schedule["prediction_type"] == kind


def test_a_step_is_saved_before_its_grid_is_drawn(tmp_path):
    class Fails(ToyStage):
        def sample(self):
            raise RuntimeError("no grid today")

    with pytest.raises(RuntimeError, match="no grid today"):
        train(toy_config(tmp_path, save_every=2, sample_every=2), Fails())
    assert saved_step(tmp_path) == 2
