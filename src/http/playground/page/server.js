// Requests to the server. An image travels once; after that its digest names it, until the server has dropped its pixels.

/** An error whose message is for the person. */
export class ServerError extends Error {}

async function request(path, body) {
  let response;
  try {
    response = await fetch(`playground/api/${path}`, body && {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
  } catch {
    throw new ServerError('The server does not answer.');
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new ServerError(`The server answered ${response.status} without JSON.`);
  }
  if (!response.ok) {
    const error = new ServerError(answer.error ?? `The server answered ${response.status}.`);
    error.status = response.status;
    throw error;
  }
  return answer;
}

/** The picture of a task of Label Studio, as a file. */
export async function taskPicture(number) {
  const response = await fetch(`playground/api/task/${encodeURIComponent(number)}`);
  if (response.ok) return response.blob();
  const answer = await response.json().catch(() => ({}));
  throw new ServerError(answer.error ?? `The server answered ${response.status}.`);
}

export const settings = () => request('settings');
export const status = () => request('status');

/** An image file that was chosen: its data URI, and its digest once the server knows it. */
export class Picture {
  constructor(dataUri, bitmap) {
    this.dataUri = dataUri;
    this.bitmap = bitmap;
    this.digest = null;
  }

  async #ask(path, body) {
    if (this.digest) {
      try {
        return await request(path, { image: this.digest, ...body });
      } catch (error) {
        if (error.status !== 410) throw error;
      }
    }
    return request(path, { image: this.dataUri, ...body });
  }

  /** All candidates of a prompt, whatever their scores are. Without a name, the server's own detector finds them. */
  async find(prompt, textThreshold, detector) {
    const found = await this.#ask('find', { prompt, text_threshold: textThreshold, detector: detector || null });
    this.digest = found.image;
    return found;
  }

  /** One mask per box. Without a name, the server's own segmenter makes them. */
  segment(boxes, segmenter) {
    return this.#ask('segment', { boxes, segmenter: segmenter || null });
  }

  /** The mask of one object that is marked by a box and points. */
  mark(box, points, segmenter) {
    return this.#ask('mark', { box, points, segmenter: segmenter || null });
  }
}
