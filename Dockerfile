# A small image with one binary. CI does not build it yet: see "State" in README.md.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY models models
COPY examples examples
# Cargo.toml declares these targets; the build needs the files but does not compile them
COPY benches/ops.rs benches/ops.rs
COPY tests/integration/main.rs tests/integration/main.rs
COPY tests/library/main.rs tests/library/main.rs
COPY tests/reference/main.rs tests/reference/main.rs
# the pictures of `groundling selftest`
COPY tests/reference/demo tests/reference/demo
RUN cargo build --locked --profile dist --bin groundling

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1001 groundling \
 && useradd --create-home --uid 1001 --gid 1001 groundling \
 && install --directory --owner groundling --group groundling /models
COPY --from=build /build/target/dist/groundling /usr/local/bin/groundling
# numeric, so that an orchestrator can check that the user is not root
USER 1001:1001
# other containers must be able to connect
ENV BIND_ADDRESS=0.0.0.0 PORT=9090 MODEL_DIR=/models HF_HOME=/models/huggingface
# the only folder that groundling writes to: models, prompts, the hub's folder and the cache (CACHE_DIR is /models/cache)
VOLUME /models
EXPOSE 9090
# the first start downloads the models
HEALTHCHECK --interval=10s --timeout=3s --start-period=30m CMD curl --fail --silent "http://127.0.0.1:${PORT}/ready"
ENTRYPOINT ["groundling"]
CMD ["serve"]
