import pytest
import torch
from torch import nn

from models import AudioEncoder, Generator


def with_random_norms(network: nn.Module, seed: int) -> nn.Module:
    """Randomize the norms, because those of a new network do nothing, and a missing one would not
    be noticed."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.weight.shape
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = 0.2 * torch.randn(size, generator=generator)
            module.running_mean.data = 0.2 * torch.randn(size, generator=generator)
            module.running_var.data = 0.5 + torch.rand(size, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def generator():
    torch.manual_seed(1)
    return with_random_norms(Generator(), 1)


@pytest.fixture(scope="session")
def audio_encoder():
    torch.manual_seed(2)
    return with_random_norms(AudioEncoder(), 2)
