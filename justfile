# The commands that people need. `just` lists them; install it with `cargo install just` or `pip install rust-just`.
# Each recipe is one or two plain commands, so that nothing depends on `just`.

[private]
default:
    @just --list

# format, lints and documentation: the fast part of CI
check:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet

# all tests (no network, no GPU); arguments select some: just test hub
test *arguments:
    cargo test --release {{arguments}}

# the library without any feature
test-library:
    cargo test --release --no-default-features --lib --test library

# the models against the reference implementation, stage by stage, with the largest differences
parity:
    cargo test --release --test reference -- --nocapture

# the same at full size with random weights: half an hour, 7.5 GB of disk, and Python packages
full-size *arguments:
    python3 -m pip install --quiet -r tests/reference/requirements-full-size.txt
    python3 tests/reference/full_size.py {{arguments}}

# the time of each stage against ONNX Runtime, torch and candle
bench *arguments:
    python3 benches/compare/compare.py {{arguments}}

# the time of each operation against its plain implementation
bench-ops *arguments:
    cargo bench --bench ops {{arguments}}

# ten minutes of every fuzz target; arguments: seconds per target, then targets
fuzz *arguments:
    fuzz/run {{arguments}}

# spelling
lint-extra:
    .ci/lint-extra

# licences, sources and banned crates of the dependencies, and dependencies that nothing uses
supply *arguments:
    .ci/check-supply {{arguments}}

# the library's documentation, in a browser
docs:
    cargo doc --no-deps --open

# the book, in target/book
book:
    python3 -m pip install --quiet -r tests/book/requirements.txt
    mdbook build docs

# every command and config of the book, and its links
book-check *arguments:
    target/label-studio/bin/python tests/book/check.py --label-studio {{arguments}}

# the pictures of the book, from the real Label Studio and the playground
screenshots *arguments:
    target/label-studio/bin/python tests/book/screenshots.py {{arguments}}

# the image for CPUs
docker:
    docker build --tag groundling .

# `docker compose up` with Label Studio, tested in a browser (needs a Docker engine and the environment of the Label Studio check)
docker-check *arguments:
    target/label-studio/bin/python tests/docker/check.py {{arguments}}

# tarball and Debian package for this machine
package:
    .ci/package

# the Kubernetes manifests against the schemas of several versions
kubernetes *arguments:
    deploy/kubernetes/validate {{arguments}}

# everything that every change must pass (on Debian as root: it installs what is missing)
ci:
    .ci/run
