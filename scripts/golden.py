"""Writes the golden fixtures of petnet's tests with PyTorch, Pillow and scikit-learn; run by scripts/golden.sh."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn import metrics
from torch import nn

CHANNELS, HIDDEN, CLASSES, SIZE, BATCH = [4, 6, 8, 10], 8, 2, 32, 8


class SimpleCNN(nn.Module):
    """SimpleCNN, the network of the Python reference implementation, written from its description."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()
        for i, o in zip([3] + CHANNELS, CHANNELS):
            conv, norm = nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)
            self.blocks.append(nn.ModuleDict({"conv": conv, "norm": norm}))
        self.hidden = nn.Linear(CHANNELS[-1], HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        x = (x / 255 - mean) / std
        for block in self.blocks:
            x = torch.max_pool2d(torch.relu(block["norm"](block["conv"](x))), 2)
        x = torch.relu(self.hidden(x.mean(dim=(2, 3))))
        return self.head(x)  # dropout 0: the fixture is deterministic


def state(net):
    """Names and layouts as petnet stores them: linear weights are [in, out]."""
    out = {}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name in ("hidden.weight", "head.weight"):
            value = value.t()
        out[name] = value.detach().contiguous().numpy().astype("<f4").copy()
    return out


def save(path, tensors):
    """A safetensors file without the library."""
    header, offset, blobs = {}, 0, []
    for name, array in sorted(tensors.items()):
        blob = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def network(out):
    torch.manual_seed(7)
    net = SimpleCNN()
    for block in net.blocks:  # statistics other than 0 and 1, or a mix-up would not show
        block["norm"].running_mean.uniform_(-0.5, 0.5)
        block["norm"].running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(block["norm"].weight, 0.5, 1.5)
        nn.init.uniform_(block["norm"].bias, -0.5, 0.5)
    before = {f"before.{k}": v for k, v in state(net).items()}
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE)).float()
    targets = torch.randint(0, CLASSES, (BATCH,))
    net.eval()
    with torch.no_grad():
        logits = net(images).numpy()
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
    loss = nn.functional.cross_entropy(net(images), targets)
    loss.backward()
    optimizer.step()
    after = {f"after.{k}": v for k, v in state(net).items()}
    extra = {
        "images": images.numpy(),
        "targets": targets.numpy(),
        "logits": logits,
        "loss": np.array([loss.item()]),
    }
    save(out / "simple_cnn.safetensors", {**before, **after, **extra})


class ReferenceCNN(nn.Module):
    """The same network under the layer names of the Python reference implementation."""

    def __init__(self):
        super().__init__()
        for number, (i, o) in enumerate(zip([3] + CHANNELS, CHANNELS), 1):
            setattr(self, f"conv{number}", nn.Conv2d(i, o, 3, padding=1))
            setattr(self, f"bn{number}", nn.BatchNorm2d(o))
        self.fc1 = nn.Linear(CHANNELS[-1], HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        for number in range(1, len(CHANNELS) + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = torch.max_pool2d(torch.relu(x), 2)
        return self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3)))))


def checkpoint(out):
    """A checkpoint as the Python reference implementation writes it, and PyTorch's answers with it."""
    torch.manual_seed(3)
    net = ReferenceCNN()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(8):  # statistics of norms, state of the optimiser
        images, targets = torch.randn(8, 3, SIZE, SIZE) * 2 + 0.5, torch.randint(0, CLASSES, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), targets).backward()
        optimizer.step()
    config = {"model_name": "simple_cnn", "num_classes": CLASSES, "dropout_rate": 0.4, "class_names": ["cat", "dog"]}
    torch.save(
        {
            "epoch": 8,
            "model_state_dict": net.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "val_accuracy": 0.5,
            "config": config,
        },
        out / "best_model.pt",
    )
    net.eval()
    answers = {}
    for name in ("waves.png", "waves.jpg"):
        with Image.open(out / name) as photo:
            pixels = np.asarray(photo.convert("RGB").resize((SIZE, SIZE), Image.LANCZOS), dtype="float32")
        x = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        with torch.no_grad():
            logits = net(torch.from_numpy(x.astype("float32").transpose(2, 0, 1)[None]))
        answers[name] = torch.softmax(logits, 1)[0].tolist()
    (out / "best_model.json").write_text(json.dumps(answers))


def drawn(name, shape):
    """Numbers between -1 and 1 that petnet's test draws too, so that 45 MB need not be kept."""
    hash = 2166136261
    for byte in name.encode():
        hash = (hash ^ byte) * 16777619 & 0xFFFFFFFF
    x = np.arange(int(np.prod(shape)), dtype="uint32") * np.uint32(2654435761) + np.uint32(hash)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x.astype("float64") / 2**31 - 1).reshape(shape)


def residual(out):
    from torchvision.models import resnet18

    net = resnet18(num_classes=10)
    names = fill(net)
    x = (patterns(64) / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    (out / "resnet18.json").write_text(json.dumps({"shapes": names, "logits": logits(net, x)}))


def fill(net):
    """Weights by name, and their shapes; counters of batches are left out."""
    state = net.state_dict()
    for name, value in state.items():
        if value.ndim == 4:
            scale, shift = (6 / (value.shape[0] * value.shape[2] * value.shape[3])) ** 0.5, 0
        elif value.ndim == 2:
            scale, shift = (3 / value.shape[1]) ** 0.5, 0
        elif name.endswith("running_var") or name.endswith("weight"):
            scale, shift = 0.5, 1
        else:
            scale, shift = 0.2, 0
        if value.ndim > 0:
            state[name] = torch.from_numpy((drawn(name, value.shape) * scale + shift).astype("float32"))
    net.load_state_dict(state)
    return {name: list(value.shape) for name, value in state.items() if value.ndim > 0}


def patterns(side):
    """Two images of values from 0 to 255, as `[2, side, side, 3]`."""
    i = np.arange(2 * side * side * 3)
    return ((i * 7919 + i // 13 * 31) % 256).astype("float32").reshape(2, side, side, 3)


def logits(net, images):
    net.eval()
    with torch.no_grad():
        return net(torch.from_numpy(images.astype("float32").transpose(0, 3, 1, 2).copy())).tolist()


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd row or column of it is at the bottom and at the right."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, pads))


class InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite, under the names of the package efficientnet-lite-pytorch."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        width = inputs * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = SameConv2d(inputs, width, 1), nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv, self._bn2 = SameConv2d(width, outputs, 1), nn.BatchNorm2d(outputs, eps=1e-3)
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs

    def forward(self, x):
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """The package's network, with repeats, kernel, stride, expansion and channels of each stage given."""

    def __init__(self, stem, stages, head, classes):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, stem, 3, 2), nn.BatchNorm2d(stem, eps=1e-3)
        self._blocks, inputs = nn.ModuleList(), stem
        for repeats, kernel, stride, expansion, channels in stages:
            for place in range(repeats):
                self._blocks.append(InvertedResidual(inputs, channels, kernel, 1 if place else stride, expansion))
                inputs = channels
        self._conv_head, self._bn1 = SameConv2d(inputs, head, 1), nn.BatchNorm2d(head, eps=1e-3)
        self._fc = nn.Linear(head, classes)

    def forward(self, x):
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean(dim=(2, 3)))


def efficientnet_lite(out):
    """A small network. The convolutions of stride 2 pad unevenly for images of 32 pixels, and evenly for 33."""
    net = EfficientNetLite(8, [(1, 3, 1, 1, 8), (2, 5, 2, 3, 12), (1, 3, 2, 2, 16)], 24, 5)
    fixture = {"shapes": fill(net)}
    for side in (32, 33):
        fixture[f"logits_{side}"] = logits(net, (patterns(side) - 127) / 128)
    # No activation of the others reaches 6: only a larger contrast tells ReLU6 from ReLU.
    fixture["logits_32_std_4"] = logits(net, (patterns(32) - 127) / 4)
    (out / "efficientnet_lite.json").write_text(json.dumps(fixture))


def pixels(out):
    y, x = np.mgrid[0:150, 0:200]
    picture = np.stack([127 + 120 * np.sin(x / 9.0), 127 + 120 * np.cos(y / 7.0), (x * 2 + y) % 256], -1)
    source = Image.fromarray(picture.clip(0, 255).astype("uint8"))
    source.save(out / "waves.png", optimize=True)
    source.resize((64, 64), Image.LANCZOS).save(out / "waves-squeeze-64.png", optimize=True)
    short = source.resize((round(200 * 64 / 150), 64), Image.LANCZOS)
    left = (short.width - 64) // 2
    short.crop((left, 0, left + 64, 64)).save(out / "waves-crop-64.png", optimize=True)
    source.save(out / "waves.jpg", quality=90)
    with Image.open(out / "waves.jpg") as jpeg:
        jpeg.convert("RGB").resize((64, 64), Image.LANCZOS).save(out / "waves-jpeg-64.png", optimize=True)
    source.convert("CMYK").save(out / "waves-cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    source.save(out / "waves-turned.jpg", quality=90, exif=exif)


def figures(out):
    rng = np.random.default_rng(11)
    result = {}
    for name, classes, count in [("two", 2, 400), ("five", 5, 500)]:
        truth = rng.integers(0, classes, count)
        scores = rng.normal(size=(count, classes))
        scores[np.arange(count), truth] += 1.2
        rows = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        rows = rows.astype("float32").round(6)
        answer = rows.argmax(1)
        average = "binary" if classes == 2 else "macro"
        p, r, f, _ = metrics.precision_recall_fscore_support(truth, answer, average=average)
        if classes == 2:
            auc = metrics.roc_auc_score(truth, rows[:, 1])
        else:
            auc = np.mean([metrics.roc_auc_score(truth == c, rows[:, c]) for c in range(classes)])
        picked = rows[np.arange(count), truth].astype("float64")
        result[name] = {
            "truth": truth.tolist(),
            "probabilities": [[float(v) for v in row] for row in rows],
            "accuracy": metrics.accuracy_score(truth, answer),
            "precision": p,
            "recall": r,
            "f1_score": f,
            "roc_auc": float(auc),
            "log_loss": float(-np.log(picked).mean()),
            "ece": ece(rows, truth),
            "confusion_matrix": metrics.confusion_matrix(truth, answer).tolist(),
        }
    (out / "metrics.json").write_text(json.dumps(result))


def ece(rows, truth, bins=15):
    confidence, right = rows.max(1).astype("float64"), rows.argmax(1) == truth
    total = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(total)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    network(folder)
    pixels(folder)
    figures(folder)
    checkpoint(folder)
    residual(folder)
    efficientnet_lite(folder)
