"""Exports a trained checkpoint to a folder in the published format, in float16.

    python export.py detector detector.pt ../detector
    python export.py segmenter segmenter.pt ../segmenter
"""

import argparse
import json
import os
import shutil
import tempfile

import torch
from safetensors.torch import save_file

NOISE = ("transformers_version", "_name_or_path", "torch_dtype", "disable_custom_kernels")


def differences(config):
    """The configuration as transformers writes it: only fields that differ from the defaults."""
    values = config.to_diff_dict()
    return {name: value for name, value in values.items() if name not in NOISE}


def clean(values):
    """The configuration without the fields that describe only its origin, also in nested configurations."""
    return {
        name: clean(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in NOISE and value != ""
    }


def detector_files(folder):
    import detector

    model = detector.build_model()
    tokenizer = detector.load_tokenizer()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(os.path.join(folder, "tokenizer.json"))
    preprocessor = dict(
        image_processor_type="GroundingDinoImageProcessor",
        format="coco_detection",
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_annotations=True,
        do_pad=True,
        resample=2,
        rescale_factor=1 / 255,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        size=dict(shortest_edge=detector.SHORT_SIDE, longest_edge=detector.SHORT_SIDE * 5 // 3),
    )
    return model, "GroundingDinoForObjectDetection", preprocessor


def segmenter_files(folder):
    import train_segmenter

    model = train_segmenter.build_model()
    side = train_segmenter.SIDE
    preprocessor = dict(
        image_processor_type="SamImageProcessor",
        do_convert_rgb=True,
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        do_pad=True,
        resample=2,
        rescale_factor=1 / 255,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        size=dict(longest_edge=side),
        pad_size=dict(height=side, width=side),
        mask_size=dict(longest_edge=side // 4),
        mask_pad_size=dict(height=side // 4, width=side // 4),
    )
    return model, "SamModel", preprocessor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["detector", "segmenter"])
    parser.add_argument("checkpoint")
    parser.add_argument("output", help="the folder to write")
    args = parser.parse_args()

    output = os.path.abspath(args.output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    folder = tempfile.mkdtemp(dir=os.path.dirname(output))
    make = detector_files if args.kind == "detector" else segmenter_files
    model, architecture, preprocessor = make(folder)
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)["model"]
    model.load_state_dict(state)
    config = clean(differences(model.config))
    config["architectures"] = [architecture]
    tensors = {
        name: (value.half() if value.is_floating_point() else value).clone().contiguous()
        for name, value in model.state_dict().items()
    }
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    for name, values in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(values, file, indent=2, sort_keys=True)
            file.write("\n")
    os.chmod(folder, 0o755)
    for name in os.listdir(folder):
        os.chmod(os.path.join(folder, name), 0o644)
    # Replace the old folder by the new one with renames.
    if os.path.isdir(output):
        retired = folder + ".old"
        os.rename(output, retired)
        os.rename(folder, output)
        shutil.rmtree(retired)
    else:
        os.rename(folder, output)
    size = sum(os.path.getsize(os.path.join(output, name)) for name in os.listdir(output)) / 1e6
    print(f"{args.kind}: {sum(v.numel() for v in tensors.values()) / 1e6:.2f} M numbers, {size:.2f} MB")


if __name__ == "__main__":
    main()
