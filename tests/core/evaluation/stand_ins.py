"""Stand-ins for the tests of evaluation: data, a sampler and an autoencoder whose answers are known, toy judges."""

import torch

from context_diffusion.features.networks import SqueezeNetFeatures


class Library:
    """Four styles of twelve emoji, every third held out; an image's pixels say its style and key."""

    size = 16
    styles = ["one", "two", "three", "new"]
    train_styles, heldout_styles = styles[:3], styles[3:]
    everything = [f"{i:x}" for i in range(36)]
    heldout_keys = dict.fromkeys(styles, everything[::3])

    def group(self, key):
        return "even" if int(key, 16) % 2 == 0 else "odd"

    def has(self, style, key):
        return not (style == "two" and key == "0")

    def batch(self, style, keys):
        values = [self.styles.index(style) * 0.2 + int(key, 16) * 0.005 for key in keys]
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()

    def background(self, style, keys):
        return torch.zeros(len(keys), 1, 16, 16)

    def caption(self, style, key):
        return f"{key}, {style}"


class Echo:
    """A sampler that remembers what it was asked and answers with the noise's seed."""

    def __init__(self):
        self.asked = []

    def generate(self, batch):
        self.asked.append(batch)
        values = torch.tensor([seed % 256 / 255 for seed in batch.seeds])
        return values.view(-1, 1, 1, 1).expand(-1, 3, batch.size, batch.size)


class IdentityVAE:
    vae = torch.nn.Linear(1, 1)

    def encode_images(self, images):
        return images

    def decode_latents(self, latents):
        return latents.detach()


def toy_squeezenet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SqueezeNetFeatures()


def toy_efficientnet():
    """In EfficientNet's place; of a class that the processes that measure can import."""
    network = toy_squeezenet()
    network.name = "EffNetLite0"
    return network
