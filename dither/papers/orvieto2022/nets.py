"""The residual network of Orvieto et al. 2022, Fig. 6: ResNet18 for images of 32 × 32.

The others are `dither.lab.nets.specs.MLP`, `orvieto_lenet` and `orvieto_wide`.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from dither.errors import DitherError
from dither.lab import channels_last, generator, initialise, linear

# With channels last, torch 2.13's backward of a strided 1 × 1 convolution of fewer than 8 channels
# writes past its buffers on CPUs without AVX-512: such nets have their channels first.
NARROW = 8


@dataclass(frozen=True)
class ResNet:
    """conv k3 → BatchNorm → ReLU → stages of widths w, 2w, 4w, … → channel means → classes.

    He et al. 2016, as released for Fig. 6: two convolutions a block, the first of a stage with
    stride 2 from the second stage on, a 1 × 1 convolution where shapes change. ResNet18 is width
    64, blocks (2, 2, 2, 2): 62 parameter tensors. augment: random crops (4 pixels of padding) and
    flips of what is trained on.
    """

    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    channels: int = 3
    classes: int = 10
    augment: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.width < 1 or not self.blocks or min(self.blocks) < 1:
            raise DitherError(
                f"ResNet: width = {self.width}, blocks = {self.blocks}; give a width of 1 or more "
                "and at least one block a stage"
            )

    def build(self, seed: int) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.augment:
            layers["augment"] = CropAndFlip()
        layers["conv"] = convolution(self.channels, self.width, 3)
        layers["norm"], layers["act"] = nn.BatchNorm2d(self.width), nn.ReLU()
        width = self.width
        for stage, blocks in enumerate(self.blocks):
            wide = self.width * 2**stage
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                layers[f"stage{stage}_{i}"] = Block(width, wide, stride)
                width = wide
        layers["average"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        layers["fc"] = linear(width, self.classes, True)
        net = nn.Sequential(layers)
        rng = generator(seed, "parameters")
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                initialise(module, "torch", rng)
        if self.width < NARROW:
            return net
        return channels_last(net)  # twice as fast on CPUs


class Block(nn.Module):
    """relu(x′ + norm conv relu norm conv x); x′ is x, or norm conv₁ₓ₁ x where the shape changes."""

    def __init__(self, width: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv0, self.norm0 = convolution(width, wide, 3, stride), nn.BatchNorm2d(wide)
        self.conv1, self.norm1 = convolution(wide, wide, 3), nn.BatchNorm2d(wide)
        self.shortcut = nn.Sequential()
        if stride > 1 or width != wide:
            self.shortcut = nn.Sequential(convolution(width, wide, 1, stride), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm0(self.conv0(x)))
        return torch.relu(self.norm1(self.conv1(h)) + self.shortcut(x))


class CropAndFlip(nn.Module):
    """In train mode each image is shifted by −4 … 4 pixels, with black behind it, and mirrored at
    random. It draws from torch's default generator, as dropout does.
    """

    PAD = 4

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        (n, _, h, w), pad = x.shape, self.PAD
        low = x.amin()  # black: 0 before the images were standardised
        padded = F.pad(x - low, (pad,) * 4) + low
        top, left = torch.randint(2 * pad + 1, (2, n, 1), device=x.device)
        mirrored = torch.rand(n, 1, device=x.device) < 0.5
        rows = top + torch.arange(h, device=x.device)  # [n, h]
        across = torch.arange(w, device=x.device).expand(n, w)
        columns = left + torch.where(mirrored, across.flip(1), across)  # [n, w]
        image = torch.arange(n, device=x.device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]
        # Contiguous: so a net of less than `NARROW` channels is contiguous everywhere.
        return moved.permute(0, 3, 1, 2).contiguous()


def convolution(channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias and initial values. It keeps the size, up to the stride."""
    return skip_init(
        nn.Conv2d, channels, filters, kernel, stride=stride, padding=kernel // 2, bias=False
    )  # type: ignore[return-value]
