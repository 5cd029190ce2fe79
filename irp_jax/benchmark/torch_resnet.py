"""The small residual network and the Fast AT step in PyTorch, to compare speed with.

The network equals `irp_jax.models.ResNet` in every layer and every name. So weights can be copied,
and outputs are compared before times are. Images and activations are channels-last. This is
PyTorch's fastest layout for convolutions on a CPU, and on a GPU that uses tensor cores.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Step = Callable[[torch.Tensor], torch.Tensor]
"""Takes one training step: indices (N,) of a batch -> the loss, on the device."""


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))); x is projected if stride or width change."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels_in, width, 3, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1)
        self.norm2 = nn.BatchNorm2d(width)
        if stride != 1 or channels_in != width:
            self.shortcut = conv(channels_in, width, 1, stride)
            self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if hasattr(self, "shortcut"):
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(x + y, inplace=True)


class ResNet(nn.Module):
    """Residual network for small images (He et al. 2016, section 4.2) with projection shortcuts."""

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem = conv(3, widths[0], 3, 1)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        channels, names = widths[0], []
        for stage, (depth, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                names.append(f"stage{stage}_block{index}")
                self.add_module(names[-1], Block(channels, width, stride))
                channels = width
        self.names = tuple(names)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) float32 in [0, 1], channels-last -> logits (N, K)."""
        x = (images - 0.5) / 0.25
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.classifier(x.mean((2, 3)))


def conv(channels_in: int, channels_out: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)


class MaskedConv2d(nn.Conv2d):
    """A convolution that multiplies its kernel by a mask at each call, as tools with masks only do.

    The mask is a fixed buffer. A learned mask would cost more.
    """

    mask: torch.Tensor

    @classmethod
    def convert(cls, dense: nn.Conv2d) -> None:
        """Converts a dense layer to this class in place and keeps its weights."""
        dense.__class__ = cls
        dense.register_buffer("mask", torch.ones_like(dense.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight * self.mask, None)


def build(
    blocks: tuple[int, ...],
    widths: tuple[int, ...],
    weights: Mapping[str, Any],
    *,
    masked: bool = False,
    statistics: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> ResNet:
    """Returns the network with the weights of the JAX network. Layer widths follow from the arrays.

    Args:
        blocks, widths: as for `irp_jax.models.ResNet`.
        weights: that network's parameters, name -> array: kernels (k, k, C_in, C_out).
        masked: whether every convolution's kernel is multiplied by a mask.
        statistics: its running statistics, name -> array. If given, the network is in inference
            mode.
        device: of the network.
    """
    classes = weights["classifier/bias"].shape[0]
    model = ResNet(blocks, widths, classes)
    for path, module in model.named_modules():
        name = path.replace(".", "/") + "/"
        if isinstance(module, nn.Conv2d):
            kernel = weights[name + "kernel"]
            module.weight = nn.Parameter(
                _tensor(kernel.transpose(3, 2, 0, 1)).contiguous(memory_format=torch.channels_last)
            )
            if masked:
                MaskedConv2d.convert(module)
        elif isinstance(module, nn.Linear):
            module.weight = nn.Parameter(_tensor(weights[name + "kernel"].T).contiguous())
            module.bias = nn.Parameter(_tensor(weights[name + "bias"]))
        elif isinstance(module, nn.BatchNorm2d):
            module.weight = nn.Parameter(_tensor(weights[name + "scale"]))
            module.bias = nn.Parameter(_tensor(weights[name + "bias"]))
            module.num_features = len(module.weight)
            running, ours = statistics or {}, f"batch_stats/{name}"
            module.running_mean = _tensor(running.get(ours + "mean", np.zeros(len(module.weight))))
            module.running_var = _tensor(running.get(ours + "var", np.ones(len(module.weight))))
    model.to(device)
    return model.train() if statistics is None else model.eval()


def _tensor(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def logits(model: ResNet, images: np.ndarray) -> np.ndarray:
    """Returns logits (N, K) of images (N, H, W, 3) float32 in [0, 1]. The mode is not changed."""
    with torch.no_grad():
        pixels = torch.from_numpy(images).to(_device(model))
        return model(channels_last(pixels)).cpu().numpy()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class Contiguous(nn.Module):
    """A network for attacks that need contiguous images and gradients (N, 3, H, W).

    Inside, everything is channels-last.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) float32 in [0, 1] -> logits (N, K)."""
        return self.model(_Reorder.apply(images))


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.contiguous()


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Returns an array (N, H, W, C) as a view (N, C, H, W) of the same memory, in channels-last."""
    return images.permute(0, 3, 1, 2)


def indices(batches: np.ndarray, device: str) -> torch.Tensor:
    """Returns batches of indices, (steps, N), on the device of the images."""
    return torch.tensor(batches).long().to(device)


def fast_step(model: ResNet, images: np.ndarray, labels: np.ndarray, epsilon: float) -> Step:
    """Returns a step of Fast AT with a random start (Wong et al. 2020, algorithm 3), crop and flip.

    Args:
        model: trained in place, by SGD with momentum 0.9 and weight decay 5e-4.
        images: (M, H, W, 3) uint8, the data set.
        labels: (M,) integer.
        epsilon: L-inf radius in pixel units of [0, 1].

    Returns:
        The step. It runs on the model's device and does not wait for it.
    """
    device = _device(model)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4,
        fused=device.type == "cuda" or None,
    )  # fmt: skip
    data, targets = torch.tensor(images).to(device), torch.tensor(labels).long().to(device)

    def step(indices: torch.Tensor) -> torch.Tensor:
        natural = channels_last(augment(data[indices]).float() / 255)
        target = targets[indices]
        noise = torch.empty_like(natural).uniform_(-epsilon, epsilon)
        start = (natural + noise).clamp_(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), target), start)
        adversarial = start.detach() + 1.25 * epsilon * gradient.sign()
        adversarial = torch.clamp(adversarial, natural - epsilon, natural + epsilon).clamp_(0, 1)
        loss = F.cross_entropy(model(adversarial), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def graphed(step: Step, indices: torch.Tensor) -> Step:
    """Records a step as a CUDA graph. A replay needs no Python and no single kernel launches.

    Args:
        step: must draw random numbers from PyTorch's own generator, which CUDA graphs advance.
        indices: (N,) of some batch, on the GPU.
    """
    batch = indices.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up: one-time choices and allocations stay out of the graph
        for _ in range(3):
            step(batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # "thread_local", because JAX's threads may call CUDA at the same time.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = step(batch)

    def replay(indices: torch.Tensor) -> torch.Tensor:
        batch.copy_(indices)
        graph.replay()
        return loss

    return replay


def augment(images: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Crops the padded image and flips it at random, vectorised: (N, H, W, C) uint8 in and out."""
    number, height, width, _ = images.shape
    device = images.device
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    corners = torch.randint(0, 2 * padding + 1, (2, number, 1), device=device)
    rows = corners[0] + torch.arange(height, device=device)
    columns = corners[1] + torch.arange(width, device=device)
    flipped = torch.rand(number, 1, device=device) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    image = torch.arange(number, device=device)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]
