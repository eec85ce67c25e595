"""Faster deformable attention for training. It needs a C compiler; without one, nothing changes.

`install()` replaces the function that transformers' Grounding DINO calls.
"""

import ctypes
import os
import subprocess
import tempfile

import torch
from transformers.models.grounding_dino import modeling_grounding_dino

CHANNELS = 32
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "deformable.c")


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "tokens", "queries", "heads", "levels", "points")]


def compile_library():
    """Builds and loads deformable.c; None if there is no working compiler."""
    path = os.path.join(tempfile.mkdtemp(), "deformable.so")
    command = ["cc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", SOURCE, "-o", path, "-lm"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ctypes.CDLL(path)


def pointers(*tensors):
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


class DeformableAttention(torch.autograd.Function):
    library = None

    @staticmethod
    def forward(context, value, shapes, locations, weights):
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        batch, tokens, heads, _ = value.shape
        queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
        sizes = Sizes(batch, tokens, queries, heads, levels, points)
        output = value.new_empty(batch, queries, heads * CHANNELS)
        DeformableAttention.library.deformable_forward(
            ctypes.byref(sizes), *pointers(shapes, value, locations, weights, output)
        )
        context.save_for_backward(value, shapes, locations, weights)
        context.sizes = sizes
        return output

    @staticmethod
    def backward(context, grad):
        value, shapes, locations, weights = context.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        DeformableAttention.library.deformable_backward(
            ctypes.byref(context.sizes),
            *pointers(shapes, value, locations, weights, grad.contiguous(), *grads),
        )
        return grads[0], None, grads[1], grads[2]


def install():
    """Makes transformers use the C code; returns whether the code could be built."""
    library = compile_library()
    if library is None:
        return False
    DeformableAttention.library = library
    original = modeling_grounding_dino.multi_scale_deformable_attention

    def fast(value, shapes, locations, weights):
        if value.shape[-1] != CHANNELS or value.dtype != torch.float32:
            return original(value, shapes, locations, weights)
        return DeformableAttention.apply(value, shapes.contiguous(), locations, weights)

    modeling_grounding_dino.multi_scale_deformable_attention = fast
    return True
