// The way walked so far, seen from above: x to the right, the first view's forward direction (z) up.

const MARGIN = 0.16; // of the canvas, free on each side
const SMALLEST_M = 2; // a visitor who has hardly moved sees this much ground

export class Trace {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  /** poses: matrices in the order visited; mark: index where the recording began, or -1; camera: where the visitor stands. */
  draw(poses, mark, camera) {
    const { context, canvas } = this;
    const points = poses.map((matrix) => [matrix[3], matrix[11]]);
    const here = [camera.position[0], camera.position[2]];
    this.#fit([...points, here]);
    context.clearRect(0, 0, canvas.width, canvas.height);
    this.#grid();
    this.#line(points, "#4c6a92", 2.5);
    if (mark >= 0) this.#line(points.slice(mark), "#ff7a6b", 4);
    if (points.length) this.#dot(points[0], 5, "#8fb4e8");
    this.#arrow(here, camera.heading);
  }

  #fit(points) {
    const [xs, zs] = [points.map((p) => p[0]), points.map((p) => p[1])];
    const [x0, x1, z0, z1] = [Math.min(...xs), Math.max(...xs), Math.min(...zs), Math.max(...zs)];
    const { width, height } = this.canvas;
    const room = 1 - 2 * MARGIN;
    this.scale = Math.min((width * room) / Math.max(SMALLEST_M, x1 - x0), (height * room) / Math.max(SMALLEST_M, z1 - z0));
    this.origin = [width / 2 - (this.scale * (x0 + x1)) / 2, height / 2 + (this.scale * (z0 + z1)) / 2];
  }

  #pixel([x, z]) {
    return [this.origin[0] + x * this.scale, this.origin[1] - z * this.scale];
  }

  #grid() {
    const { context, canvas, scale, origin } = this;
    const step = scale * (scale > 12 ? 1 : 10); // one metre, or ten when far out
    context.strokeStyle = "#1e2733";
    context.lineWidth = 1;
    context.beginPath();
    for (let x = origin[0] % step; x < canvas.width; x += step) {
      context.moveTo(x, 0);
      context.lineTo(x, canvas.height);
    }
    for (let y = origin[1] % step; y < canvas.height; y += step) {
      context.moveTo(0, y);
      context.lineTo(canvas.width, y);
    }
    context.stroke();
  }

  #line(points, colour, width) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.beginPath();
    points.forEach((point, index) => context[index ? "lineTo" : "moveTo"](...this.#pixel(point)));
    context.stroke();
  }

  #dot(point, radius, colour) {
    this.context.fillStyle = colour;
    this.context.beginPath();
    this.context.arc(...this.#pixel(point), radius, 0, 2 * Math.PI);
    this.context.fill();
  }

  #arrow(point, [sin, cos]) {
    const { context } = this;
    const [x, y] = this.#pixel(point);
    const corner = (forward, right) => [x + 11 * (forward * sin + right * cos), y - 11 * (forward * cos - right * sin)];
    context.fillStyle = "#ffd166";
    context.beginPath();
    context.moveTo(...corner(1.5, 0));
    context.lineTo(...corner(-1, 0.9));
    context.lineTo(...corner(-0.5, 0));
    context.lineTo(...corner(-1, -0.9));
    context.fill();
  }
}
