"""First stage of the detector: trains only the backbone and the words, with dense supervision.

    python pretrain_detector.py pretrained.pt --scenes crowded/ --minutes 25

There is no encoder, decoder or matching yet. Tokens near the centre of an object
learn its colour, shape and outline with linear heads, which are discarded later,
and its names with the word embeddings: all 168 phrases are embedded in every step.
A focal loss over tokens and words teaches where there is no object, and the box
head learns boxes. Steps are fast and have a strong gradient.
"""

import argparse
import math
import os
import time

import torch
import torch.nn.functional as F
from torch import nn

from detector import (
    ANY,
    SHORT_SIDE,
    Prompts,
    SceneCache,
    assign,
    box_loss,
    build_model,
    focal_loss,
    grid_points,
    load_tokenizer,
    text_features,
    to_centre,
    word_ids,
)
from draw_scenes import OUTLINE
from muon import Muon, split
from scenes import COLOUR_NAMES, SHAPE_NAMES

COLOURS, SHAPES = len(COLOUR_NAMES), len(SHAPE_NAMES)
LEVEL_WEIGHTS = (0.5, 1.0, 0.25)  # weights of the linear heads, per feature level
MAIN_LEVEL = 1  # stride 16: the level whose tokens represent objects
OTHER_TOKENS = 48  # number of tokens of the other levels in the focal loss
OUTLINE_WEIGHT = 10.0
PAIRS = 40  # number of phrases with colour and shape in the focal loss


class Bank:
    """All phrases as one-phrase prompts: 12 colours, 12 shapes, 144 pairs."""

    def __init__(self, tokenizer):
        self.phrases = [(c, ANY) for c in range(COLOURS)] + [(ANY, s) for s in range(SHAPES)]
        self.phrases += [(c, s) for c in range(COLOURS) for s in range(SHAPES)]
        self.prompts = Prompts([[phrase] for phrase in self.phrases], word_ids(tokenizer))
        word = self.prompts.spans[:, 0] > 0
        keep = self.prompts.mask.bool()
        self.rows, self.columns = keep.nonzero(as_tuple=True)  # the tokens of all phrases in one list
        self.is_word = word[keep]
        colours = torch.tensor([phrase[0] for phrase in self.phrases])
        shapes = torch.tensor([phrase[1] for phrase in self.phrases])
        self.colour, self.shape = colours[self.rows], shapes[self.rows]
        self.singles = COLOURS + SHAPES
        self.spread = torch.zeros(len(self.phrases), len(self.rows))
        self.spread[self.rows[self.is_word], self.is_word.nonzero()[:, 0]] = 1
        self.spread /= self.spread.sum(-1, keepdim=True)

    def embed(self, model):
        features = text_features(model, self.prompts.ids, self.prompts.mask)[self.rows, self.columns]
        features = F.layer_norm(features, features.shape[-1:])
        return model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after(features)

    def some(self):
        """Indices of the tokens of all single words and of PAIRS random pairs."""
        pairs = torch.zeros(len(self.phrases), dtype=torch.bool)
        pairs[: self.singles] = True
        pairs[self.singles + torch.randperm(COLOURS * SHAPES)[:PAIRS]] = True
        return pairs[self.rows].nonzero()[:, 0]

    def targets(self, colours, shapes):
        """Which tokens of the bank describe objects of these colours and shapes; [N, bank]."""
        colour = (self.colour == ANY) | (self.colour == colours[:, None])
        shape = (self.shape == ANY) | (self.shape == shapes[:, None])
        return colour & shape & self.is_word


class Heads(nn.Module):
    """For each level a linear classifier of colours and shapes, and a linear head for outlines; only for training.

    The outline, the visible part of a shape scaled to its box, is a much stronger signal than
    one of twelve names. With it, shapes are learned soon.
    """

    def __init__(self, width):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(width, COLOURS + SHAPES) for _ in LEVEL_WEIGHTS)
        self.outline = nn.ModuleList(nn.Linear(width, OUTLINE * OUTLINE) for _ in LEVEL_WEIGHTS)


def picture_tokens(model, pixels):
    """Normalised features of all levels [B, T, d] and the levels' shapes."""
    core = model.model
    maps = list(core.backbone.conv_encoder.model(pixels).feature_maps)
    levels = [project(source) for project, source in zip(core.input_proj_vision, maps)]
    levels.append(core.input_proj_vision[-1](maps[-1]))
    shapes = [tuple(level.shape[-2:]) for level in levels]
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    return F.layer_norm(tokens, tokens.shape[-1:]), shapes


def lessons(heads, tokens, shapes, labels, outlines):
    """The loss of the auxiliary heads, figures, and the tokens that represent objects.

    The tokens are given as (batch index, token index, object index, level).
    """
    points, level = grid_points(shapes)
    valid = labels[..., 4] >= 0
    owner = torch.full(tokens.shape[:2], -1)
    for index in range(len(LEVEL_WEIGHTS)):
        owner[:, level == index] = assign(points[level == index], labels[..., :4], valid)
    rows, columns = (owner >= 0).nonzero(as_tuple=True)
    objects = owner[rows, columns]
    colours, kinds = labels[rows, objects, 4].long(), labels[rows, objects, 5].long()
    drawn = outlines[rows, objects].flatten(1)
    where = level[columns]
    loss, figures = 0.0, {}
    for index, weight in enumerate(LEVEL_WEIGHTS):
        on = where == index
        chosen = tokens[rows[on], columns[on]]
        logits = heads.linear[index](chosen)
        outline = F.binary_cross_entropy_with_logits(heads.outline[index](chosen), drawn[on])
        loss = loss + weight * F.cross_entropy(logits[:, :COLOURS], colours[on])
        loss = loss + weight * F.cross_entropy(logits[:, COLOURS:], kinds[on])
        loss = loss + weight * OUTLINE_WEIGHT * outline
        if index <= MAIN_LEVEL:
            figures[f"outline{index}"] = outline.detach()
            figures[f"colour{index}"] = (logits[:, :COLOURS].argmax(-1) == colours[on]).float().mean()
            figures[f"shape{index}"] = (logits[:, COLOURS:].argmax(-1) == kinds[on]).float().mean()
    return loss, figures, (rows, columns, objects, where)


def stage_loss(model, heads, bank, pixels, labels, outlines):
    """The loss of one batch, and a dictionary of figures for the log."""
    core = model.model
    tokens, shapes = picture_tokens(model, pixels)
    points, level = grid_points(shapes)
    loss, figures, (rows, columns, objects, where) = lessons(heads, tokens, shapes, labels, outlines)
    target = labels[rows, objects]
    colours, kinds = target[:, 4].long(), target[:, 5].long()

    words = bank.embed(model)
    answers = core.enc_output_norm(core.enc_output(tokens))
    on = where == MAIN_LEVEL
    positive = answers[rows[on], columns[on]]
    phrase = positive @ words.T @ bank.spread.T
    pair = colours[on] * SHAPES + kinds[on]
    loss = loss + F.cross_entropy(phrase[:, :COLOURS], colours[on])
    loss = loss + F.cross_entropy(phrase[:, COLOURS:COLOURS + SHAPES], kinds[on])
    loss = loss + F.cross_entropy(phrase[:, COLOURS + SHAPES:], pair)
    figures["pair"] = (phrase[:, COLOURS + SHAPES:].argmax(-1) == pair).float().mean()

    main = (level == MAIN_LEVEL).nonzero()[:, 0]
    other = (level != MAIN_LEVEL).nonzero()[:, 0]
    chosen = torch.cat([main, other[torch.randperm(len(other))[:OTHER_TOKENS]]])
    some = bank.some()
    logits = answers[:, chosen] @ words[some].T
    truth = torch.zeros_like(logits)
    truth[rows[on], columns[on] - main[0]] = bank.targets(colours[on], kinds[on])[:, some].float()
    focal = focal_loss(logits, truth, torch.ones_like(truth, dtype=torch.bool)) / truth.sum().clamp(min=1)
    figures["focal"] = focal.detach()
    loss = loss + 2 * focal

    # The box head's proposals: the centre of the token, with the usual size for the level.
    size = torch.full_like(points, 0.05 * 2**MAIN_LEVEL)
    proposals = torch.logit(torch.cat([points, size], -1))[columns[on]]
    boxes = (core.encoder_output_bbox_embed(positive) + proposals).sigmoid()
    regression = box_loss(boxes, to_centre(target[on, :4]))
    figures["box"] = regression.detach()
    return loss + regression, figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="checkpoint to write")
    parser.add_argument("--scenes", required=True, nargs="+", help="folders written by draw_scenes.py (crowded)")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--muon-lr", type=float, default=5e-3)
    parser.add_argument("--constant", type=float, default=0.5, help="share of the time with a constant rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", help="checkpoint to start from")
    args = parser.parse_args()

    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads)
    model = build_model(args.seed)
    heads = Heads(model.config.d_model)
    if args.resume:
        state = torch.load(args.resume, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
    model.train()
    bank = Bank(load_tokenizer())
    scenes = SceneCache(args.scenes, args.seed, square=0.7)
    parameters = list(model.parameters()) + list(heads.parameters())
    matrices, others = split(model)
    optimizers = [
        Muon(matrices, lr=args.muon_lr, weight_decay=1e-2),
        torch.optim.AdamW(others + list(heads.parameters()), lr=args.lr, weight_decay=1e-2),
    ]
    start, step, average, saved = time.time(), 0, {}, time.time()

    def save():
        state = dict(model=model.state_dict(), heads=heads.state_dict(), step=step)
        torch.save(state, args.output + ".new")
        os.replace(args.output + ".new", args.output)

    while (elapsed := (time.time() - start) / (args.minutes * 60)) < 1:
        descent = max(0.0, (elapsed - args.constant) / (1 - args.constant))
        rate = min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * descent)))
        for optimizer, lr in zip(optimizers, (args.muon_lr, args.lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
        loss, figures = stage_loss(model, heads, bank, *scenes.batch(args.batch))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        for name, value in dict(loss=loss.detach(), **figures).items():
            average[name] = 0.95 * average.get(name, value.item()) + 0.05 * value.item()
        if step % 25 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in average.items())
            print(f"step {step} {time.time() - start:.0f} s {shown}", flush=True)
        if time.time() - saved > 120:
            save()
            saved = time.time()
    save()
    print(f"done after {step} steps at {args.batch} scenes ({SHORT_SIDE} pixels)", flush=True)


if __name__ == "__main__":
    main()
