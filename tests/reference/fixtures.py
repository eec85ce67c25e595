"""Records tensors of the reference while it runs, and writes them as safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.hooks import RemovableHandle

HERE = Path(__file__).resolve().parent


class Recorder:
    """Copies inputs and outputs of modules while the model runs."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Copies `tensor` now, before it can be changed in place."""
        if name in self.tensors:
            raise KeyError(f"{name} is recorded twice")
        self.tensors[name] = tensor.detach().clone()

    def on_call(self, module: nn.Module, function) -> RemovableHandle:
        """Calls `function(inputs, keywords, output)` after each run of `module`."""
        return module.register_forward_hook(
            lambda _module, inputs, keywords, output: function(inputs, keywords, output), with_kwargs=True
        )

    def before_call(self, module: nn.Module, function) -> RemovableHandle:
        """Calls `function(inputs, keywords)` before each run of `module`."""
        return module.register_forward_pre_hook(
            lambda _module, inputs, keywords: function(inputs, keywords), with_kwargs=True
        )

    def output(self, module: nn.Module, name: str) -> None:
        """Records the output of `module`, or its first tensor."""

        def keep(_inputs, _keywords, output):
            self.keep(name, output if isinstance(output, torch.Tensor) else output[0])

        self.on_call(module, keep)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], infinite: tuple[str, ...] = (), **notes) -> None:
    """Writes one fixture. NaN is an error, and infinity too except in the tensors named in `infinite`.

    Bool becomes u8, and float64 becomes float32. `notes` are stored in the metadata as JSON under their name. Only one note
    per file is allowed, because the metadata has no fixed order and the bytes must be the same in every run.
    """
    if len(notes) > 1:
        raise ValueError("only one note per file is allowed")
    stored = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool:
            tensor = tensor.to(torch.uint8)
        elif tensor.dtype == torch.float64:
            tensor = tensor.float()
        if tensor.is_floating_point():
            if torch.isnan(tensor).any():
                raise ValueError(f"{path.name}: {name} contains NaN")
            if torch.isinf(tensor).any() and name not in infinite:
                raise ValueError(f"{path.name}: {name} contains infinity")
        stored[name] = tensor.clone().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {name: json.dumps(note, ensure_ascii=False, sort_keys=True) for name, note in notes.items()}
    save_file(stored, path, metadata=metadata or None)
    path.chmod(0o644)
    shown = path.relative_to(HERE) if path.is_relative_to(HERE) else path
    print(f"{shown}: {len(stored)} tensors, {path.stat().st_size / 1024:.0f} KiB")


def write_json(path: Path, value, lines: bool = False) -> None:
    """Writes JSON: indented, or with one line for each item of a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines:
        text = "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def run_exactly() -> None:
    """Uses one thread and no gradients, so that every run on the same machine gives the same bytes."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
