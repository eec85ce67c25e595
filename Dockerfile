# A small image with one binary in it. Not built in CI yet: see "State" in README.md.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY models models
COPY examples examples
# Cargo.toml names it
COPY benches/ops.rs benches/ops.rs
# the scenes of `groundling selftest`
COPY tests/reference/demo tests/reference/demo
RUN cargo build --locked --profile dist --bin groundling

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1001 groundling \
 && install --directory --owner groundling --group groundling /models
COPY --from=build /build/target/dist/groundling /usr/local/bin/groundling
USER groundling
# inside a container the server must be reachable from other containers
ENV BIND_ADDRESS=0.0.0.0 PORT=9090 MODEL_DIR=/models HF_HOME=/models/huggingface
VOLUME /models
EXPOSE 9090
# the first start fetches the models
HEALTHCHECK --interval=10s --timeout=3s --start-period=30m CMD curl --fail --silent "http://127.0.0.1:${PORT}/ready"
ENTRYPOINT ["groundling"]
CMD ["serve"]
