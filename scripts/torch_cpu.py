"""Makes the CUDA build of PyTorch importable on a machine without CUDA; run by scripts/peers-venv.sh.

The wheel for Linux links to cuBLAS, cuDNN and others. This writes shared libraries of their names whose functions return an
error, so that the dynamic linker is content. Operators of the CPU (oneDNN, MKL) are the wheel's own. Needs cc and readelf.
"""

import re
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
LIB = SITE / "torch/lib"
# Small libraries that are installed, whose versioned symbols are needed as they are.
INSTALLED = ("libcudart", "libcupti", "libcufile", "libnvshmem_host")
# The others, and the prefix of their functions.
ABSENT = {
    "libcublas.so.13": r"cublas(?!Lt)",
    "libcublasLt.so.13": r"cublasLt",
    "libcudnn.so.9": r"cudnn",
    "libcufft.so.12": r"cufft",
    "libcusolver.so.12": r"cusolver",
    "libcusparse.so.12": r"cusparse(?!Lt)",
    "libcusparseLt.so.0": r"cusparseLt",
    "libnccl.so.2": r"p?nccl",
    "libnvrtc.so.13": r"nvrtc",
}


def undefined_symbols():
    """{version of the symbol, empty for none: names} of all that PyTorch's libraries import."""
    found = defaultdict(set)
    for path in (path for pattern in ("libtorch*.so", "libc10*.so", "libcaffe2*.so") for path in LIB.glob(pattern)):
        table = subprocess.run(["readelf", "-W", "--dyn-syms", path], capture_output=True, text=True, check=True)
        for line in table.stdout.splitlines():
            columns = line.split()
            if len(columns) >= 8 and columns[6] == "UND":
                name, _, version = columns[7].partition("@")
                found[version.strip("@")].add(name)
    return found


def stand_in(soname, prefix, undefined, work):
    """Compiles LIB/soname, with every imported function of that prefix under its symbol version."""
    versions = {
        version: sorted(name for name in names if re.match(prefix + "[A-Z_]", name))
        for version, names in undefined.items()
        if not version or version.startswith(soname.split(".so")[0])
    }
    names = sorted({name for names in versions.values() for name in names}) or ["petnet_stand_in"]
    source, script = work / "stand_in.c", work / "stand_in.map"
    source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in names))
    script.write_text(
        "".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items() if version and names)
    )
    options = [f"-Wl,--version-script={script}"] if script.stat().st_size else []
    subprocess.run(["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", *options, "-o", LIB / soname, source], check=True)


def main():
    for name in INSTALLED:
        for library in (SITE / "nvidia").rglob(f"{name}.so*"):
            link = LIB / library.name
            link.unlink(missing_ok=True)
            link.symlink_to(library)
    undefined = undefined_symbols()
    with tempfile.TemporaryDirectory() as work:
        for soname, prefix in ABSENT.items():
            stand_in(soname, prefix, undefined, Path(work))


if __name__ == "__main__":
    main()
