"""Forward passes of petnet's engine beside ONNX Runtime, rten, tract and burn-flex, at one thread and two.

All read one model: petnet its own file, the others the ONNX file that `petnet-train export` writes from it. They take
turns in one run. Run by scripts/bench-inference.sh; PEERS says which peers are measured, ROUNDS how often.
"""

import functools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import onnxruntime
from safetensors import safe_open
from torch_twin import median_seconds

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PEERS = os.environ.get("PEERS", "onnxruntime,rten,tract,burn-flex").split(",")
THREADS = (1, 2)
BATCHES = (1, 16)
AGREEMENT = 1e-4
BUNDLED = Path(__file__).parents[2] / "petnet/models/cats-vs-dogs.safetensors"
RANDOM = [("simple_cnn", 224), ("resnet18", 224), ("efficientnet_lite0", 160), ("efficientnet_lite0", 224)]


class Programs:
    """The programs that are measured or that write model files."""

    def __init__(self, speed, petnet, rten):
        self.speed, self.petnet, self.rten = speed, petnet, rten


class Model:
    """A petnet model file and the ONNX file of the same weights."""

    def __init__(self, path, programs, folder):
        self.path = str(path)
        with safe_open(self.path, "np") as file:
            info = json.loads(file.metadata()["petnet"])
        self.name, self.side = info["graph"]["name"], info["preprocess"]["size"]
        self.onnx = str(Path(folder) / f"{self.name}-{self.side}.onnx")
        export = [programs.petnet, "export", "--quiet", "--model", self.path, "--out", self.onnx]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)

    def images(self, batch):
        """The images of `pictures` in benches/speed.rs, as `[n, c, h, w]`."""
        values = numpy.arange(self.side * self.side * 3)
        images = [((values + number) * 7 % 256).reshape(self.side, self.side, 3) for number in range(batch)]
        return numpy.ascontiguousarray(numpy.stack(images).transpose(0, 3, 1, 2), dtype=numpy.float32)


def output(command, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    return subprocess.check_output(list(map(str, command)), text=True, env=environment, stderr=subprocess.STDOUT)


def with_petnet(programs, what, model, batch, threads):
    out = output([programs.speed, what, model.path, model.side, batch], threads)
    milliseconds, probability = map(float, out.split()[-2:])
    return milliseconds, probability


def with_onnxruntime(model, batch, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.onnx, options, providers=["CPUExecutionProvider"])
    inputs = {"images": model.images(batch)}
    seconds = median_seconds(lambda: session.run(["probabilities"], inputs))
    return seconds * 1e3 / batch, float(session.run(["probabilities"], inputs)[0][0, 0])


def with_tract(model, batch, threads):
    if threads > 1:
        return math.nan, None  # its Python bindings have one thread
    import tract

    network = tract.onnx().load(model.onnx)
    network.set_input_fact(0, f"{batch},3,{model.side},{model.side},f32")
    runnable = network.into_model().into_runnable()
    images = model.images(batch)
    seconds = median_seconds(lambda: runnable.run([images]))
    return seconds * 1e3 / batch, float(runnable.run([images])[1].to_numpy()[0, 0])


def with_rten(programs, model, batch, threads):
    """The timing of its own tool, on random images."""
    sizes = ["--size", f"n={batch}", "--num-threads", threads]
    out = output([programs.rten, "--prepack", "--n-iters", 18, *sizes, model.onnx], threads)
    times = [float(value) for value in re.findall(r"#\d+ - .* in ([\d.]+)ms", out)]
    return statistics.median(times[3:]) / batch, None


def sides(programs, model, batch, threads):
    """Who is measured: each gives milliseconds per image, and the probability of the first class of the first image.

    A side that must not be compared with the others gives None for the probability.
    """
    return {
        "petnet": lambda: with_petnet(programs, "forward", model, batch, threads),
        # Answers in bytes are near the others' and not equal to them.
        "petnet int8": lambda: (with_petnet(programs, "int8", model, batch, threads)[0], None),
        "ONNX Runtime": lambda: with_onnxruntime(model, batch, threads),
        "rten": optional("rten", lambda: with_rten(programs, model, batch, threads)),
        "tract": optional("tract", lambda: with_tract(model, batch, threads)),
        "burn-flex": optional("burn-flex", lambda: with_petnet(programs, "flex", model, batch, threads)),
    }


def optional(name, side):
    """A peer that is absent or cannot run a model has no figure."""

    def measured():
        if name not in PEERS:
            return math.nan, None
        try:
            return side()
        except Exception as error:
            lines = (getattr(error, "output", None) or str(error)).strip().splitlines()
            told(f"{name} is left out: {type(error).__name__}, {lines[-1] if lines else ''}")
            return math.nan, None

    return measured


@functools.cache
def told(message):
    """Prints a message once."""
    print(message, file=sys.stderr, flush=True)


def measure(measured, label):
    """Medians of the rounds, in milliseconds per image; all probabilities must agree."""
    times, probabilities = {name: [] for name in measured}, {}
    failed = set()
    for _ in range(ROUNDS):
        for name, side in measured.items():
            if name in failed:
                continue
            milliseconds, probabilities[name] = side()
            times[name].append(milliseconds)
            if math.isnan(milliseconds):
                failed.add(name)
    given = [probability for probability in probabilities.values() if probability is not None]
    if max(given) - min(given) > AGREEMENT:
        sys.exit(f"{label}: the probabilities do not agree: {probabilities}")
    return {name: math.nan if name in failed else statistics.median(values) for name, values in times.items()}


def cell(value, decimals, width):
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.{decimals}f}"


def models(programs, folder):
    yield Model(BUNDLED, programs, folder)
    for name, side in RANDOM:
        path = Path(folder) / f"{name}-{side}.safetensors"
        subprocess.check_call([programs.speed, "save", name, str(side), str(path)])
        yield Model(path, programs, folder)


def ratios(results):
    """How long petnet's modes take in comparison with ONNX Runtime: below 1, petnet is faster."""
    cases = [(threads, batch) for threads in THREADS for batch in BATCHES]
    print("\npetnet / ONNX Runtime")
    print(f"{'':44}" + "".join(f"{f'threads {threads}, batch {batch}':>22}" for threads, batch in cases))
    for model, times in results.items():
        for name in [name for name in times[cases[0]] if name.startswith("petnet")]:
            row = "".join(cell(times[case][name] / times[case]["ONNX Runtime"], 2, 22) for case in cases)
            print(f"{f'{model}, {name}':44}{row}")


def main(programs):
    print(f"ONNX Runtime {onnxruntime.__version__}, medians of {ROUNDS} rounds, milliseconds per image")
    results, heading = {}, None
    with tempfile.TemporaryDirectory() as folder:
        for model in models(programs, folder):
            title = f"{model.name} {model.side} px"
            results[title] = {}
            for batch in BATCHES:
                for threads in THREADS:
                    label = f"{title}, batch {batch}, threads {threads}"
                    measured = sides(programs, model, batch, threads)
                    if heading is None:
                        heading = f"{'':44}" + "".join(f"{name:>14}" for name in measured)
                        print(heading)
                    times = results[title][threads, batch] = measure(measured, label)
                    print(f"{label:44}" + "".join(cell(value, 3, 14) for value in times.values()), flush=True)
    ratios(results)


if __name__ == "__main__":
    main(Programs(*sys.argv[1:4]))
