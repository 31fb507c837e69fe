//! The table of tasks. A test compares it with the files of scripts/.

/// A command of this repository under a name.
pub(crate) struct Task {
    pub(crate) name: &'static str,
    /// A program and its arguments, between spaces; a path is relative to the root of the repository.
    pub(crate) command: &'static str,
    pub(crate) purpose: &'static str,
    /// Requirements besides a Rust toolchain, bash and git.
    pub(crate) needs: &'static str,
    /// Approximate duration on two cores with dependencies compiled; 0 for less than a minute.
    pub(crate) minutes: u32,
}

const fn task(
    name: &'static str,
    command: &'static str,
    purpose: &'static str,
    needs: &'static str,
    minutes: u32,
) -> Task {
    Task { name, command, purpose, needs, minutes }
}

const ARCHIVE: &str = "PETNET_ARCHIVE";
const PEERS: &str = "python3 (PETNET_PEERS)";
const BROWSER: &str = "chromium, npm";

/// All tasks by group.
#[rustfmt::skip]
pub(crate) const GROUPS: &[(&str, &[Task])] = &[
    ("Every day", &[
        task("gate", ".ci/run", "everything that a change has to pass; CI runs the same", "python3", 10),
        task("test", "cargo test --release", "all tests", "", 5),
        task("language", "scripts/language.sh", "banned phrases and comment fragments in tracked files", "", 0),
        task("typos", "scripts/typos.sh", "spelling of tracked files", "python3, or typos", 0),
        task("circles", "scripts/circles.py", "circles of imports between modules; --draw writes the graph", "python3", 0),
        task("book", "scripts/book.sh", "checks the documentation's links and builds target/book; --check leaves out the build", "python3, mdbook", 0),
        task("book-links", "scripts/book_links.py", "the links, paths and names in the documentation", "python3", 0),
        task("readme", "scripts/readme-commands.py", "runs the commands of README.md on a fresh clone", "python3", 10),
        task("workflows", "scripts/workflows-check.sh", "workflows, Dockerfile, compose file and scripts under linters", "python3, npm", 1),
        task("deny", "cargo deny --locked check", "licences, advisories and sources of dependencies", "cargo-deny", 0),
        task("coverage", "cargo llvm-cov --locked --release", "lines that the tests run", "cargo-llvm-cov", 20),
    ]),
    ("The library", &[
        task("public-api", "scripts/public-api.sh", "writes docs/public-api.txt; --check compares it", "a nightly toolchain", 5),
        task("features", "scripts/features.sh", "the tests with default features, and each feature alone", "", 30),
        task("crate", "scripts/crate-test.sh", "the packaged crates, used from outside of the workspace", "", 5),
        task("semver", "scripts/semver.sh", "the public API against that of the last release", "", 10),
        task("formats", "scripts/formats-test.sh", "PyTorch checkpoints and ONNX files of every network against PyTorch and ONNX Runtime", PEERS, 10),
        task("backends", "scripts/backends.sh", "ndarray and wgpu (software Vulkan): outputs, gradients, training", "python3", 30),
        task("fuzz", "scripts/fuzz.sh", "fuzzing of every parser of untrusted input", "a nightly toolchain, python3", 10),
        task("valgrind", "scripts/valgrind.sh", "the engine's layers over random shapes: no access outside of a buffer", "valgrind", 10),
        task("web", "scripts/web-test.sh", "examples/web, built and driven offline in a browser", BROWSER, 5),
    ]),
    ("The service", &[
        task("serving", "scripts/serving-test.sh", "several models, shadow, keys, repeated images and images by URL", "curl, python3", 1),
        task("page", "scripts/page-test.sh", "the page and /docs in a browser, with screenshots", BROWSER, 2),
        task("schemathesis", "scripts/schemathesis.sh", "the HTTP API against its own OpenAPI description", "python3", 5),
        task("python-client", "scripts/python-client-test.sh", "a client generated from /openapi.json", "python3", 1),
        task("triton", "scripts/triton-test.sh", "the Open Inference Protocol with tritonclient, over HTTP and gRPC", "python3", 2),
        task("attack", "scripts/attack.sh", "denial-of-service attacks within memory limits", "python3, root for control groups", 5),
        task("soak", "scripts/soak.sh", "valid, invalid and slow clients, a kill -9 and reloads for half an hour", "python3", 30),
    ]),
    ("The trainer", &[
        task("layouts", "scripts/layouts-test.sh", "every layout of image folders and label tables", "PETNET_ARCHIVE, python3", 5),
        task("multi-label", "scripts/multi-label-test.sh", "multi-label data from prepare to the service", "PETNET_ARCHIVE, PETNET_CLOTHING, python3", 10),
        task("batch", "scripts/batch-test.sh", "20,000 images in a local S3 in four shards, one of them killed", "PETNET_ARCHIVE, python3", 15),
        task("review", "scripts/review-test.sh", "planted label errors that the review finds, and its page", "data/processed, chromium, npm, python3", 6),
        task("tracking", "scripts/tracking-test.sh", "MLflow, its registry, DVC and a local S3, with screenshots", "PETNET_ARCHIVE, python3, chromium", 10),
        task("monitoring", "scripts/monitoring-test.sh", "service and training under Prometheus and Alertmanager", "PETNET_ARCHIVE, root on Debian", 5),
    ]),
    ("Measurements", &[
        task("bench", "cargo bench -p petnet-benches", "criterion benchmarks", "", 15),
        task("bench-once", "cargo bench --locked -p petnet-benches -- --test", "each benchmark once, to see that it runs", "", 10),
        task("bench-peers", "scripts/bench-peers.sh", "forward passes and training steps compared with PyTorch", PEERS, 10),
        task("bench-inference", "scripts/bench-inference.sh", "the engine compared with ONNX Runtime, rten, tract and burn-flex", PEERS, 10),
        task("rivals", "scripts/rivals.sh", "the service compared with FastAPI, LitServe, BentoML and axum with ONNX Runtime", PEERS, 25),
        task("agreement", "cargo run --release --features train --example agreement --", "the engine compared with burn's path: agreement data/processed test", "data/processed", 2),
        task("similar", "cargo run --release --example similar --", "exact search: similar 1280 100000 1000000", "", 2),
        task("gpu", "scripts/gpu-test.sh", "training on a GPU: images/s, compile time of kernels, memory", "a GPU, python3", 60),
    ]),
    ("Delivery", &[
        task("ship", "scripts/ship-test.sh", "images, compose, manifests, workflows, the edit of CD: all of the below", "root on Debian 12", 30),
        task("container", "scripts/container-test.sh", "the images and the compose file, run: image, train, run, compose, all or clean", "root on Debian 12", 20),
        task("k8s", "scripts/k8s-check.sh", "Kubernetes manifests against schemas and the service's settings", "kubectl, python3 (CRD_SCHEMAS)", 1),
        task("cd", "scripts/cd-test.sh", "the edit that a deployment makes, on a copy", "kubectl, podman", 0),
        task("release-notes", "scripts/release-notes.sh", "prints the changelog of a version and compares it with Cargo.toml", "", 0),
        task("set-image", "scripts/set-image.sh", "writes an image's digest into the cloud overlay", "", 0),
        task("dashboards", "scripts/dashboards_check.py", "Grafana's dashboards: lint, query or draw", "python3", 0),
        task("monitoring-lint", "scripts/monitoring-lint.sh", "Prometheus and Alertmanager configuration, rules and dashboards", "promtool, amtool, python3", 0),
    ]),
    ("Generated files", &[
        task("bundled-model", "scripts/bundled-model.sh", "trains the bundled model from ImageNet weights with three seeds", ARCHIVE, 100),
        task("golden", "scripts/golden.sh", "writes the fixtures of the golden tests", PEERS, 1),
        task("grpc-code", "scripts/grpc-code.sh", "generates the gRPC code; --check compares it", "", 1),
        task("prometheusrule", "scripts/prometheusrule.py", "writes k8s/base/prometheusrule.yaml; --check compares it", "python3", 0),
        task("vendor-docs", "scripts/vendor-docs.sh", "downloads the viewer of /docs in its pinned version", "npm, openssl", 0),
        task("peers-venv", "scripts/peers-venv.sh", "makes the Python environment of PyTorch, ONNX Runtime and others", "python3", 2),
        task("archive", "scripts/archive.sh", "prints the path of the archive that other tasks use", ARCHIVE, 0),
    ]),
];

/// All tasks in the order of the list.
pub(crate) fn tasks() -> impl Iterator<Item = &'static Task> {
    GROUPS.iter().flat_map(|(_, tasks)| tasks.iter())
}
