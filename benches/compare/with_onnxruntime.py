"""Measures one work item in ONNX Runtime, in a process of its own; prints the result as a line of JSON.

    python with_onnxruntime.py WORK --models FOLDER --threads N --runs N
"""

from collections.abc import Callable

import onnxruntime

from child import Child, arguments, measure
from inputs import inputs_of

# the models of a whole request; the last one makes masks of the image's size from boxes
REQUEST = ("grounding-dino-tiny", "mobile-sam", "masks-20")


def session(name: str, child: Child) -> onnxruntime.InferenceSession:
    """Loads one file with ONNX Runtime's default optimisations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = child.threads
    file = str(child.models / f"{name}.onnx")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def work(child: Child) -> Callable:
    """Creates the sessions, and returns the function to time."""
    names = REQUEST if child.work == "request" else (child.work,)
    # the export may have turned inputs into constants
    models = [(session(name, child), inputs_of(name)) for name in names]
    models = [(model, {item.name: given[item.name] for item in model.get_inputs()}) for model, given in models]
    return lambda: [model.run(None, given) for model, given in models]


if __name__ == "__main__":
    child = arguments(__doc__)
    measure(work(child), child)
