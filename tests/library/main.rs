//! The library as another program uses it, without the server, the hub and the command line:
//! `cargo test --no-default-features --test library`.
