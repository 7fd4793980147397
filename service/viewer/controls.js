// Keyboard, mouse and touch -> how the camera moves. Calls onPose at most POSE_HZ times a second, and only while moving.

const POSE_HZ = 15;
const WALK_M_PER_S = 1.2;
const RUN_FACTOR = 2.5;
const TURN_RAD_PER_S = 0.9;
const DRAG_RAD_PER_PIXEL = 0.0035;
const AXES = {
  KeyW: [2, 1], KeyS: [2, -1], KeyD: [0, 1], KeyA: [0, -1], KeyQ: [1, 1], KeyE: [1, -1],
  ArrowRight: [3, 1], ArrowLeft: [3, -1], ArrowUp: [4, 1], ArrowDown: [4, -1],
};

export class Controls {
  constructor(stage, camera, onPose) {
    this.stage = stage;
    this.camera = camera;
    this.onPose = onPose;
    this.enabled = true;
    this.held = new Set();
    this.fast = false;
    this.dirty = false;
    this.abort = new AbortController();
    this.#listen();
    this.last_ms = performance.now();
    this.timer = setInterval(() => this.#tick(), 1000 / POSE_HZ);
  }

  close() {
    clearInterval(this.timer);
    this.abort.abort();
  }

  #listen() {
    const signal = this.abort.signal;
    addEventListener("keydown", (event) => this.#press(event), { signal });
    addEventListener("keyup", (event) => this.#release(event), { signal });
    addEventListener("blur", () => this.held.clear(), { signal });
    document.addEventListener("visibilitychange", () => this.held.clear(), { signal });
    this.stage.addEventListener("pointerdown", (event) => this.#dragFrom(event), { signal });
    this.stage.addEventListener("pointermove", (event) => this.#drag(event), { signal });
    for (const button of this.stage.querySelectorAll("[data-code]")) {
      button.addEventListener("pointerdown", (event) => {
        event.stopPropagation();
        button.setPointerCapture(event.pointerId);
        this.held.add(button.dataset.code);
      }, { signal });
      for (const end of ["pointerup", "pointercancel"]) {
        button.addEventListener(end, () => this.held.delete(button.dataset.code), { signal });
      }
    }
  }

  #press(event) {
    this.fast = event.shiftKey;
    if (!(event.code in AXES) || isTyped(event)) return;
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's, as Alt+Left is "back"
    event.preventDefault();
    this.held.add(event.code);
  }

  #release(event) {
    this.fast = event.shiftKey;
    this.held.delete(event.code);
    if (event.key === "Meta") this.held.clear(); // macOS does not tell which keys were let go meanwhile
  }

  #dragFrom(event) {
    if (event.target.closest("[data-code], input")) return;
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
  }

  #drag(event) {
    if (!this.enabled || !this.stage.hasPointerCapture(event.pointerId)) return;
    // The picture follows the hand: dragging to the left turns the head to the right.
    this.camera.turn(-event.movementX * DRAG_RAD_PER_PIXEL, event.movementY * DRAG_RAD_PER_PIXEL);
    this.dirty = true;
  }

  #tick() {
    const now_ms = performance.now();
    const step_s = Math.min(0.2, (now_ms - this.last_ms) / 1000);
    this.last_ms = now_ms;
    if (!this.enabled) return;
    const axis = [0, 0, 0, 0, 0];
    for (const code of this.held) axis[AXES[code][0]] += AXES[code][1];
    if (axis.some(Boolean)) {
      const step_m = step_s * WALK_M_PER_S * (this.fast ? RUN_FACTOR : 1);
      const step_rad = step_s * TURN_RAD_PER_S;
      this.camera.turn(axis[3] * step_rad, axis[4] * step_rad);
      this.camera.move(axis[0] * step_m, axis[1] * step_m, axis[2] * step_m);
      this.dirty = true;
    }
    if (this.dirty) {
      this.dirty = false;
      this.onPose(this.camera.matrix());
    }
  }
}

/** Whether an input takes the key for itself; a slider takes only the arrows. */
const isTyped = ({ target, code }) => target.matches(code.startsWith("Arrow") ? "input" : "input:not([type=range])");
