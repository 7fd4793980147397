// Draws pictures on a canvas that fills its box, smoothly scaled and never cropped.

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.picture = null;
    this.asked = 0; // pictures to show
    this.shown = 0; // which of them is the picture
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(canvas);
  }

  close() {
    this.observer.disconnect();
    this.picture?.close();
    this.picture = null;
  }

  /** source: a picture's blob, null for none, or a promise of either. One that comes after a later one is dropped. */
  async show(source) {
    const turn = ++this.asked;
    const blob = await source;
    const picture = blob && (await createImageBitmap(blob));
    if (turn < this.shown) {
      picture?.close();
      return;
    }
    this.shown = turn;
    this.picture?.close();
    this.picture = picture;
    this.#draw();
  }

  #fit() {
    const box = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
    this.canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
    this.#draw();
  }

  #draw() {
    const { canvas, context, picture } = this;
    context.fillStyle = "#05070a";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (picture === null) return;
    const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  }
}
