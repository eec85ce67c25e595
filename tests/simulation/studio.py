"""A fake Label Studio that fails now and then: images, and the API calls of `groundling annotate`.

Every image has another size, so that a response shows which image it belongs to.
"""

import http.server
import json
import random
import struct
import threading
import time
import urllib.parse
import zlib

TOKEN = "0123456789abcdef0123456789abcdef01234567"
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "yellow": (240, 210, 40)}
SHAPES = ("circle", "square")
PHRASES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
CONFIG = """<View><Image name="image" value="$image"/>
<TextArea name="prompt" toName="image"/>
<RectangleLabels name="label" toName="image">{labels}</RectangleLabels>
<BrushLabels name="label2" toName="image" smart="true">{labels}</BrushLabels>
<KeyPointLabels name="label3" toName="image" smart="true">{labels}</KeyPointLabels></View>""".format(
    labels="".join(f'<Label value="{phrase}"/>' for phrase in PHRASES)
)

# kinds of failures: a status, a slow or truncated response, HTML, a closed connection, no response for 8 s
FAULTS = ("500", "503", "429", "404", "slow", "cut", "html", "reset", "hang")


def png(width: int, height: int, rows: list[bytes]) -> bytes:
    """A PNG file with these rows of RGB pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class Picture:
    """A picture of two or three shapes: `file` is the PNG, `objects` has the (phrase, x, y, side) of each shape."""

    def __init__(self, number: int):
        draw = random.Random(number)
        self.width, self.height = 240 + number % 97, 180 + number // 97
        self.objects = []
        for i in range(draw.choice((2, 3))):
            side = draw.randrange(44, 64)
            x = 10 + i * (self.width - 20) // 3 + draw.randrange(4)
            y = draw.randrange(8, self.height - side - 8)
            self.objects.append((draw.choice(PHRASES), x, y, side))
        background = draw.choice(((235, 235, 230), (250, 250, 250), (225, 230, 240)))
        self.file = png(self.width, self.height, [self.row(y, background) for y in range(self.height)])

    def row(self, y: int, background: tuple[int, int, int]) -> bytes:
        """The RGB pixels of a row."""
        row = bytearray(bytes(background) * self.width)
        for phrase, left, top, side in self.objects:
            colour, shape = phrase.split()
            if not top <= y < top + side:
                continue
            half = side / 2
            inset = 0 if shape == "square" else half - (half**2 - (y + 0.5 - top - half) ** 2) ** 0.5
            start, end = round(left + inset), round(left + side - inset)
            row[3 * start : 3 * end] = bytes(COLOURS[colour]) * (end - start)
        return bytes(row)


class Studio:
    """A running fake Label Studio: a share `failure_rate` of the requests fails, and all of them while `is_down`."""

    def __init__(self, images: int, seed: int, tasks: int = 0):
        self.pictures = [Picture(number) for number in range(images)]
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.failure_rate = 0.0
        self.is_down = False
        self.faults = dict.fromkeys(FAULTS, 0)
        self.tasks = tasks
        self.predictions: list[dict] = []
        studio = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802
                studio.respond(self, None)

            def do_POST(self):  # noqa: N802
                length = int(self.headers.get("Content-Length", 0))
                studio.respond(self, json.loads(self.rfile.read(length) or b"null"))

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_):
                pass  # the client has disconnected

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fault(self) -> str | None:
        """The kind of failure of the next request, or None."""
        with self.lock:
            if self.is_down:
                kind = "reset"
            elif self.random.random() < self.failure_rate:
                kind = self.random.choice(FAULTS)
            else:
                return None
            self.faults[kind] += 1
            return kind

    def respond(self, request, body):
        """Responds to one request, or fails."""
        fault = self.fault()
        if fault == "slow":
            time.sleep(1.5)
        elif fault == "hang":
            time.sleep(8)
        elif fault == "reset":
            request.connection.shutdown(2)
            request.close_connection = True
            return None
        elif fault == "html":
            return self.send(request, 200, b"<html>please log in</html>", "text/html")
        elif fault in ("500", "503", "429", "404"):
            headers = {"Retry-After": "1"} if fault in ("429", "503") else {}
            return self.send(request, int(fault), b'{"detail": "no"}', "application/json", headers)
        if request.headers.get("Authorization") != f"Token {TOKEN}":
            return self.send(request, 401, b'{"detail": "Invalid token."}', "application/json")
        path = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(path.query))
        if path.path.startswith("/data/upload/"):
            number = int(path.path.rsplit("/", 1)[1].removesuffix(".png"))
            file = self.pictures[number].file
            return self.send(request, 200, file, "image/png", {"ETag": f'"{number}"'}, truncate=fault == "cut")
        result = self.api(path.path, query, body)
        data = json.dumps(result).encode()
        return self.send(request, 201 if body else 200, data, "application/json", truncate=fault == "cut")

    def send(self, request, status: int, data: bytes, kind: str, headers: dict | None = None, truncate: bool = False):
        """Sends a response; if `truncate`, only half of its body, and then closes the connection."""
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data[: len(data) // 2] if truncate else data)
        if truncate:
            request.wfile.flush()
            request.connection.shutdown(2)
            request.close_connection = True

    def api(self, path: str, query: dict, body):
        """The result of an API call."""
        with self.lock:
            stored = list(self.predictions)
            if path == "/api/predictions/" and body is not None:
                self.predictions.append(body)
                return body
        if path == "/api/version":
            return {"release": "1.23.2"}
        if path == "/api/current-user/whoami":
            return {"email": "user@example.com"}
        if path.startswith("/api/projects/"):
            return {"id": 7, "title": "shapes", "label_config": CONFIG}
        if path == "/api/ml":
            return []
        if path == "/api/predictions/":
            return [p for p in stored if p["task"] == int(query["task"])]
        if path == "/api/tasks/":
            page, size = int(query["page"]), int(query["page_size"])
            numbers = range(self.tasks)[(page - 1) * size : page * size]
            by_task: dict[int, list] = {}
            for prediction in stored:
                by_task.setdefault(prediction["task"], []).append(prediction)
            tasks = [
                {
                    "id": 1000 + i,
                    "data": {"image": self.image(i % len(self.pictures))},
                    "total_annotations": 0,
                    "predictions": by_task.get(1000 + i, []),
                }
                for i in numbers
            ]
            return {"tasks": tasks, "total": self.tasks}
        return {}

    @staticmethod
    def image(number: int) -> str:
        """The path of an image."""
        return f"/data/upload/7/{number}.png"

    def stop(self):
        self.server.shutdown()
