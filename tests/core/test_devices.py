"""Choice of device and number format."""

from __future__ import annotations

import pytest
import torch

from context_diffusion import ContextDiffusionError, pick_device, pick_dtype


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.delenv("CONTEXT_DIFFUSION_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_order(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    pretend(monkeypatch, cuda, mps)
    assert pick_device() == pick_device("auto") == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, mps=False)
    monkeypatch.setenv("CONTEXT_DIFFUSION_DEVICE", "cpu")
    assert pick_device() == torch.device("cpu")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("CONTEXT_DIFFUSION_DEVICE", "mps")
    with pytest.raises(ContextDiffusionError, match="CONTEXT_DIFFUSION_DEVICE"):
        pick_device()


@pytest.mark.parametrize("name", ["cuda:1", "cuda:x", "mps", "gpu", "nonsense", "meta"])
def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, cuda=True, mps=False)
    with pytest.raises(ContextDiffusionError, match=name):
        pick_device(name)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_dtype("cpu") == pick_dtype("mps") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, value=capability: value)
        assert pick_dtype("cuda") == expected
    assert pick_dtype("cpu", "bf16") == pick_dtype("cpu", torch.bfloat16) == torch.bfloat16
    for bad in ("int8", torch.int64, 16):
        with pytest.raises(ContextDiffusionError, match="dtype"):
            pick_dtype("cpu", bad)
