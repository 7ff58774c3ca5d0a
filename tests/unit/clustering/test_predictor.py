from __future__ import annotations

import torch
from torch import nn

from pipeline.clustering.predictor import PrototypeHeads, ResNet, build_encoder


def test_heads_equal_one_network_per_prototype() -> None:
    heads = PrototypeHeads(k=3, features=10, outputs=6)
    for parameter in heads.parameters():
        parameter.data.normal_()
    features = torch.randn(4, 10)
    expected = []
    for k in range(3):
        layers: list[nn.Module] = []
        for weight, bias in zip(heads.weights, heads.biases, strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.weight.data, layer.bias.data = weight.data[k].T, bias.data[k, 0]
            layers += [layer, nn.ReLU()]
        expected.append(nn.Sequential(*layers[:-1])(features))
    torch.testing.assert_close(heads(features), torch.stack(expected, 1), rtol=1e-4, atol=1e-3)


def test_heads_start_at_zero() -> None:
    assert not PrototypeHeads(k=3, features=10, outputs=128)(torch.randn(4, 10)).any()


def test_encoders_have_the_depth_of_their_name() -> None:
    """ResNet-20 and ResNet-18 count convolutions and the (absent) classifier; shortcuts do not count."""
    for name, depth, features in (("resnet20", 20, 64), ("resnet18", 18, 512)):
        encoder = build_encoder(name, 3, 64, 64)
        convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        assert len(convolutions) + 1 == depth
        assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, features)


def test_the_encoder_follows_the_image_size() -> None:
    assert build_encoder("auto", 1, 63, 90).features == 64
    assert build_encoder("auto", 3, 64, 64).features == 512
    assert isinstance(build_encoder("auto", 3, 65, 97), ResNet)
