# A small image: the program, the C library's files, CA certificates, and nothing else. There is no shell in it.
#
#     docker build --tag groundling .
#     docker build --tag groundling --build-arg MODELS="grounding-dino-tiny mobile-sam" .    # with weights inside
#
# It builds for the processor of the machine (x86-64 or arm64); CPU kernels are chosen at run time.
FROM rust:1.95-bookworm AS build
WORKDIR /build

# the dependencies, in a layer that changes only with Cargo.lock: all sources of this repository are empty here
COPY Cargo.toml Cargo.lock ./
COPY src/models/ops/kernels/Cargo.toml src/models/ops/kernels/
COPY src/models/ops/gpu/kernels/Cargo.toml src/models/ops/gpu/kernels/
RUN mkdir -p benches tests/integration tests/library tests/reference \
 && echo 'fn main() {}' | tee src/main.rs build.rs src/models/ops/gpu/kernels/build.rs benches/ops.rs \
      tests/integration/main.rs tests/library/main.rs tests/reference/main.rs \
 && touch src/lib.rs src/models/ops/kernels/lib.rs src/models/ops/gpu/kernels/lib.rs \
 && cargo build --locked --profile dist --bin groundling

COPY build.rs ./
COPY src src
COPY models models
COPY examples examples
# the pictures of `groundling selftest` and of `groundling connect --demo`
COPY tests/reference/demo tests/reference/demo
# the files are older than the build of the empty ones
RUN find build.rs src -name '*.rs' -exec touch {} + \
 && cargo build --locked --profile dist --bin groundling

# what the image consists of: the program and the libraries that it names, with their folders
WORKDIR /image
RUN install -D /build/target/dist/groundling usr/local/bin/groundling \
 && ldd usr/local/bin/groundling | grep -o '/[^ ]*' | xargs cp --dereference --parents --target-directory=. \
 && install -D --mode=644 /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ca-certificates.crt \
 && echo 'hosts: files dns' > etc/nsswitch.conf \
 && echo 'groundling:x:1001:0::/models:' > etc/passwd \
 && echo 'root:x:0:' > etc/group
# The folders that groundling writes to. Their group is root, so that any user id of that group can write, as OpenShift
# needs it. Label Studio's data folder is here because a new volume gets the owner of the folder that it covers first.
WORKDIR /folders
RUN install --directory --mode=775 models hub secrets label-studio/data && install --directory --mode=1777 tmp
ARG MODELS=""
RUN if [ -n "$MODELS" ]; then HF_HUB_CACHE=/folders/hub /build/target/dist/groundling download $MODELS; fi

FROM scratch
COPY --from=build /image /
COPY --from=build --chown=1001:0 /folders /
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="groundling" \
      org.opencontainers.image.description="A Label Studio ML backend: words in, boxes and masks out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# numeric, so that an orchestrator can check that the user is not root
USER 1001:0
# other containers must be able to connect
ENV PATH=/usr/local/bin BIND_ADDRESS=0.0.0.0 PORT=9090 MODEL_DIR=/models HF_HOME=/models/huggingface
# The models inside; without any, the variable is empty and counts as unset. They are not in /models, because a volume there
# would hide them.
ARG MODELS=""
ENV HF_HUB_CACHE=${MODELS:+/hub}
# the only folder that the server writes to: models, prompts, the hub's folder and the cache (CACHE_DIR is /models/cache)
VOLUME /models
EXPOSE 9090
# the first start downloads the models
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["/usr/local/bin/groundling", "health"]
ENTRYPOINT ["/usr/local/bin/groundling"]
CMD ["serve"]
