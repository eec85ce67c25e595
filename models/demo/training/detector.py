"""Shared by both training stages of the detector: the model, prompts, scenes and losses."""

import math
import os
import random

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
)
from transformers.models.grounding_dino.modeling_grounding_dino import (
    generate_masks_with_special_tokens_and_transfer_map,
)

from scenes import COLOUR_NAMES, SHAPE_NAMES

HERE = os.path.dirname(os.path.abspath(__file__))
SHORT_SIDE = 160
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
CLS, SEP, DOT = 101, 102, 1012


# ---------------------------------------------------------------- the model


def build_config():
    """The demo detector's architecture, in the published format of configurations."""
    return GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=SHORT_SIDE,
            embed_dim=32,
            depths=[1, 2, 4, 1],
            num_heads=[4, 8, 8, 16],
            window_size=5,
            out_indices=[2, 3, 4],
            drop_path_rate=0.0,
        ),
        text_config=BertConfig(
            vocab_size=10000,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=128,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=30,
        num_feature_levels=4,
        max_text_len=256,
        dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
        disable_custom_kernels=True,
    )


def build_model(seed=0):
    """A new detector with an initialisation that makes training start fast.

    - The contrastive head has no bias. Channel 0 of the last norms on the text side
      and on the picture side is reserved as a bias: it is constant on both sides, and
      the product is the logit of "no object". The text side has the scale of the
      scores: the decoder's norm must stay near 1, because the box head reads hidden
      states before and after it.
    - The encoder's output and the decoder's attention start as the identity, so that
      the features of the first stage affect the class scores at once.
    - Word embeddings are large, therefore nearly orthogonal.
    - The backbone starts with larger weights instead of nearly zero ones, its patch
      filters with cosine waves, and every attention head prefers its own direction,
      like a convolution.
    """
    torch.manual_seed(seed)
    model = GroundingDinoForObjectDetection(build_config())
    core = model.model
    with torch.no_grad():
        wake_backbone(core.backbone.conv_encoder.model)
        core.text_backbone.embeddings.word_embeddings.weight.normal_(0, 0.5)
        text_norm = core.encoder.layers[-1].text_enhancer_layer.layer_norm_after
        set_bias_channel(text_norm, scale=0.1, bias=-2.0)
        set_bias_channel(core.enc_output_norm, scale=1.0, bias=2.0)
        set_bias_channel(core.decoder.layer_norm, scale=1.0, bias=2.0)
        torch.nn.init.xavier_uniform_(core.text_projection.weight)
        core.enc_output.weight.copy_(torch.eye(core.enc_output.weight.shape[0]))
        for layer in core.decoder.layers:
            attention = layer.encoder_attn
            attention.value_proj.weight.copy_(torch.eye(attention.value_proj.weight.shape[0]))
            attention.output_proj.weight.copy_(torch.eye(attention.output_proj.weight.shape[0]))
            attention.sampling_offsets.weight.mul_(0.1)
            attention.sampling_offsets.bias.mul_(0.25)  # sampling points start near the centre of the box
        for head in [core.encoder_output_bbox_embed, *model.bbox_embed]:
            for linear in head.layers[:-1]:
                torch.nn.init.xavier_uniform_(linear.weight)
    return model


def wave_filters(count, side=4):
    """Cosine waves over a patch as initial filters [count, 3, side, side].

    Half of them respond to brightness, the others to two colour contrasts. Low frequencies
    come first. The constant filters are damped, so that edges are not too weak in comparison.
    """
    waves = torch.tensor(
        [[math.cos(math.pi * (x + 0.5) * k / side) * (1 if k else 0.5**0.5) for x in range(side)] for k in range(side)]
    ) * (2 / side) ** 0.5
    order = sorted(((u, v) for u in range(side) for v in range(side)), key=lambda k: (k[0] ** 2 + k[1] ** 2, k))
    contrasts = [((1, 1, 1), count // 2), ((1, -1, 0), count // 4), ((-0.5, -0.5, 1), count // 4)]
    filters = []
    for weights, number in contrasts:
        weights = torch.tensor(weights, dtype=torch.float32)
        weights /= weights.norm()
        for u, v in order[:number]:
            gain = 0.25 if u == v == 0 else 1.0
            filters.append(gain * weights[:, None, None] * waves[u][:, None] * waves[v][None])
    return torch.stack(filters)


def wake_backbone(backbone, sharpness=0.7):
    """Sets wave filters, weights scaled by the number of inputs, and heads that prefer one direction each."""
    patches = backbone.embeddings.patch_embeddings.projection
    patches.weight.copy_(wave_filters(patches.out_channels))
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Linear):
            gain = 0.5 if name.endswith("output.dense") else 1.0  # the last layers of residual branches
            module.weight.normal_(0, gain / module.in_features**0.5)
        table = getattr(module, "relative_position_bias_table", None)
        if table is not None:
            reach = module.window_size[0] - 1
            offsets = torch.arange(-reach, reach + 1).float()
            y, x = torch.meshgrid(offsets, offsets, indexing="ij")
            for head in range(table.shape[1]):
                angle = 2 * math.pi * head / table.shape[1] + math.pi / 4
                radius = 1.0 if head % 2 == 0 or table.shape[1] < 8 else 1.7
                distance = (y - radius * math.sin(angle)) ** 2 + (x - radius * math.cos(angle)) ** 2
                table[:, head] = -sharpness * distance.flatten()


def set_bias_channel(norm, scale, bias):
    norm.weight.fill_(scale)
    norm.weight[0] = 0.0
    norm.bias.zero_()
    norm.bias[0] = bias


def load_tokenizer():
    return BertTokenizerFast(os.path.join(HERE, "vocab.txt"), do_lower_case=True, clean_up_tokenization_spaces=True)


def word_ids(tokenizer):
    """Token ids of every colour and shape word; some words have several tokens."""
    words = COLOUR_NAMES + SHAPE_NAMES
    return {word: tokenizer(word, add_special_tokens=False).input_ids for word in words}


# ---------------------------------------------------------------- prompts

ANY = -1  # a phrase is (colour, shape); each of them may be ANY


def matches(phrase, colour, shape):
    return phrase[0] in (ANY, colour) and phrase[1] in (ANY, shape)


def random_phrase(rng, kind):
    colour, shape = rng.randrange(len(COLOUR_NAMES)), rng.randrange(len(SHAPE_NAMES))
    return (ANY if kind == "shape" else colour, ANY if kind == "colour" else shape)


def draw_prompt(rng, objects, kind=None, most=6):
    """1 to `most` phrases for a scene's [(colour, shape)]; no object matches two of them.

    Kinds: "both" (colour and shape), "shape", "colour" and "mixed". Phrases with and
    without an object in the scene are mixed at random; half of those without one match
    an object in the colour or in the shape.
    """
    if kind is None:
        kind = rng.choices(["both", "shape", "colour", "mixed"], [0.6, 0.17, 0.13, 0.1])[0]
    wanted = rng.randint(1, most)
    phrases, taken = [], set()
    for _ in range(wanted * 4):
        this = rng.choice(["both", "shape", "colour"]) if kind == "mixed" else kind
        phrase = random_phrase(rng, this)
        if objects and rng.random() < 0.7:
            colour, shape = rng.choice(objects)
            if this == "both" and rng.random() < 0.35:  # only the colour or only the shape is right
                phrase = (colour, phrase[1]) if rng.random() < 0.5 else (phrase[0], shape)
            else:
                phrase = (ANY if this == "shape" else colour, ANY if this == "colour" else shape)
        answers = {i for i, item in enumerate(objects) if matches(phrase, *item)}
        if phrase in phrases or answers & taken:
            continue
        phrases.append(phrase)
        taken |= answers
        if len(phrases) == wanted:
            break
    rng.shuffle(phrases)
    return phrases


def phrase_text(phrase):
    colour, shape = phrase
    names = ([COLOUR_NAMES[colour]] if colour != ANY else []) + ([SHAPE_NAMES[shape]] if shape != ANY else [])
    return " ".join(names)


class Prompts:
    """Token ids of a batch of prompts, and the tokens of each phrase."""

    def __init__(self, batch, words):
        rows = []
        for phrases in batch:
            ids, spans = [CLS], []
            for phrase in phrases:
                tokens = [token for word in phrase_text(phrase).split() for token in words[word]]
                spans.append((len(ids), len(ids) + len(tokens)))
                ids += tokens + [DOT]
            rows.append((ids + [SEP], spans))
        length = max(len(ids) for ids, _ in rows)
        most = max(len(spans) for _, spans in rows)
        self.ids = torch.zeros(len(rows), length, dtype=torch.long)
        self.mask = torch.zeros(len(rows), length, dtype=torch.long)
        self.spans = torch.zeros(len(rows), most, length)
        self.count = torch.tensor([len(spans) for _, spans in rows])
        for b, (ids, spans) in enumerate(rows):
            self.ids[b, : len(ids)] = torch.tensor(ids)
            self.mask[b, : len(ids)] = 1
            for p, (start, end) in enumerate(spans):
                self.spans[b, p, start:end] = 1


def text_features(model, ids, mask):
    """Text features: the input of the encoder's first layer."""
    attention, positions = generate_masks_with_special_tokens_and_transfer_map(ids)
    output = model.model.text_backbone(ids, attention, torch.zeros_like(ids), positions, return_dict=True)
    return model.model.text_projection(output.last_hidden_state)


# ---------------------------------------------------------------- scenes


class SceneCache:
    """Batches of scenes from draw_scenes.py; half of them are mirrored.

    The folders are scanned again from time to time, so that training can start
    while scenes are still being drawn.
    """

    PARTS = (".images", ".labels", ".outlines")

    def __init__(self, folders, seed, square=0.5):
        self.folders = folders
        self.share = square  # share of batches with square scenes
        self.rng = random.Random(seed)
        self.files, self.square, self.others = set(), [], []
        self.batches = 0

    def look(self):
        for folder in self.folders:
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name)
                if name.endswith(".images.npy") and path not in self.files:
                    self.files.add(path)
                    parts = [np.load(path.replace(".images", part), mmap_mode="r") for part in self.PARTS]
                    pool = self.square if parts[0].shape[1] == parts[0].shape[2] else self.others
                    pool.append(parts)

    def choose(self, size):
        """Images, labels and outlines of a batch; a file is chosen with a probability proportional to its scenes."""
        if self.batches % 50 == 0:
            self.look()
        self.batches += 1
        square = self.square and (not self.others or self.rng.random() < self.share)
        pool = self.square if square else self.others
        parts = self.rng.choices(pool, [len(parts[0]) for parts in pool])[0]
        chosen = sorted(self.rng.sample(range(len(parts[0])), min(size, len(parts[0]))))
        return [part[chosen] for part in parts]

    def batch(self, size):
        """Pixels [B, 3, H, W], labels [B, M, 6] (x0, y0, x1, y1 in 0..1, colour, shape), outlines [B, M, 16, 16]."""
        images, labels, outlines = self.choose(size)
        outlines = torch.from_numpy(outlines).float() / 255
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
        pixels = (pixels - MEAN) / STD
        rows = torch.from_numpy(labels)
        valid = rows[..., 4] >= 0
        height, width = pixels.shape[-2:]
        rows[..., :4] /= torch.tensor([width, height, width, height])
        if self.rng.random() < 0.5:
            pixels, outlines = pixels.flip(-1), outlines.flip(-1)
            rows[..., :4] = torch.stack([1 - rows[..., 2], rows[..., 1], 1 - rows[..., 0], rows[..., 3]], -1)
        rows[..., :4] *= valid[..., None]
        return pixels.contiguous(), rows, outlines


# ---------------------------------------------------------------- boxes and losses


def to_centre(boxes):
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def to_corners(boxes):
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def generalised_iou(a, b):
    """GIoU of boxes given by their corners, elementwise over leading dimensions."""
    size = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    inter = size[..., 0] * size[..., 1]
    area = lambda box: (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])
    union = area(a) + area(b) - inter
    hull = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
    hull = hull[..., 0] * hull[..., 1]
    return inter / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def box_loss(predicted, target):
    """L1 and GIoU loss of boxes given by their centre and size, [N, 4]."""
    giou = generalised_iou(to_corners(predicted), to_corners(target))
    return 5 * (predicted - target).abs().sum(-1).mean() + 2 * (1 - giou).mean()


def focal_loss(logits, target, mask, alpha=0.25, gamma=2.0):
    """The sum of the focal loss over the unmasked logits."""
    logits = logits.masked_fill(~mask, 0.0)
    probability = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = probability + target - 2 * probability * target
    weight = (1 - alpha) + (2 * alpha - 1) * target
    return (weight * miss**gamma * bce * mask).sum()


def grid_points(shapes):
    """The centres (x, y in 0..1) of the tokens of all levels, and the level of each token."""
    points, levels = [], []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).view(-1, 2))
        levels.append(torch.full((height * width,), level))
    return torch.cat(points), torch.cat(levels)


def assign(points, boxes, valid, reach=0.25):
    """For tokens at `points`: the index of the object that each one represents, -1 for none; [B, T].

    A token represents an object if it is near the centre of its box (within `reach` of the
    sides), or is the token closest to it. If there are several objects, the smallest one.
    """
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    distance = ((points[None, :, None] - centre[:, None]) / size[:, None]).abs().amax(-1)  # [B, T, M]
    distance = distance.masked_fill(~valid[:, None], 1e6)
    near = (distance < reach) | (distance == distance.amin(1, keepdim=True))
    near &= valid[:, None]
    area = (size[..., 0] * size[..., 1])[:, None].masked_fill(~near, 1e6)
    best, owner = area.min(-1)
    return owner.masked_fill(best >= 1e6, -1)
