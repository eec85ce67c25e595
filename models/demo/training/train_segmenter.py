"""Trains the demo segmenter: a tiny SAM on drawn scenes.

    python train_segmenter.py segmenter.pt --minutes 120 --encoder-minutes 40
    python train_segmenter.py segmenter.pt --minutes 20 --lr 2e-3 --resume segmenter.pt --corrections 2 --reset-mask-prompts

In the first `--encoder-minutes`, only the image encoder is trained: a head that is discarded later predicts which pixels
belong to shapes. A step is cheap and every edge in the picture counts, so edges become sharp far sooner than from masks
of single shapes. The head's loss is kept while the whole model is trained.

Two of three steps use boxes as prompts (one mask each). The third uses one point
inside each shape (three masks, of which the best one is trained).

With `--corrections N`, each prediction is corrected up to N times, as by an annotator: a
click where it is wrong is added to the prompt, and the prediction itself is the mask
prompt (one mask). In a quarter of the steps there is no mask prompt; after a point these
predict three masks, because clicks without an earlier mask are used so. Only the weights
that these prompts add are trained, for masks and for clicks on the background. The
results for boxes and for points on the object stay exactly the same.
"""

import argparse
import math
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from muon import Muon, split
from scenes import scene

SIDE = 256  # the model's square input
PROMPTS = 3  # prompts per scene
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def build_model():
    """A new segmenter with random weights."""
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=128,
            output_channels=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=16,
            window_size=8,
            global_attn_indexes=[1, 3],
            mlp_dim=384,
            num_pos_feats=64,
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=128, image_size=SIDE, patch_size=16, mask_input_channels=16
        ).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=128, mlp_dim=256, num_attention_heads=4, iou_head_hidden_dim=128
        ).to_dict(),
    )
    model = SamModel(config)
    # Random Fourier features at scale 1, as in the original SAM; the default
    # initialisation is 64 times larger, so that positions become noise.
    positions = model.shared_image_embedding.positional_embedding
    with torch.no_grad():
        positions.copy_(torch.randn(positions.shape))
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    assert shared.data_ptr() == positions.data_ptr()
    return model


class Scenes(IterableDataset):
    """Unlimited training samples: pixels, all shapes, jittered boxes, masks and one point inside each mask."""

    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        rng = random.Random(self.seed)
        while True:
            sample = self.sample(rng)
            if sample is not None:
                yield sample

    def sample(self, rng):
        width = height = SIDE
        if rng.random() < 0.5:
            if rng.random() < 0.5:
                height = rng.randint(150, SIDE)
            else:
                width = rng.randint(150, SIDE)
        # Half of the scenes are drawn smaller or larger and then resized, as users' pictures are.
        scale = rng.uniform(0.6, 2.5) if rng.random() < 0.5 else 1.0
        picture, shapes = scene(rng, round(width * scale), round(height * scale), 7)
        if not shapes:
            return None
        if scale != 1.0:
            fx, fy = width / picture.width, height / picture.height
            picture = picture.resize((width, height), Image.BILINEAR)
        else:
            fx = fy = 1.0
        pixels = np.zeros((SIDE, SIDE, 3), np.float32)
        pixels[:height, :width] = (np.asarray(picture, np.float32) - MEAN) / STD

        def full_size(mask):
            mask = mask.astype(np.float32)
            if scale != 1.0:
                mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.BILINEAR))
            full = np.zeros((SIDE, SIDE), np.float32)
            full[:height, :width] = mask
            return full

        visible = full_size(np.any([item.mask for item in shapes], 0))
        boxes, masks, points = [], [], []
        rng.shuffle(shapes)
        for k in range(PROMPTS):
            item = shapes[k % len(shapes)]
            x0, y0, x1, y1 = item.box
            box = [x0 * fx, y0 * fy, x1 * fx, y1 * fy]
            jitter = rng.choice([0.0, 0.03, 0.06]) * max(box[2] - box[0], box[3] - box[1])
            boxes.append([value + rng.gauss(0, jitter) for value in box])
            mask = full_size(item.mask)
            masks.append(mask)
            rows, columns = np.nonzero(mask > 0.5)
            if len(rows) == 0:
                return None
            chosen = rng.randrange(len(rows))
            points.append([float(columns[chosen]), float(rows[chosen])])
        return (
            torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            torch.from_numpy(visible),
            torch.tensor(boxes, dtype=torch.float32),
            torch.from_numpy(np.stack(masks)),
            torch.tensor(points, dtype=torch.float32),
        )


class ShapeHead(torch.nn.Module):
    """Predicts from embeddings [N, 128, 16, 16] which pixels belong to any shape: logits [N, 1, 64, 64]."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.ConvTranspose2d(128, 32, 2, 2),
            torch.nn.GroupNorm(1, 32),
            torch.nn.GELU(),
            torch.nn.ConvTranspose2d(32, 16, 2, 2),
            torch.nn.GELU(),
            torch.nn.Conv2d(16, 1, 1),
        )

    def loss(self, image, visible):
        """The loss of embeddings [N, 128, 16, 16] for soft targets [N, 256, 256], and the mean IoU."""
        logits, half = self.layers(image), F.avg_pool2d(visible[:, None], 2)
        loss = 10 * F.binary_cross_entropy_with_logits(upsample(logits, SIDE // 2), half)
        with torch.no_grad():
            hard, truth = upsample(logits, SIDE)[:, 0] > 0, visible > 0.5
            inter, union = (hard & truth).sum((-1, -2)), (hard | truth).sum((-1, -2))
        return loss, (inter / union.clamp(min=1)).mean().item()


def mask_losses(logits, predicted_iou, target):
    """Loss and IoU of logits [N, M, h, w] and soft targets [N, h, w]; only the best of M masks is trained."""
    target = target[:, None].expand_as(logits)
    probability = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    area, outside = target.sum((-1, -2)), (1 - target).sum((-1, -2))
    balanced = (bce * target).sum((-1, -2)) / area.clamp(min=1)
    balanced = (balanced + (bce * (1 - target)).sum((-1, -2)) / outside.clamp(min=1)) / 2
    shared = (probability * target).sum((-1, -2))
    dice = 1 - (2 * shared + 1) / (probability.sum((-1, -2)) + area + 1)
    # Normalised by the size of the object, not of the picture, so that small shapes count too.
    per_object = bce.sum((-1, -2)) / area.clamp(min=40)
    loss = 2 * dice + 0.3 * balanced + per_object
    with torch.no_grad():
        hard, truth = logits > 0, target > 0.5
        inter = (hard & truth).sum((-1, -2)).float()
        iou = inter / (hard | truth).sum((-1, -2)).clamp(min=1)
    return loss.min(1)[0].mean() + F.mse_loss(predicted_iou, iou), iou


def reset_mask_prompts(model):
    """Lets every mask prompt have the effect of none, so that training starts from what the model can do without."""
    with torch.no_grad():
        last = model.prompt_encoder.mask_embed.conv3
        last.weight.zero_()
        last.bias.copy_(model.prompt_encoder.no_mask_embed.weight[0])


def add_click(clicks, logits, target):
    """Adds a click [N, 1, 1, 2] where masks [N, h, w] are wrong, away from the edges of the error if possible.

    Without an error, it is a click on the object. Labels are 1 where the mask misses the object, and 0 elsewhere.
    """
    points, labels = clicks
    truth = target > 0.5
    wrong = ((logits > 0) != truth).float()
    wrong = torch.where(wrong.sum((-1, -2), keepdim=True) > 0, wrong, truth.float())
    inside = wrong * F.avg_pool2d(wrong[:, None], 5, 1, 2)[:, 0] ** 4 + 1e-12
    chosen = torch.multinomial(inside.flatten(1), 1)
    side = target.shape[-1]
    pixel = torch.cat([chosen % side, chosen // side], -1)[:, None, None].float()
    point = (pixel + 0.5) * (SIDE / side) - 0.5
    label = truth.flatten(1).gather(1, chosen)[:, None].long()
    if points is None:
        return point, label
    return torch.cat([points, point], 2), torch.cat([labels, label], 2)


def upsample(logits, side):
    """Masks [N, M, h, w] at another size."""
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)


def train_step(model, image, batch, mode, corrections=0, feed=True):
    """Losses and IoUs [N, masks] of one batch and its embeddings, prompted by `mode` ("box" or "point") and then corrected.

    With `feed`, a correction gets the mask before it as a prompt, and predicts one mask instead of three. The gradients
    are those of the corrections, if there are any.
    """
    boxes, masks, points = batch
    count = boxes.shape[0] * boxes.shape[1]
    # A mask prompt belongs to an image: each object gets its own copy of the image's embedding.
    image = image.repeat_interleave(boxes.shape[1], 0)
    boxes = boxes.reshape(count, 1, 4) if mode == "box" else None
    clicks = None, None
    if mode == "point":
        clicks = points.reshape(count, 1, 1, 2), torch.ones((count, 1, 1), dtype=torch.long)
    earlier, results = None, []
    targets = {SIDE: masks.flatten(0, 1), SIDE // 2: F.interpolate(masks, scale_factor=0.5, mode="area").flatten(0, 1)}
    for number in range(1 + corrections):
        output = model(
            image_embeddings=image,
            input_boxes=boxes,
            input_points=clicks[0],
            input_labels=clicks[1],
            input_masks=earlier,
            multimask_output=mode == "point" and (number == 0 or not feed),
        )
        logits, scores = output.pred_masks[:, 0], output.iou_scores[:, 0]
        # The loss is computed after upsampling, so that logits learn edges between their pixels.
        side = SIDE // 2 if mode == "point" and number == 0 else SIDE
        with torch.set_grad_enabled(number > 0 or corrections == 0):
            results.append(mask_losses(upsample(logits, side), scores, targets[side]))
        if number < corrections:
            with torch.no_grad():
                best = logits[torch.arange(count), scores.argmax(-1)][:, None]
                clicks = add_click(clicks, upsample(best, SIDE // 2)[:, 0], targets[SIDE // 2])
                earlier = best if feed else None
    return results


def save(model, head, step, path):
    """Writes a checkpoint by renaming, so that readers never see an incomplete file."""
    torch.save(dict(model=model.state_dict(), head=head.state_dict(), step=step), path + ".new")
    os.replace(path + ".new", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="checkpoint to write")
    parser.add_argument("--minutes", type=float, default=80, help="processor time of this process")
    parser.add_argument("--encoder-minutes", type=float, default=0, help="the part of it for the image encoder alone")
    parser.add_argument("--resume", help="checkpoint to start from")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--corrections", type=int, default=0, help="largest number of corrections of a prediction")
    parser.add_argument("--reset-mask-prompts", action="store_true", help="forget what a mask prompt means")
    parser.add_argument("--constant", type=float, default=0.5, help="share of the time with a constant rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads)
    model, head = build_model(), ShapeHead()
    if args.resume:
        state = torch.load(args.resume, map_location="cpu", weights_only=True)
        model.load_state_dict({name: value.float() for name, value in state["model"].items()})
        if "head" in state:
            head.load_state_dict(state["head"])
    if args.reset_mask_prompts:
        reset_mask_prompts(model)
    if args.corrections:
        model.requires_grad_(False)
        model.prompt_encoder.mask_embed.requires_grad_(True)
        model.prompt_encoder.point_embed[0].requires_grad_(True)  # clicks on the background
    model.train()
    print(f"parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M", flush=True)
    matrices, others = ([p for p in group if p.requires_grad] for group in split(model))
    optimizers = [torch.optim.AdamW(others + list(head.parameters()), weight_decay=1e-4)]
    if matrices:
        optimizers.append(Muon(matrices))
    batches = iter(DataLoader(Scenes(1000 + args.seed), batch_size=args.batch, num_workers=1, prefetch_factor=4))
    rng = random.Random(args.seed)
    start, step, average, saved = time.process_time(), 0, {}, time.time()
    while (elapsed := (time.process_time() - start) / (args.minutes * 60)) < 1:
        descent = max(0.0, (elapsed - args.constant) / (1 - args.constant))
        rate = args.lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * descent))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        pixels, visible, *batch = next(batches)
        image = model.vision_encoder(pixels)[0]
        figures, loss = {}, 0
        if not args.corrections:
            loss, figures["iou_shapes"] = head.loss(image, visible)
        mode = "box" if step % (2 if args.corrections else 3) else "point"
        corrections, feed = rng.randint(min(1, args.corrections), args.corrections), rng.random() < 0.75
        if elapsed * args.minutes >= args.encoder_minutes:
            for number, (of_masks, iou) in enumerate(train_step(model, image, batch, mode, corrections, feed)):
                name = mode if number == 0 else f"{mode}+{number}" + ("" if feed else "_unfed")
                figures |= {f"loss_{name}": of_masks.item(), f"iou_{name}": iou.max(1)[0].mean().item()}
                loss = loss + of_masks
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        for name, value in figures.items():
            average[name] = 0.98 * average.get(name, value) + 0.02 * value
        if step % 50 == 0:
            text = " ".join(f"{name} {value:.3f}" for name, value in average.items())
            print(f"step {step} {time.process_time() - start:.0f} s {text}", flush=True)
        if time.time() - saved > 180:
            save(model, head, step, args.output)
            saved = time.time()
    save(model, head, step, args.output)
    print(f"done after {step} steps", flush=True)


if __name__ == "__main__":
    main()
