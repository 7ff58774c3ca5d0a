from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from pipeline.clustering.model.batch_norm import GlobalBatchNorm
from pipeline.clustering.model.predictor import PrototypeHeads, ResNet, build_encoder, encoder_side
from tests.support.worker_processes import process_group


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
    """The depth counts convolutions and the classifier, which is absent here, but not shortcuts."""
    for name, depth, features in (("resnet20", 20, 64), ("resnet18", 18, 512)):
        encoder = build_encoder(name, 3, 64, 64)
        convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        assert len(convolutions) + 1 == depth
        assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, features)


def test_the_encoder_follows_the_image_size() -> None:
    assert [encoder_side(side) for side in (8, 28, 48, 64, 128, 256)] == [8, 14, 14, 16, 16, 16]
    assert build_encoder("auto", 1, 28, 28)(torch.rand(2, 1, 28, 28)).shape == (2, 64)
    assert build_encoder("auto", 3, 64, 64, 64).features == 512
    assert isinstance(build_encoder("auto", 3, 65, 97), ResNet)


@pytest.mark.parametrize(("name", "input_px", "features"), [("auto", 16, 64), ("resnet18", 16, 512), ("auto", 64, 512)])
def test_an_encoder_sees_images_that_are_averaged_down(name: str, input_px: int, features: int) -> None:
    encoder = build_encoder(name, 3, 64, 96, input_px).eval()
    images = torch.rand(2, 3, 64, 96)
    assert encoder.features == features
    same = build_encoder(name, 3, input_px, input_px * 96 // 64, input_px).eval()
    same.load_state_dict(dict(zip(same.state_dict(), encoder.state_dict().values(), strict=True)))
    factor = 64 // input_px
    averaged = images.unflatten(-1, (-1, factor)).mean(-1).unflatten(-2, (-1, factor)).mean(-2)
    torch.testing.assert_close(encoder(images), same(averaged), atol=1e-5, rtol=1e-4)


def test_an_encoder_never_enlarges_images() -> None:
    small, large = build_encoder("resnet20", 3, 28, 28, 28), build_encoder("resnet20", 3, 28, 28, 64)
    assert list(small.state_dict()) == list(large.state_dict())


PARTS = (3, 5)
"""Number of images of each worker."""


def norm_inputs(dtype: torch.dtype) -> tuple[GlobalBatchNorm, torch.Tensor, torch.Tensor]:
    """Return a normalisation with random weights, a batch with a large mean, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    norm = GlobalBatchNorm(4).to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        norm.weight.copy_(torch.rand(4, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(4, generator=generator))
    batch = 3 + torch.randn(sum(PARTS), 4, 5, 6, generator=generator, dtype=torch.float64)
    gradient = torch.randn(batch.shape, generator=generator, dtype=torch.float64)
    return norm, batch.to(dtype), gradient.to(dtype)


def normalise_a_part(rank: int, folder: str, dtype: torch.dtype) -> None:
    """Run one worker: normalise its part of the batch, and save outputs, gradients and running moments."""
    norm, batch, gradient = norm_inputs(dtype)
    part = batch.split(PARTS)[rank].clone().requires_grad_()
    with process_group(rank, len(PARTS), folder):
        y = norm(part)
        y.backward(gradient.split(PARTS)[rank])
    found = {"y": y.detach(), "x": part.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    torch.save({**found, "mean": norm.running_mean, "var": norm.running_var}, f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.02)])
def test_workers_normalise_like_a_single_worker_with_the_whole_batch(
    tmp_path: Path, dtype: torch.dtype, atol: float
) -> None:
    norm, batch, gradient = norm_inputs(dtype)
    whole = torch.nn.BatchNorm2d(4).double()
    whole.load_state_dict(norm.state_dict())
    x = batch.double().requires_grad_()
    y = whole(x)
    y.backward(gradient.double())
    spawn(normalise_a_part, (str(tmp_path), dtype), nprocs=len(PARTS))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(PARTS))]

    def close(found: torch.Tensor, expected: torch.Tensor | None) -> None:
        torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)

    close(torch.cat([part["y"] for part in parts]), y.detach())
    close(torch.cat([part["x"] for part in parts]), x.grad)
    close(sum(part["weight"] for part in parts), whole.weight.grad)
    close(sum(part["bias"] for part in parts), whole.bias.grad)
    for part in parts:
        close(part["mean"], whole.running_mean)
        close(part["var"], whole.running_var)
