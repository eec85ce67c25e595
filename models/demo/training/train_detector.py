"""Second stage of the detector: trains the whole model, from pictures and prompts to boxes.

    python train_detector.py detector.pt --pretrained pretrained.pt --scenes crowded/ scenes/ --minutes 45

The encoder's tokens have a one-to-many loss (all tokens near the centre of an object
represent it), the decoder's layers a one-to-one loss (Hungarian matching). In addition
to the focal loss over tokens, a softmax over the prompt's phrases separates the words.
The losses of the first stage continue with a small weight.
"""

import argparse
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

import deformable
from detector import (
    Prompts,
    SceneCache,
    assign,
    box_loss,
    build_model,
    draw_prompt,
    focal_loss,
    generalised_iou,
    grid_points,
    load_tokenizer,
    matches,
    to_centre,
    to_corners,
    word_ids,
)
from muon import Muon, split
from pretrain_detector import MAIN_LEVEL, Heads, lessons


def forward(model, pixels, prompts):
    """Token logits and boxes (centre, size) of every decoder layer and of the encoder's tokens."""
    output = model.model(
        pixel_values=pixels,
        input_ids=prompts.ids,
        token_type_ids=torch.zeros_like(prompts.ids),
        attention_mask=prompts.mask,
        return_dict=True,
    )
    words = output.encoder_last_hidden_state_text.transpose(1, 2)
    layers = []
    for index in range(output.intermediate_hidden_states.shape[1]):
        hidden = output.intermediate_hidden_states[:, index]
        if index == 0:
            reference = output.init_reference_points
        else:
            reference = output.intermediate_reference_points[:, index - 1]
        reference = torch.special.logit(reference, eps=1e-5)
        layers.append((hidden @ words, (model.bbox_embed[index](hidden) + reference).sigmoid()))
    length = prompts.ids.shape[1]
    return layers, output.enc_outputs_class[..., :length], output.enc_outputs_coord_logits


class Projections:
    """Stores the projected feature maps of the last forward pass, for the losses of the first stage."""

    def __init__(self, model):
        self.maps = {}
        for index, module in enumerate(model.model.input_proj_vision):
            module.register_forward_hook(lambda _module, _inputs, output, index=index: self.keep(index, output))

    def keep(self, index, output):
        self.maps[index] = output

    def tokens(self):
        """Normalised tokens of all levels, and the shapes of the levels."""
        maps = [self.maps[index] for index in sorted(self.maps)]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        return F.layer_norm(tokens, tokens.shape[-1:]), [tuple(level.shape[-2:]) for level in maps]


def make_prompts(rng, labels, words):
    """Prompts for a batch of label rows, and the phrase of each object (-1: the prompt does not name it)."""
    batch, answers = [], torch.full(labels.shape[:2], -1)
    for b, rows in enumerate(labels.tolist()):
        objects = [(int(row[4]), int(row[5])) for row in rows if row[4] >= 0]
        phrases = draw_prompt(rng, objects)
        for m, item in enumerate(objects):  # empty rows come last
            for p, phrase in enumerate(phrases):
                if matches(phrase, *item):
                    answers[b, m] = p
        batch.append(phrases)
    return Prompts(batch, words), answers


def phrase_mean(values, spans):
    """The mean over the tokens of each phrase: [B, N, L] -> [B, N, P]."""
    share = spans / spans.sum(-1, keepdim=True).clamp(min=1)
    return values @ share.transpose(1, 2)


def class_losses(logits, truth, rows, columns, answer, prompts, alpha):
    """The focal loss over tokens, and the phrase softmax for the tokens that represent objects."""
    mask = prompts.mask.bool()[:, None].expand_as(logits)
    focal = focal_loss(logits, truth, mask, alpha)
    per_phrase = phrase_mean(logits.masked_fill(~mask, 0.0), prompts.spans)[rows, columns]
    absent = torch.arange(per_phrase.shape[-1]) >= prompts.count[rows, None]
    phrase = F.cross_entropy(per_phrase.masked_fill(absent, -1e4), answer, reduction="sum")
    return focal, phrase


@torch.no_grad()
def match(logits, boxes, targets, answers, prompts):
    """Hungarian matching; -> batch index, query index, object index of all pairs."""
    probability = phrase_mean(logits.masked_fill(~prompts.mask.bool()[:, None], -50.0).sigmoid(), prompts.spans)
    index = answers.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    p = probability.gather(2, index).clamp(1e-5, 1 - 1e-5)
    present_cost, absent_cost = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    cost = 2 * (present_cost - absent_cost)
    cost = cost + 5 * (boxes[:, :, None] - to_centre(targets)[:, None]).abs().sum(-1)
    cost = cost - 2 * generalised_iou(to_corners(boxes)[:, :, None], targets[:, None])
    rows, queries, objects = [], [], []
    for b in range(len(cost)):
        present = (answers[b] >= 0).nonzero()[:, 0]
        q, m = linear_sum_assignment(cost[b][:, present].numpy())
        rows += [b] * len(q)
        queries += q.tolist()
        objects += present[m].tolist()
    return tuple(torch.tensor(part, dtype=torch.long) for part in (rows, queries, objects))


def batch_loss(model, kept, heads, pixels, labels, outlines, prompts, answers, args):
    """The loss of one batch, and a dictionary of figures for the log."""
    layers, encoder_logits, encoder_boxes = forward(model, pixels, prompts)
    tokens, shapes = kept.tokens()
    loss, figures, _ = lessons(heads, tokens, shapes, labels, outlines)
    loss = args.lessons * loss
    targets = labels[..., :4]
    asked = answers >= 0
    count = asked.sum().clamp(min=1)

    # One-to-many: all tokens near the centre of an object represent it.
    points, level = grid_points(shapes)
    owner = torch.full(encoder_logits.shape[:2], -1)
    owner[:, level == MAIN_LEVEL] = assign(points[level == MAIN_LEVEL], targets, asked)
    rows, columns = (owner >= 0).nonzero(as_tuple=True)
    chosen = owner[rows, columns]
    truth = torch.zeros_like(encoder_logits)
    answer = answers[rows, chosen]
    truth[rows, columns] = prompts.spans[rows, answer]
    logits = encoder_logits.masked_fill(~prompts.mask.bool()[:, None], 0.0)
    focal, phrase = class_losses(logits, truth, rows, columns, answer, prompts, args.alpha)
    many = max(1, len(rows))
    loss = loss + focal / many + phrase / many
    if len(rows):
        loss = loss + 0.5 * box_loss(encoder_boxes[rows, columns].sigmoid(), to_centre(targets[rows, chosen]))

    # One-to-one in every decoder layer.
    for index, (logits, boxes) in enumerate(layers):
        rows, queries, objects = match(logits, boxes, targets, answers, prompts)
        truth = torch.zeros_like(logits)
        answer = answers[rows, objects]
        truth[rows, queries] = prompts.spans[rows, answer]
        focal, phrase = class_losses(logits, truth, rows, queries, answer, prompts, args.alpha)
        loss = loss + 2 * focal / count + phrase / count
        figures[f"focal{index}"] = focal.detach() / count
        if len(rows):
            regression = box_loss(boxes[rows, queries], to_centre(targets[rows, objects]))
            figures[f"box{index}"] = regression.detach()
            loss = loss + args.boxes * regression
    if len(rows):
        # The phrase accuracy of the last layer's matched queries.
        scores = phrase_mean(logits, prompts.spans)[rows, queries]
        scores = scores.masked_fill(torch.arange(scores.shape[-1]) >= prompts.count[rows, None], -1e4)
        figures["phrase"] = (scores.argmax(-1) == answer).float().mean()
    return loss, figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="checkpoint to write")
    parser.add_argument("--pretrained", help="checkpoint of the first stage")
    parser.add_argument("--resume", help="checkpoint of this stage to start from")
    parser.add_argument("--scenes", required=True, nargs="+", help="folders written by draw_scenes.py")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--lessons", type=float, default=0.2, help="weight of the first stage's losses")
    parser.add_argument("--boxes", type=float, default=1.5, help="weight of the decoder's box losses")
    parser.add_argument("--alpha", type=float, default=0.4, help="weight of positive tokens in the focal loss")
    parser.add_argument("--constant", type=float, default=0.4, help="share of the time with a constant rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads)
    print("fast deformable attention:", deformable.install(), flush=True)
    model = build_model(args.seed)
    source = args.resume or args.pretrained
    heads = Heads(model.config.d_model)
    if source:
        state = torch.load(source, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
    kept = Projections(model)
    model.train()
    words = word_ids(load_tokenizer())
    scenes = SceneCache(args.scenes, args.seed)
    rng = random.Random(args.seed)
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
        rate = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * descent))
        for optimizer, lr in zip(optimizers, (args.muon_lr, args.lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
        pixels, labels, outlines = scenes.batch(args.batch)
        prompts, answers = make_prompts(rng, labels, words)
        loss, figures = batch_loss(model, kept, heads, pixels, labels, outlines, prompts, answers, args)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        for name, value in dict(loss=loss.detach(), **figures).items():
            average[name] = 0.95 * average.get(name, value.item()) + 0.05 * value.item()
        if step % 25 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in average.items())
            print(f"step {step} {time.time() - start:.0f} s {shown}", flush=True)
        if time.time() - saved > 150:
            save()
            saved = time.time()
    save()
    print(f"done after {step} steps of {args.batch} scenes", flush=True)


if __name__ == "__main__":
    main()
