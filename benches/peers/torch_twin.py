"""PyTorch's twins of petnet's networks; prints both sides' medians, taken turn by turn in one run.

Run by scripts/bench-peers.sh with the program that `benches/speed.rs` became; ROUNDS says how often.
"""

import os
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torchvision import models

ROUNDS = int(os.environ.get("ROUNDS", "5"))
CASES = [
    ("forward", "simple_cnn", 128, 1),
    ("forward", "simple_cnn", 128, 16),
    ("forward", "simple_cnn", 224, 1),
    ("forward", "petnet", 128, 1),
    ("forward", "petnet", 128, 16),
    ("step", "simple_cnn", 128, 32),
    ("step", "petnet", 64, 64),
    ("step", "petnet", 128, 32),
    ("step", "resnet18", 128, 16),
    ("step", "efficientnet_lite0", 160, 32),
]


class Normalized(nn.Module):
    """A network behind the normalisation of its images, whose values are from 0 to 255."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(self.MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.STD).view(1, 3, 1, 1))

    def normalized(self, x):
        return (x / 255 - self.mean) / self.std

    def forward(self, x):
        return self.head(self.body(self.normalized(x)).mean((2, 3)))


class SimpleCNN(Normalized):
    def __init__(self, widths=(32, 64, 128, 256), hidden=128):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def conv(inputs, outputs, kernel, stride):
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.inner = nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU(), *conv(outputs, outputs, 3, 1))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))

    def forward(self, x):
        return torch.relu(self.inner(x) + self.shortcut(x))


class PetNet(Normalized):
    def __init__(self, stem=32, widths=(48, 96, 192, 320), depths=(0, 1, 1, 1)):
        super().__init__()
        inputs = widths[0]
        layers = [*conv(3, stem, 3, 2), nn.ReLU(), *conv(stem, inputs, 3, 2), nn.ReLU()]
        for stage, (width, depth) in enumerate(zip(widths, depths)):
            for place in range(depth):
                layers.append(Residual(inputs, width, 2 if stage and place == 0 else 1))
                inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 2)


class ResNet18(Normalized):
    def __init__(self):
        super().__init__()
        self.network = models.resnet18(num_classes=2)

    def forward(self, x):
        return self.network(self.normalized(x))


class EfficientNetLite0(Normalized):
    """The network of the package efficientnet-lite-pytorch, without stochastic depth, which petnet does not have."""

    MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, side):
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        settings = {"image_size": side, "num_classes": 2, "drop_connect_rate": 0.0}
        self.network = EfficientNet.from_name("efficientnet-lite0", **settings)
        for conv in self.network.modules():
            pads = set(getattr(getattr(conv, "static_padding", None), "padding", ()))
            if len(pads) == 1:
                # The package pads in a step of its own. Where all sides are equal, the convolution does it faster.
                conv.padding, conv.static_padding = (pads.pop(),) * 2, nn.Identity()

    def forward(self, x):
        return self.network(self.normalized(x))


LAYOUTS = (torch.contiguous_format, torch.channels_last)
NETWORKS = {
    "simple_cnn": lambda side: SimpleCNN(),
    "petnet": lambda side: PetNet(),
    "resnet18": lambda side: ResNet18(),
    "efficientnet_lite0": EfficientNetLite0,
}


def median_seconds(work, runs=15):
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def images(count, side):
    values = torch.arange(count * 3 * side * side) * 7 % 256
    return values.float().view(count, 3, side, side)


def forward(name, side, count, layout):
    network = NETWORKS[name](side).eval().to(memory_format=layout)
    batch = images(count, side).to(memory_format=layout)
    with torch.inference_mode():
        return median_seconds(lambda: network(batch))


def step(name, side, count, layout):
    network = NETWORKS[name](side).train().to(memory_format=layout)
    batch = images(count, side).to(memory_format=layout)
    targets = torch.arange(count) % 2
    sgd = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    loss = nn.CrossEntropyLoss()

    def once():
        sgd.zero_grad()
        loss(network(batch), targets).backward()
        sgd.step()

    return median_seconds(once)


def sgemm():
    """The machine's rate of large products, in GFLOP/s."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 2 * 2048**3 / median_seconds(lambda: a @ b, 9) * 1e-9


def main(program):
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, sgemm {sgemm():.0f} GFLOP/s")
    print(f"medians of {ROUNDS} rounds, milliseconds per image")
    print(f"{'':42}{'petnet':>9}{'PyTorch':>9}{'petnet / PyTorch':>18}")
    for case in CASES:
        what, name, side, count = case
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(float(subprocess.check_output([program, *map(str, case)]).split()[0]))
            measure = forward if what == "forward" else step
            # Which layout is faster depends on the network: PyTorch gets the better one.
            times = [measure(name, side, count, layout) for layout in LAYOUTS]
            theirs.append(min(times) * 1e3 / count)
        ours, theirs = statistics.median(ours), statistics.median(theirs)
        label = f"{what} {name} {side} px, batch {count}"
        print(f"{label:42}{ours:9.3f}{theirs:9.3f}{ours / theirs:18.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
