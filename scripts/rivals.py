#!/usr/bin/env python3
"""petnet-serve compared with services of the same purpose: one image, one machine, one run. Run by rivals.sh.

All services stay up and take turns: in every round, at every number of clients, each is loaded while the others are
idle. Figures are medians of the rounds. Services of the same weights must agree with petnet about the image.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RIVALS, PEERS = ROOT / "benches/rivals", ROOT / "benches/peers"
sys.path.insert(0, str(RIVALS))
import prepare  # noqa: E402
from service import Absent, Service  # noqa: E402

CLIENTS = (1, 8, 32)
CORES = os.cpu_count()
# petnet-serve's default --max-batch.
BATCH = 16
AGREEMENT = 0.05
FASTAPI = ("fastapi", "python-multipart", "uvicorn[standard]", "numpy")
MEGABYTE = 1e6


@dataclass
class Rival:
    """A service, how it is started, and what was measured of it."""

    name: str
    command: callable
    # petnet, Python or Rust.
    kind: str
    # float or int8 for services of the bundled model's weights; others are not compared with its answer.
    precision: str
    size: callable
    environment: dict = None
    folder: Path = None
    service: Service = None
    starts: list = field(default_factory=list)
    cells: dict = field(default_factory=lambda: {clients: [] for clients in CLIENTS})
    overheads: list = field(default_factory=list)
    memory: float = 0.0

    def start(self, photo, times):
        for _ in range(times):
            if self.service:
                self.service.stop()
            self.service = Service(self.command, photo, self.environment, self.folder)
            self.starts.append(self.service.start_ms)

    def median(self, clients, figure):
        """The median of the rounds; not a number where nothing was served."""
        values = [row[figure] for row in self.cells[clients] if row[figure] is not None]
        return statistics.median(values) if values else math.nan

    def rate(self, clients):
        return self.median(clients, "per_second")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--built", type=Path, required=True, help="folder of petnet's release programs")
    parser.add_argument("--axum-ort", type=Path, required=True, help="program of benches/rivals/axum-ort")
    parser.add_argument("--seconds", default=8.0, type=float, help="seconds a cell [8]")
    parser.add_argument("--rounds", default=3, type=int, help="rounds [3]")
    parser.add_argument("--starts", default=3, type=int, help="starts of each service [3]")
    archive = os.environ.get("PETNET_ARCHIVE", ROOT / "data/raw/cats-vs-dogs.zip")
    parser.add_argument("--photos", default=archive, type=Path, help="archive that calibrates the int8 rivals")
    words = "JPEG to send [one of about 500 x 375 in --photos, else scikit-image's cat]"
    parser.add_argument("--photo", help=words)
    parser.add_argument("--only", default="", help="names or parts of names, between commas")
    parser.add_argument("--out", type=Path, help="file for the Markdown table")
    return parser.parse_args()


def megabytes(*files):
    return sum(Path(file).stat().st_size for file in files) / MEGABYTE


def packages(python, *roots):
    """Python packages with their dependencies in MB."""
    return float(subprocess.check_output([python, RIVALS / "sizes.py", *roots], text=True))


def petnets(options, work):
    """petnet-serve with the bundled model, with its weights in float, and with PyTorch's network."""
    prepare.petnet_float(work / "float.safetensors")
    simple = prepare.simple_cnn(options.built / "petnet-train", work)
    program = options.built / "petnet-serve"

    def petnet(name, model, precision):
        options = ["--metrics-addr", "off", "--log", "warn", "--model", model, "--feedback", tempfile.mkdtemp(dir=work)]
        command = lambda port: [program, "--host", "127.0.0.1", "--port", port, *options]
        extra = [] if model == "pretrained" else [model]
        return Rival(name, command, "petnet", precision, lambda: megabytes(program, *extra))

    yield petnet("petnet-serve", "pretrained", "int8")
    yield petnet("petnet-serve, float", work / "float.safetensors", "float")
    yield petnet("petnet-serve, SimpleCNN 224", simple, "other weights")


def pythons(models):
    """The services in Python. Pillow-SIMD takes Pillow's place where it is built."""
    python, simd = sys.executable, Path(sys.prefix) / "pillow-simd"
    pillow = packages(python, "pillow") if not simd.is_dir() else 0
    pillow += sum(file.stat().st_size for file in simd.rglob("*") if file.is_file()) / MEGABYTE
    path = os.pathsep.join([*([str(simd)] if simd.is_dir() else []), str(RIVALS)])
    bento = Path(f"{sys.prefix}-bentoml") / "bin"

    def rival(name, precision, command, threads, size, **environment):
        environment |= {"PYTHONPATH": path, "MODEL": str(models[precision]), "THREADS": str(threads)}
        size_with_model = lambda: size() + pillow + megabytes(models[precision])
        return Rival(name, command, "Python", precision, size_with_model, environment, RIVALS)

    def fastapi(workers, precision):
        app = [python, "-m", "uvicorn", "fastapi_ort:app", "--log-level", "warning", "--no-access-log"]
        command = lambda port: [*app, "--workers", workers, "--port", port]
        name = f"FastAPI + ONNX Runtime, {workers} worker{'s' if workers > 1 else ''}"
        # A single process uses all cores for one inference, several have a core each.
        threads = max(CORES // workers, 1)
        size = lambda: packages(python, *FASTAPI, "onnxruntime")
        return rival(name, precision, command, threads, size, HANDLERS=str(threads))

    for precision in models:
        yield fastapi(1, precision)
        yield fastapi(2, precision)
    best = "int8" if "int8" in models else "float"
    lit = lambda port: [python, "litserve_ort.py", port, CORES]
    yield rival("LitServe + ONNX Runtime", best, lit, 1, lambda: packages(python, "litserve", "onnxruntime"))
    serve = lambda port: [bento / "bentoml", "serve", "bentoml_ort:Classifier", "--host", "127.0.0.1", "--port", port]
    settings = {"WORKERS": str(CORES), "BENTOML_DO_NOT_TRACK": "True"}
    size = lambda: packages(bento / "python", "bentoml", "onnxruntime")
    yield rival("BentoML + ONNX Runtime", best, serve, 1, size, **settings)
    twin = lambda port: [python, "-m", "uvicorn", "fastapi_twin:app", "--log-level", "warning", "--port", port]
    size = lambda: packages(python, *FASTAPI, "torch", "pillow")
    yield Rival("FastAPI + PyTorch, SimpleCNN 224", twin, "Python", "other weights", size, None, PEERS)


def rusts(program, models):
    """The hand-written Rust service: sessions of one thread each, or one session of all cores."""
    library = os.environ["ORT_DYLIB_PATH"]
    for precision, model in models.items():
        for sessions, threads in ((CORES, 1), (1, CORES)):
            command = lambda port, rest=(sessions, threads), model=model: [program, model, port, *rest]
            name = f"axum + ort, {sessions} x {threads} thread{'s' if threads > 1 else ''}"
            yield Rival(name, command, "Rust", precision, lambda model=model: megabytes(program, library, model))


def stages(service):
    """Sums and counts of petnet's clocks for decoding and for the network."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics").read().decode()
    series = [line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#"]

    def total(name):
        return sum(float(value) for key, value in series if key.partition("{")[0] == name)

    names = ("preprocessing_duration_seconds", "inference_duration_seconds")
    return [(total(f"{name}_sum"), total(f"{name}_count")) for name in names]


def start_all(rivals, photo, times):
    """Starts the services and compares their answers with petnet's, the first one's; gives those that run."""
    started = []
    for rival in rivals:
        try:
            rival.start(photo, times)
        except (Absent, OSError) as error:
            print(f"{rival.name}, {rival.precision}, is left out: {error}", file=sys.stderr)
            continue
        started.append(rival)
        answer, wanted = rival.service.answer, started[0].service.answer
        apart = max(abs(answer["probabilities"][name] - value) for name, value in wanted["probabilities"].items())
        said = f"{answer['predicted_class']}, {answer['confidence']:.4f}"
        print(f"{rival.name}, {rival.precision}: {said}", file=sys.stderr)
        same = answer["predicted_class"] == wanted["predicted_class"] and apart <= AGREEMENT
        if rival.precision != "other weights" and not same:
            sys.exit(f"{rival.name} does not agree with petnet: {answer['probabilities']}, {wanted['probabilities']}")
    return started


def measure(rivals, load, seconds, rounds):
    """Fills `cells`: in each round and at each number of clients, another service is first."""
    for rival in rivals:
        load(rival.service, CLIENTS[-1], min(seconds, 2))
    before = sum(rival.service.cpu_seconds() for rival in rivals)
    time.sleep(2)
    idle = (sum(rival.service.cpu_seconds() for rival in rivals) - before) / 2
    for number in range(rounds):
        for place, clients in enumerate(CLIENTS):
            first = (number * len(CLIENTS) + place) % len(rivals)
            for rival in rivals[first:] + rivals[:first]:
                alone = clients == 1 and rival.kind == "petnet"
                clocks = stages(rival.service) if alone else None
                row = load(rival.service, clients, seconds)
                rival.cells[clients].append(row)
                if alone:
                    pairs = zip(clocks, stages(rival.service))
                    work = [(new[0] - old[0]) / (new[1] - old[1]) * 1e3 for old, new in pairs]
                    rival.overheads.append((row["p50_ms"] - sum(work), *work, row["p50_ms"]))
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    for rival in rivals:
        rival.memory = rival.service.memory()
    return idle


def overload(rival, load, seconds):
    """Facts about more clients than the service can serve."""
    top = max(rival.rate(clients) for clients in CLIENTS)
    # Clients that ask again at once, at 2, 4 and 16 times those that keep it busy.
    crowds = {count: load(rival.service, count, seconds) for count in (60, 120, 480)}
    served = ", ".join(f"{row['per_second'] / top:.2f} at {count}" for count, row in crowds.items())
    yield f"{rival.name}: goodput of clients that never wait, over the best: {served}"
    row = load(rival.service, 256, seconds, 2 * top)
    row = {name: math.nan if value is None else value for name, value in row.items()}
    batches = row["p99_ms"] / (BATCH / top * 1e3)
    yield (
        f"{rival.name}: at {2 * top:.0f} req/s (twice what it serves) {row['per_second']:.0f} served a second, "
        f"p99 {row['p99_ms']} ms = {batches:.2f} batches of {BATCH}; {row['refused']} refused, p50 "
        f"{row['refused_p50_ms']} ms, p99 {row['refused_p99_ms']} ms; {row['failed']} failed; "
        f"peak memory then {rival.service.memory():.0f} MB"
    )


def table(rivals):
    """Requests a second with the median and the 99th percentile, then the costs of each service."""
    heads = ["service", "weights", *(f"{n} client{'s' if n > 1 else ''}" for n in CLIENTS)]
    heads += ["CPU ms a request", "peak memory", "first answer", "size"]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for rival in rivals:
        times = {n: f"{rival.median(n, 'p50_ms'):.1f}, {rival.median(n, 'p99_ms'):.1f}" for n in CLIENTS}
        cells = [f"{rival.rate(n):.0f} ({times[n]})" for n in CLIENTS]
        costs = [f"{rival.median(8, 'cpu_ms'):.2f}", f"{rival.memory:.0f} MB"]
        costs += [f"{statistics.median(rival.starts):.0f} ms", f"{rival.size():.0f} MB"]
        yield "| " + " | ".join([rival.name, rival.precision, *cells, *costs]) + " |"


def ratios(rivals):
    """petnet's requests a second over the best rival's, at each number of clients."""
    named = {(rival.name, rival.precision): rival for rival in rivals}
    bundled, single = named.get(("petnet-serve", "int8")), named.get(("petnet-serve, float", "float"))
    simple = named.get(("petnet-serve, SimpleCNN 224", "other weights"))

    def ratio(title, ours, target, wanted):
        theirs = [rival for rival in rivals if wanted(rival)]
        if not ours or not theirs:
            return
        bests = {n: max(theirs, key=lambda rival: rival.rate(n)) for n in CLIENTS}
        values = [ours.rate(n) / (best.rate(n) or math.nan) for n, best in bests.items()]
        cells = [f"{value:.2f} ({bests[n].name})" for n, value in zip(CLIENTS, values)]
        verdict = "" if target is None else f"{target}: {'met' if min(values) >= target else 'missed'}"
        yield "| " + " | ".join([title, *cells, verdict]) + " |"

    def of(kind, *precisions):
        return lambda rival: rival.kind == kind and rival.precision in precisions

    yield "| requests a second | 1 client | 8 clients | 32 clients | target |"
    yield "|---|---|---|---|---|"
    for precision in ("float", "int8"):
        yield from ratio(f"petnet / best Python, {precision}", bundled, 3, of("Python", precision))
    for precision in ("float", "int8"):
        yield from ratio(f"petnet / axum + ort, {precision}", bundled, 1.2, of("Rust", precision))
    yield from ratio("petnet float / best Python, float", single, None, of("Python", "float"))
    yield from ratio("petnet float / axum + ort, float", single, None, of("Rust", "float"))
    yield from ratio("SimpleCNN 224: petnet / PyTorch", simple, None, of("Python", "other weights"))


def facts(rivals, idle):
    for rival in rivals:
        if rival.overheads:
            over, decoding, network, answered = (statistics.median(values) for values in zip(*rival.overheads))
            target = f" (target 0.2: {'met' if over <= 0.2 else 'missed'})" if rival.name == "petnet-serve" else ""
            yield (
                f"{rival.name}: alone, decoding {decoding:.2f} ms + network {network:.2f} ms (means), answered in "
                f"{answered:.2f} ms (median): {over:+.2f} ms{target}"
            )
        lost = [row["failed"] + row["refused"] for rows in rival.cells.values() for row in rows]
        if any(lost):
            yield f"{rival.name}, {rival.precision}: {sum(lost)} requests were refused or failed"
    yield f"all services together used {idle * 100:.1f} % of a core while no one was loaded"


def heading(options, photo, words):
    import onnxruntime

    cpu = next((line for line in open("/proc/cpuinfo") if line.startswith("model name")), ": unknown CPU")
    simd = (Path(sys.prefix) / "pillow-simd").is_dir()
    return (
        f"{CORES} cores of {cpu.partition(': ')[2].strip()}, load {os.getloadavg()[0]:.1f} at the start; "
        f"{words} of {photo.stat().st_size} bytes; {options.rounds} rounds of {options.seconds:g} s a cell; ONNX Runtime "
        f"{onnxruntime.__version__}, {'Pillow-SIMD' if simd else 'plain Pillow'}. Cells are requests a second (median ms, "
        "99th percentile ms). petnet computes the bundled model in int8; the exported ONNX file has the same weights in "
        "float, and `int8` rivals have it from ONNX Runtime's static quantization. Sizes have the model and no interpreter."
    )


def choose(options, work):
    """The selected services. petnet is always among them."""
    models = {"float": work / "cats-vs-dogs.onnx"}
    prepare.onnx(options.built / "petnet-train", models["float"])
    if options.photos.exists():
        models["int8"] = work / "int8.onnx"
        prepare.onnx_int8(models["float"], options.photos, models["int8"])
    rivals = [*petnets(options, work), *pythons(models), *rusts(options.axum_ort, models)]
    parts = options.only.split(",")
    return rivals[:1] + [rival for rival in rivals[1:] if any(part in rival.name for part in parts)]


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photo = work / "photo.jpg"
        words = prepare.photo(options.photo or options.photos, photo)
        head = heading(options, photo, words)
        rivals = choose(options, work)
        load = lambda service, clients, seconds, rate=None: service.load(
            options.built / "examples/load", photo, clients, seconds, rate
        )
        try:
            running = start_all(rivals, photo.read_bytes(), options.starts)
            idle = measure(running, load, options.seconds, options.rounds)
            lines = [head, "", *table(running), "", *ratios(running), ""]
            found = list(facts(running, idle))
            for rival in running:
                if rival.kind == "petnet":
                    found += overload(rival, load, options.seconds)
            lines += [f"- {fact}" for fact in found]
        finally:
            for rival in rivals:
                if rival.service:
                    rival.service.stop()
        text = "\n".join(lines) + "\n"
        print(text)
        if options.out:
            options.out.write_text(text)


if __name__ == "__main__":
    main()
