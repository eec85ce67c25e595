"""MobileSAM's tensors by name, with random weights, without its package."""

import zlib

import torch

SEED = 0
DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)
WIDTH = 256


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of `mobile_sam.pt` that inference uses."""
    found = {}

    def linear(name: str, output: int, size: int) -> None:
        found[f"{name}.weight"] = (output, size)
        found[f"{name}.bias"] = (output,)

    def norm(name: str, size: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (size,)

    def convolution(name: str, output: int, size: int, side: int) -> None:
        found[f"{name}.c.weight"] = (output, size, side, side)
        norm(f"{name}.bn", output)
        found[f"{name}.bn.running_mean"] = found[f"{name}.bn.running_var"] = (output,)

    def bottleneck(name: str, size: int, hidden: int, output: int) -> None:
        convolution(f"{name}.conv1", hidden, size, 1)
        convolution(f"{name}.conv2", hidden, 1, 3)
        convolution(f"{name}.conv3", output, hidden, 1)

    def attention(name: str, inner: int) -> None:
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(f"{name}.{part}", inner, WIDTH)
        linear(f"{name}.out_proj", WIDTH, inner)

    def mlp(name: str, output: int) -> None:
        for layer, size in enumerate((WIDTH, WIDTH, output)):
            linear(f"{name}.layers.{layer}", size, WIDTH)

    encoder = "image_encoder"
    convolution(f"{encoder}.patch_embed.seq.0", DIMS[0] // 2, 3, 3)
    convolution(f"{encoder}.patch_embed.seq.2", DIMS[0], DIMS[0] // 2, 3)
    for stage, dim in enumerate(DIMS):
        for i in range(DEPTHS[stage]):
            block = f"{encoder}.layers.{stage}.blocks.{i}"
            if stage == 0:
                bottleneck(block, dim, 4 * dim, dim)
                continue
            found[f"{block}.attn.attention_biases"] = (HEADS[stage], WINDOWS[stage] ** 2)
            norm(f"{block}.attn.norm", dim)
            linear(f"{block}.attn.qkv", 3 * dim, dim)
            linear(f"{block}.attn.proj", dim, dim)
            norm(f"{block}.mlp.norm", dim)
            linear(f"{block}.mlp.fc1", 4 * dim, dim)
            linear(f"{block}.mlp.fc2", dim, 4 * dim)
            convolution(f"{block}.local_conv", dim, 1, 3)
        if stage + 1 < len(DIMS):
            after = DIMS[stage + 1]
            bottleneck(f"{encoder}.layers.{stage}.downsample", dim, after, after)
    found[f"{encoder}.neck.0.weight"] = (WIDTH, DIMS[-1], 1, 1)
    norm(f"{encoder}.neck.1", WIDTH)
    found[f"{encoder}.neck.2.weight"] = (WIDTH, WIDTH, 3, 3)
    norm(f"{encoder}.neck.3", WIDTH)

    prompts = "prompt_encoder"
    found[f"{prompts}.pe_layer.positional_encoding_gaussian_matrix"] = (2, WIDTH // 2)
    for name in (*(f"point_embeddings.{i}" for i in range(4)), "not_a_point_embed", "no_mask_embed"):
        found[f"{prompts}.{name}.weight"] = (1, WIDTH)
    for index, output, size, side in ((0, 4, 1, 2), (3, 16, 4, 2), (6, WIDTH, 16, 1)):
        found[f"{prompts}.mask_downscaling.{index}.weight"] = (output, size, side, side)
        found[f"{prompts}.mask_downscaling.{index}.bias"] = (output,)
    norm(f"{prompts}.mask_downscaling.1", 4)
    norm(f"{prompts}.mask_downscaling.4", 16)

    decoder = "mask_decoder"
    for i in range(2):
        layer = f"{decoder}.transformer.layers.{i}"
        attention(f"{layer}.self_attn", WIDTH)
        attention(f"{layer}.cross_attn_token_to_image", WIDTH // 2)
        attention(f"{layer}.cross_attn_image_to_token", WIDTH // 2)
        linear(f"{layer}.mlp.lin1", 2048, WIDTH)
        linear(f"{layer}.mlp.lin2", WIDTH, 2048)
        for number in range(1, 5):
            norm(f"{layer}.norm{number}", WIDTH)
    attention(f"{decoder}.transformer.final_attn_token_to_image", WIDTH // 2)
    norm(f"{decoder}.transformer.norm_final_attn", WIDTH)
    found[f"{decoder}.iou_token.weight"] = (1, WIDTH)
    found[f"{decoder}.mask_tokens.weight"] = (4, WIDTH)
    for index, size, output in ((0, WIDTH, 64), (3, 64, 32)):
        found[f"{decoder}.output_upscaling.{index}.weight"] = (size, output, 2, 2)
        found[f"{decoder}.output_upscaling.{index}.bias"] = (output,)
    norm(f"{decoder}.output_upscaling.1", 64)
    for i in range(4):
        mlp(f"{decoder}.output_hypernetworks_mlps.{i}", 32)
    mlp(f"{decoder}.iou_prediction_head", 4)
    return found


def weights() -> dict[str, torch.Tensor]:
    """The tensors: values in the usual range, the same on every machine."""
    return {name: draw(name, shape) for name, shape in shapes().items()}


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A random tensor, seeded by its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return (0.2 * noise).exp()
    if name.endswith("attention_biases"):
        return 0.3 * noise
    if name.endswith("bias") or name.endswith("running_mean"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise
    if shape[0] <= 4 and len(shape) == 2:
        return noise  # embeddings of points, masks and positions
    fan_in = shape[0] if "output_upscaling" in name else noise[0].numel()
    return noise / fan_in**0.5
