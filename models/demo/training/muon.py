"""Muon: an optimizer that makes the momentum of matrices orthogonal before every step.

It trains transformers from random weights in far fewer steps than AdamW. AdamW trains vectors, embeddings and the
matrices that `split` returns as `others`.
"""

import torch


def orthogonal(matrix, iterations=5):
    """An approximation of the nearest orthogonal matrix, by a Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """For matrices only. The entries of a step are about 0.2 * lr, as with AdamW."""

    def __init__(self, parameters, lr=1e-3, momentum=0.95, weight_decay=1e-2):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                update = parameter.grad + group["momentum"] * momentum
                update = orthogonal(update.flatten(1)).view_as(parameter)
                scale = 0.2 * max(update.flatten(1).shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def split(model):
    """The parameters for Muon (matrices of linear layers and of 1x1 or 3x3 convolutions), and those for AdamW."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and "embed" not in name and "bias_table" not in name and "level" not in name
        (matrices if is_matrix else others).append(parameter)
    return matrices, others
