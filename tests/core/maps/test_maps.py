"""Maps against shapes whose answer is known and against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from context_diffusion import ContextDiffusionError, make_map
from context_diffusion.maps import MAPS

SIZE = 64


def disc(radius: float, color=(0.9, 0.2, 0.1), ground=(1.0, 1.0, 1.0), size: int = SIZE) -> torch.Tensor:
    """(1, 3, size, size): a disc in the middle, antialiased by 4x4 samples a pixel."""
    fine = (torch.arange(4 * size) + 0.5) / 4 - size / 2
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).float()
    cover = torch.nn.functional.avg_pool2d(inside[None, None], 4)
    return cover * torch.tensor(color).view(1, 3, 1, 1) + (1 - cover) * torch.tensor(ground).view(1, 3, 1, 1)


def noise(batch: int = 3) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear")


def radii(size: int = SIZE) -> np.ndarray:
    """Distance of every pixel from the middle."""
    line = np.arange(size) + 0.5 - size / 2
    return np.hypot(line[:, None], line[None, :])


@pytest.mark.parametrize("name", MAPS)
def test_shape_range_determinism_and_independence(name: str) -> None:
    images = torch.cat([noise(), noise().flip(-1)])
    maps = make_map(images, name)
    assert maps.shape == images.shape and maps.dtype == images.dtype
    assert maps.min() >= 0 and maps.max() <= 1 and maps.std() > 0
    assert torch.equal(maps, make_map(images.clone(), name))
    singles = torch.cat([make_map(image, name) for image in images])
    torch.testing.assert_close(maps, singles, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (31, 5)])
def test_small_and_odd_sizes(name: str, shape: tuple[int, int]) -> None:
    maps = make_map(torch.rand(2, 3, *shape), name)
    assert maps.shape == (2, 3, *shape) and torch.isfinite(maps).all()


@pytest.mark.parametrize("name", MAPS)
def test_half_precision_and_gradients(name: str) -> None:
    images = noise().to(torch.bfloat16).requires_grad_()
    assert make_map(images, name).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["canny", "softedge", "scribble", "depth"])
def test_an_even_image_has_nothing(name: str) -> None:
    assert make_map(torch.full((1, 3, 32, 32), 0.3), name).abs().max() < 1e-5


def test_unknown_name_and_bad_images() -> None:
    with pytest.raises(ContextDiffusionError, match="hed.*canny"):
        make_map(noise(), "hed")
    with pytest.raises(ContextDiffusionError, match="NaN"):
        make_map(noise() * float("nan"), "canny")


def test_none_is_the_image() -> None:
    assert torch.equal(make_map(noise(), "none"), noise())


# Edges


def test_canny_agrees_with_scikit_image() -> None:
    """Thresholds are scaled differently there, so on clear shapes: the same pixels to within one."""
    from skimage.feature import canny

    images = torch.cat([disc(20, (0, 0, 0)), disc(12, (0.1, 0.2, 0.9)), disc(25, (1, 1, 1), (0, 0, 0))])
    ours = make_map(images, "canny")[:, 0].numpy() > 0.5
    luminance = np.tensordot(images.numpy(), [0.299, 0.587, 0.114], axes=([1], [0]))
    for mine, grey in zip(ours, luminance, strict=True):
        reference = canny(grey, sigma=1.0)
        assert reference.sum() > 50
        around = np.ones((3, 3))
        assert (binary_dilation(reference, around) | ~mine).mean() == 1
        assert (binary_dilation(mine, around) & reference).sum() >= 0.98 * reference.sum()


def test_canny_is_thin_and_binary() -> None:
    edges = make_map(disc(20), "canny")
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    drawn = edges[0, 0].numpy() > 0
    assert np.abs(radii()[drawn] - 20).max() < 1.5
    assert drawn.sum() < 1.6 * 2 * np.pi * 20  # about one pixel for each of the circumference


def test_softedge_measures_contrast_in_fixed_units() -> None:
    def peak(contrast: float, channel: int) -> float:
        image = torch.zeros(1, 3, 32, 32)
        image[:, channel, :, 16:] = contrast
        return make_map(image, "softedge").max().item()

    for channel in range(3):
        assert peak(0.5, channel) == pytest.approx(1, abs=1e-5)
        assert peak(0.25, channel) == pytest.approx(0.5, abs=1e-5)
        assert peak(1.0, channel) == 1


def test_softedge_follows_a_ramp_and_turns_with_the_image() -> None:
    ramp = torch.linspace(0, 1, 51).expand(1, 3, 40, 51)
    inner = make_map(ramp, "softedge")[..., 5:-5, 5:-5]
    # Slope 0.02; the scale is set by a blurred step of 0.5, whose slope is 0.5 * (g(0) + g(1)) / 2.
    gauss = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    gauss /= gauss.sum()
    assert inner.mean().item() == pytest.approx(0.02 / (0.5 * (gauss[3] + gauss[4]) / 2), rel=1e-4)
    assert inner.std() < 1e-5
    turned = make_map(noise().rot90(1, (-2, -1)), "softedge")
    torch.testing.assert_close(turned, make_map(noise(), "softedge").rot90(1, (-2, -1)))


def test_softedge_sees_colors_of_equal_brightness() -> None:
    red, green = torch.tensor([0.587, 0.0, 0.0]), torch.tensor([0.0, 0.299, 0.0])  # equal luminance
    image = torch.stack([red] * 16 + [green] * 16, dim=1)[None, :, None, :].expand(1, 3, 32, 32).contiguous()
    assert make_map(image, "canny").max() == 0
    assert make_map(image, "softedge")[0, 0, 16, 14:18].max() > 0.9


def test_scribble_is_a_thick_stroke_along_the_rim() -> None:
    strokes = make_map(disc(20), "scribble")
    assert set(strokes.unique().tolist()) == {0.0, 1.0}
    drawn = strokes[0, 0].numpy() > 0
    assert drawn[np.abs(radii() - 20) < 1].all() and not drawn[np.abs(radii() - 20) > 7].any()
    thin = make_map(disc(20), "canny")[0, 0].numpy() > 0
    assert drawn.sum() > 3 * thin.sum()


# Regions


def test_segmentation_finds_the_drawn_regions() -> None:
    image = disc(24, (0.9, 0.7, 0.1))
    eye = disc(8, (0.1, 0.1, 0.1))
    image = torch.where(disc(8, (0, 0, 0)) < 1, eye * 1.0, image)
    regions = make_map(image, "segmentation")[0].permute(1, 2, 0).numpy()
    away = radii()
    parts = [away > 26, (away < 22) & (away > 10), away < 6]
    colors = [np.unique(regions[part], axis=0) for part in parts]
    assert all(len(color) == 1 for color in colors)  # one region, one colour
    assert len(np.unique(np.concatenate(colors), axis=0)) == 3  # and different ones
    assert len(np.unique(regions.reshape(-1, 3), axis=0)) == 3  # the antialiased rims are no regions


def test_segmentation_colors_by_area_alone() -> None:
    """Other colours in the image, the same map; the largest area takes the first colour."""
    one = make_map(disc(20, (0.9, 0.1, 0.1), (1, 1, 1)), "segmentation")
    two = make_map(disc(20, (0.1, 0.8, 0.3), (0.0, 0.0, 0.3)), "segmentation")
    assert (one != two).any(dim=1).float().mean() < 0.02  # a rim pixel may fall to the other side
    large = make_map(disc(30, (0.9, 0.1, 0.1), (1, 1, 1)), "segmentation")  # now the disc is the largest
    assert torch.equal(large[0, :, 32, 32], one[0, :, 0, 0])
    assert torch.equal(large[0, :, 0, 0], one[0, :, 32, 32])


def test_segmentation_divides_texture_too() -> None:
    texture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    texture[..., 32:] += 0.7
    regions = make_map(texture, "segmentation")[0]
    assert (regions[:, :, 28] != regions[:, :, 36]).any(dim=0).float().mean() > 0.9


# Depth and normals


def test_depth_of_a_disc_is_a_half_sphere() -> None:
    radius = 24
    heights = make_map(disc(radius), "depth")[0]
    assert torch.equal(heights[0], heights[1]) and torch.equal(heights[0], heights[2])
    away = radii()
    sphere = np.sqrt(np.clip(radius**2 - away**2, 0, None)) / (SIZE / 2)
    inner = away < radius - 2
    assert np.abs(heights[0].numpy() - sphere)[inner].max() < 0.06
    assert (heights[0].numpy()[away > radius + 1.5] == 0).all()


def test_depth_ignores_what_is_drawn_inside() -> None:
    face = disc(24)
    painted = face.clone()
    painted[..., 28:34, 28:34] = 1.0  # the ground's own colour, inside
    painted[..., 20:24, 30:40] = 0.0
    assert torch.equal(make_map(face, "depth"), make_map(painted, "depth"))
    other = disc(24, ground=(0.2, 0.3, 0.9))
    torch.testing.assert_close(make_map(face, "depth"), make_map(other, "depth"), rtol=0, atol=0.2)


def test_normals_have_length_one_and_face_outwards() -> None:
    colors = make_map(disc(24), "normal")[0]
    normals = 2 * colors - 1
    torch.testing.assert_close(normals.norm(dim=0), torch.ones(SIZE, SIZE), rtol=0, atol=1e-5)
    assert (normals[2] > 0).all()
    middle, off = SIZE // 2, 15
    assert normals[0, middle, middle + off] > 0.3 > -0.3 > normals[0, middle, middle - off]  # x to the right
    assert normals[1, middle - off, middle] > 0.3 > -0.3 > normals[1, middle + off, middle]  # y up
    ground = torch.tensor(radii() > 26)
    facing = torch.tensor([[0.5], [0.5], [1.0]]).expand(3, int(ground.sum()))
    torch.testing.assert_close(colors[:, ground], facing)


def test_normals_of_a_half_sphere_are_its_radii() -> None:
    radius = 24
    normals = 2 * make_map(disc(radius), "normal")[0].numpy() - 1
    line = np.arange(SIZE) + 0.5 - SIZE / 2
    x, y = np.broadcast_to(line[None, :], (SIZE, SIZE)), np.broadcast_to(-line[:, None], (SIZE, SIZE))
    ring = (radii() > 6) & (radii() < 17)
    true = np.stack([x, y, np.sqrt(np.clip(radius**2 - x**2 - y**2, 0, None))]) / radius
    cosine = (normals * true).sum(axis=0)[ring]
    assert cosine.min() > 0.97
