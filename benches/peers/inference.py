"""Forward passes of petnet's engine beside burn-flex, rten, tract and ONNX Runtime: the same weights,
turn by turn in one run, at one thread and two.

Run by scripts/bench-inference.sh with the program that `benches/speed.rs` became and rten's.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
import onnxruntime
import torch
import tract
from safetensors import safe_open
from torch import nn
from torch_twin import PetNet, SimpleCNN, median_seconds

ROUNDS = int(os.environ.get("ROUNDS", "5"))
THREADS = (1, 2)
BATCHES = (1, 16)
PEERS = ("ONNX Runtime", "rten", "tract", "burn-flex")
BUNDLED = Path(__file__).parents[2] / "petnet/models/cats-vs-dogs.safetensors"


class Model:
    """A petnet model file, and PyTorch's network of the same weights."""

    def __init__(self, path):
        self.path = str(path)
        with safe_open(self.path, "pt") as file:
            info = json.loads(file.metadata()["petnet"])
            self.tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        self.side, self.temperature = info["preprocess"]["size"], info["temperature"]
        self.name = info["architecture"]["name"]
        settings = info["architecture"]
        if self.name == "petnet":
            self.network = PetNet(settings["stem"], settings["widths"], settings["depths"])
        else:
            self.network = SimpleCNN(settings["channels"], settings["hidden"])
        self.network.eval()
        self.load()

    def load(self):
        """Weights go in the order of the network's modules."""
        prefix = next(iter(self.tensors)).split(".")[0]
        layers = [m for m in self.network.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
        blocks = sorted({name.rsplit(".", 2)[0] for name in self.tensors if ".conv." in name}, key=self.order)
        for name, (conv, norm) in zip(blocks, zip(layers[::2], layers[1::2]), strict=True):
            conv.weight.data = self.tensors[f"{name}.conv.weight"]
            if conv.bias is not None:
                conv.bias.data = self.tensors[f"{name}.conv.bias"]
            for theirs, ours in [("weight", "gamma"), ("bias", "beta")]:
                getattr(norm, theirs).data = self.tensors[f"{name}.norm.{ours}"]
            for statistic in ("running_mean", "running_var"):
                getattr(norm, statistic).data = self.tensors[f"{name}.norm.{statistic}"]
        dense = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
        names = [name for name in ("hidden", "head") if f"{prefix}.{name}.weight" in self.tensors]
        for layer, name in zip(dense, names, strict=True):
            layer.weight.data = self.tensors[f"{prefix}.{name}.weight"].T.contiguous()
            layer.bias.data = self.tensors[f"{prefix}.{name}.bias"]

    @staticmethod
    def order(name):
        """The stem first, then blocks by number, each as PyTorch's `Residual` has it."""
        parts = ["stem", "blocks", "first", "second", "shortcut"]
        return [int(word) if word.isdigit() else parts.index(word) for word in name.split(".")[1:]]

    def images(self, batch):
        """What benches/speed.rs shows the engine, as `[n, c, h, w]`."""
        values = numpy.arange(self.side * self.side * 3)
        photos = [((values + photo) * 7 % 256).reshape(self.side, self.side, 3) for photo in range(batch)]
        return numpy.stack(photos).transpose(0, 3, 1, 2).astype(numpy.float32)

    def export(self, folder, batch):
        path = str(Path(folder) / f"{self.name}-{batch}.onnx")
        example = torch.from_numpy(self.images(batch))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(self.network, example, path, input_names=["x"], output_names=["y"], dynamo=False)
        return path

    def probability(self, logits):
        cat, dog = (float(value) / self.temperature for value in logits)
        return 1 / (1 + math.exp(dog - cat))


def program(command, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    return subprocess.check_output(command, text=True, env=environment)


def ours(speed, what, model, batch, threads):
    out = program([speed, what, model.path, str(model.side), str(batch)], threads)
    milliseconds, probability = map(float, out.split()[-2:])
    return milliseconds, probability


def with_onnxruntime(model, path, batch, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = {"x": model.images(batch)}
    seconds = median_seconds(lambda: session.run(None, images))
    return seconds * 1e3 / batch, model.probability(session.run(None, images)[0][0])


def with_tract(model, path, batch, threads):
    if threads > 1:
        return math.nan, None  # its Python bindings have one thread
    runnable = tract.onnx().load(path).into_model().into_runnable()
    images = model.images(batch)
    seconds = median_seconds(lambda: runnable.run([images]))
    return seconds * 1e3 / batch, model.probability(runnable.run([images])[0].to_numpy()[0])


def with_rten(rten, path, batch, threads):
    """Its own tool's timing, on random pictures."""
    out = program([rten, "--prepack", "--n-iters", "18", "--num-threads", str(threads), path], threads)
    times = [float(value) for value in re.findall(r"#\d+ - .* in ([\d.]+)ms", out)]
    return statistics.median(times[3:]) / batch, None


def measure(model, onnx, batch, threads, speed, rten):
    """Milliseconds per image of everyone, medians of rounds; all that answer must agree."""
    sides = {
        "petnet": lambda: ours(speed, "forward", model, batch, threads),
        "ONNX Runtime": lambda: with_onnxruntime(model, onnx, batch, threads),
        "rten": lambda: with_rten(rten, onnx, batch, threads),
        "tract": lambda: with_tract(model, onnx, batch, threads),
        "burn-flex": lambda: ours(speed, "flex", model, batch, threads),
    }
    times, answers = {name: [] for name in sides}, {}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            milliseconds, answers[name] = side()
            times[name].append(milliseconds)
    given = [answer for answer in answers.values() if answer is not None]
    if max(given) - min(given) > 1e-4:
        sys.exit(f"they do not agree: {answers}")
    return {name: statistics.median(values) for name, values in times.items()}


def main(speed, rten):
    heading = "".join(f"{name:>14}" for name in ("petnet", *PEERS)) + f"{'petnet / ORT':>14}"
    print(f"ONNX Runtime {onnxruntime.__version__}, medians of {ROUNDS} rounds, milliseconds per image")
    print(f"{'':44}{heading}")
    with tempfile.TemporaryDirectory() as folder:
        reference = str(Path(folder) / "simple_cnn.safetensors")
        subprocess.check_call([speed, "save", "simple_cnn", "224", reference])
        for model in (Model(BUNDLED), Model(reference)):
            for batch in BATCHES:
                onnx = model.export(folder, batch)
                for threads in THREADS:
                    times = measure(model, onnx, batch, threads, speed, rten)
                    label = f"{model.name} {model.side} px, batch {batch}, threads {threads}"
                    row = "".join(f"{times[name]:14.3f}" for name in ("petnet", *PEERS))
                    print(f"{label:44}{row}{times['petnet'] / times['ONNX Runtime']:14.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
