"""Reads the logs of scripts/gpu-test.sh, and trains the same networks in PyTorch where it is installed."""
import collections
import re
import sys
import time
from pathlib import Path


def speed(title, log):
    """Median images/s that a training logged, and the time until its kernels were ready."""
    text = open(log).read()
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rates = sorted(float(rate) for rate in re.findall(r"images_per_second=([0-9.e+]+)", text) if float(rate) > 0)
    ready = re.search(r"GPU kernels are ready seconds=([0-9.]+)", text)
    rate = f"{rates[len(rates) // 2]:.0f} images/s" if rates else "no rate"
    print(f"{title}: {rate}, kernels ready after {float(ready[1]):.1f} s" if ready else f"{title}: {rate}")


def launches(name, log, file):
    """Kernels launched for each step of a training's epoch, by name."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", open(log).read())
    steps = max([int(step) for step in re.findall(r" step=(\d+)", text)] or [1])
    kernels = collections.Counter()
    for line in open(file, errors="replace"):
        found = re.match(r"Executing (\w+)( \| \w+Op)?", line)
        if found:
            kernels[re.sub(r"_[0-9a-f]{6,}$", "", found[1]) + (found[2] or "")] += 1
    total = sum(kernels.values())
    # The warm-up takes a step of the first batch and one of the last.
    taken = steps + 2
    print(f"{name}: {total} launches in {taken} steps, two of them the warm-up's, and in validation, {total / taken:.0f} a step")
    for kernel, count in kernels.most_common(15):
        print(f"  {count / taken:8.1f}  {kernel}")


def times(name, log, file):
    """Time of each kind of kernel in a training, from cubecl's last table."""
    tables = open(file, errors="replace").read().split("| Name ")
    rows = re.findall(r"^\| (\S.*?) +\| ([0-9.]+)(ns|µs|ms|s) +\| (\d+) +\|", tables[-1], re.MULTILINE)
    seconds = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
    kernels = collections.defaultdict(lambda: [0.0, 0])
    for kernel, value, unit, count in rows:
        if kernel != "Total":
            kind = kernels[re.sub(r"_[0-9a-f]{6,}", "", kernel)]
            kind[0] += float(value) * seconds[unit]
            kind[1] += int(count)
    total = sum(time for time, _ in kernels.values())
    print(f"{name}: {total * 1000:.1f} ms in kernels, {sum(count for _, count in kernels.values())} launches")
    for kernel, (time, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:25]:
        print(f"  {time * 1000:9.2f} ms {100 * time / total:5.1f} % {count:6}  {kernel}")


def pytorch(name, size, batch, steps, precision):
    """Images/s of PyTorch on the same card, eager, on synthetic data; `f16` is its automatic mixed precision."""
    try:
        import torch
        from torch import nn
    except ImportError:
        print(f"{name}: PyTorch is not installed")
        return
    if not torch.cuda.is_available():
        print(f"{name}: PyTorch finds no GPU")
        return
    size, batch, steps = int(size), int(batch), int(steps)

    sys.path.insert(0, str(Path(__file__).parent.parent / "benches/peers"))
    import torch_twin

    try:
        model = torch_twin.NETWORKS[name](size)
    except ImportError as missing:
        print(f"{name}: {missing}")
        return
    model = model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randint(0, 256, (batch, 3, size, size), device="cuda").float()
    targets = torch.randint(0, 2, (batch,), device="cuda")
    loss = nn.CrossEntropyLoss()

    half = precision == "f16"
    scaler = torch.amp.GradScaler("cuda", enabled=half)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16, enabled=half):
            error = loss(model(images), targets)
        scaler.scale(error).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(20):
        step()
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    print(f"{name}: PyTorch {torch.__version__} {precision} {batch * steps / (time.monotonic() - began):.0f} images/s")


if __name__ == "__main__":
    {"speed": speed, "launches": launches, "times": times, "pytorch": pytorch}[sys.argv[1]](*sys.argv[2:])
