"""Generates small pictures with gradients, shapes and noise."""

import numpy as np
from PIL import Image, ImageDraw


def picture(seed: int, height: int, width: int, noise: float = 12.0) -> Image.Image:
    """An abstract RGB picture with smooth parts, edges and noise."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 256, (4, 5, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x0, x1 = sorted(random.randint(-width // 4, width + width // 4, 2))
        y0, y1 = sorted(random.randint(-height // 4, height + height // 4, 2))
        colour = tuple(int(value) for value in random.randint(0, 256, 3))
        shape = draw.ellipse if random.rand() < 0.5 else draw.rectangle
        shape([int(x0), int(y0), int(x1), int(y1)], fill=colour)
    grain = random.randn(height, width, 3) * noise
    return Image.fromarray(np.clip(np.asarray(image, np.float64) + grain, 0, 255).astype(np.uint8))
