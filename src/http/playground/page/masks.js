// Masks as the server sends them: COCO's compressed run lengths, column by column.

/** The ends of the runs, in pixels from the top left corner, column by column; the first run is not set. */
function runEnds(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const part = counts.charCodeAt(at) - 48;
      value |= (part & 31) << shift;
      more = (part & 32) !== 0;
      at += 1;
      shift += 5;
      // the sign
      if (!more && part & 16) value |= -1 << shift;
    }
    // from the third run on, the difference to the run before the last one
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  let end = 0;
  return runs.map((run) => (end += run));
}

/** Whether each pixel of a smaller picture of `width` x `height` pixels is set, row by row. */
export function shrink(mask, width, height) {
  const [rows, columns] = mask.size;
  const ends = mask.ends ??= runEnds(mask.counts);
  const set = new Uint8Array(width * height);
  let run = 0;
  for (let x = 0; x < width; x++) {
    const column = Math.min(columns - 1, Math.floor((x + 0.5) * columns / width)) * rows;
    while (run > 0 && ends[run - 1] > column) run -= 1;
    for (let y = 0; y < height; y++) {
      const pixel = column + Math.min(rows - 1, Math.floor((y + 0.5) * rows / height));
      while (run < ends.length && ends[run] <= pixel) run += 1;
      if (run % 2 === 1) set[y * width + x] = 1;
    }
  }
  return set;
}

/** A translucent picture of a mask with a solid outline; `colour` is [red, green, blue]. */
export function paint(mask, width, height, colour) {
  const set = shrink(mask, width, height);
  const picture = new ImageData(width, height);
  const outline = Math.max(1, Math.round(Math.min(width, height) / 400));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      if (!set[at]) continue;
      const isEdge = x < outline || y < outline || x >= width - outline || y >= height - outline
        || !set[at - outline] || !set[at + outline]
        || !set[at - outline * width] || !set[at + outline * width];
      picture.data.set(colour, 4 * at);
      picture.data[4 * at + 3] = isEdge ? 255 : 100;
    }
  }
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  canvas.getContext('2d').putImageData(picture, 0, 0);
  return canvas;
}
