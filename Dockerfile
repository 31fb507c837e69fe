# docker build -t petnet-serve:local .                   the service (the last stage)
# docker build -t petnet-train:local --target train .    the trainer

ARG RUST_IMAGE=docker.io/library/rust:1.95-slim-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim

# Manifests and empty sources, from which the dependencies are compiled. This stage changes only with the manifests, so that an
# edit of the sources does not compile dependencies again. (Cargo needs the files of examples and benches only to build them.)
FROM ${RUST_IMAGE} AS manifests
WORKDIR /build
# Removes build paths from the binaries, for reproducible builds.
ENV CARGO_TERM_COLOR=never \
    RUSTFLAGS="--remap-path-prefix=/build=. --remap-path-prefix=/usr/local/cargo=cargo"
COPY Cargo.toml Cargo.lock ./
COPY petnet/Cargo.toml petnet/
COPY petnet-serve/Cargo.toml petnet-serve/
COPY petnet-train/Cargo.toml petnet-train/
COPY benches/Cargo.toml benches/
COPY examples/web/Cargo.toml examples/web/
COPY xtask/Cargo.toml xtask/
RUN mkdir petnet/src petnet-serve/src petnet-train/src examples/web/src xtask/src \
    && touch petnet/src/lib.rs petnet-serve/src/lib.rs benches/lib.rs examples/web/src/lib.rs \
    && echo 'fn main() {}' >petnet-serve/src/main.rs \
    && echo 'fn main() {}' >petnet-train/src/main.rs \
    && echo 'fn main() {}' >xtask/src/main.rs

# The service and the trainer are built separately: in one build, Cargo unifies features, and the service would contain burn.
FROM manifests AS train-build
# Artifacts of the empty crates are removed: Cargo compares times, and the copied sources are older than these artifacts.
RUN --mount=type=cache,id=cargo,target=/usr/local/cargo/registry \
    cargo build --release --locked -p petnet-train --bin petnet-train --features cloud \
    && rm -r petnet/src petnet-train/src \
    && find target/release -name '*petnet*' -prune -exec rm -r {} +
COPY petnet petnet
COPY petnet-train petnet-train
RUN --mount=type=cache,id=cargo,target=/usr/local/cargo/registry \
    cargo build --release --locked -p petnet-train --bin petnet-train --features cloud \
    && cp target/release/petnet-train /petnet-train

FROM ${DEBIAN_IMAGE} AS train
# No versions: the base image fixes the Debian release, and security updates should be installed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 petnet \
    && useradd --key UID_MAX=65532 --uid 65532 --gid 65532 --home-dir /work --create-home --shell /usr/sbin/nologin petnet
COPY configs /configs
COPY --from=train-build /petnet-train /usr/local/bin/petnet-train
USER 65532:65532
# For images, models and runs; paths in /configs are relative to it.
WORKDIR /work
EXPOSE 9464
ENTRYPOINT ["petnet-train"]

FROM manifests AS serve-build
RUN --mount=type=cache,id=cargo,target=/usr/local/cargo/registry \
    cargo build --release --locked -p petnet-serve --bin petnet-serve \
    && rm -r petnet/src petnet-serve/src \
    && find target/release -name '*petnet*' -prune -exec rm -r {} +
COPY petnet petnet
COPY petnet-serve petnet-serve
# Reported by GET /version.
ARG PETNET_COMMIT
# The root file system of the last stage: the binary, its shared libraries and the dynamic loader, no shell. Root certificates
# are compiled in. All files get the same time, so that equal binaries make equal layers.
RUN --mount=type=cache,id=cargo,target=/usr/local/cargo/registry \
    cargo build --release --locked -p petnet-serve --bin petnet-serve \
    && mkdir -p /root-fs/etc /data \
    && cp target/release/petnet-serve /root-fs/ \
    && ldd target/release/petnet-serve >/libraries \
    && grep -o '/[^ ]*' /libraries >/paths \
    && xargs --arg-file=/paths cp --dereference --parents --target-directory=/root-fs \
    && echo 'petnet:x:65532:65532::/data:/nonexistent' >/root-fs/etc/passwd \
    && echo 'petnet:x:65532:' >/root-fs/etc/group \
    && find /root-fs /data -exec touch --date=@0 {} +

FROM scratch AS serve
COPY --from=serve-build /root-fs /
COPY --from=serve-build --chown=65532:65532 /data /data
COPY --from=serve-build --chown=65532:65532 /data /tmp
USER 65532:65532
ENV PETNET_FEEDBACK=/data/feedback \
    PETNET_MODEL_CACHE=/data/models
EXPOSE 8000 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["/petnet-serve", "healthcheck"]
ENTRYPOINT ["/petnet-serve"]
