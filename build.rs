//! Sets `cfg(demo_models)` if the demo models are beside the sources, so that they are compiled in. The package of the
//! crate registry does not contain them.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(demo_models)");
    println!("cargo::rerun-if-changed=models/demo");
    if std::path::Path::new("models/demo/segmenter/model.safetensors").is_file() {
        println!("cargo::rustc-cfg=demo_models");
    }
}
