// A visit to one world: poses go out, frames come in, and the page shows both.

import * as api from "./api.js";
import { Camera } from "./camera.js";
import { Controls } from "./controls.js";
import { alertUser, byId, element, guarded } from "./dom.js";
import { Hud } from "./hud.js";
import { Stage } from "./stage.js";
import { Stream } from "./stream.js";
import { Trace } from "./trace.js";
import { Visits } from "./visits.js";

const REFRESH_MS = 1500;
const RECALLED_FRAMES = 200; // of an earlier visit
const FINISHED = ["done", "failed", "cancelled"];

function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  URL.revokeObjectURL(href);
}

export class World {
  constructor(id, leave) {
    this.id = id;
    this.leave = leave;
    this.camera = new Camera();
    this.visits = new Visits();
    this.hud = new Hud();
    this.trace = new Trace(byId("trace"));
    this.walk = null; // {generation, before} while the camera walks back by itself
    this.newestMemory = -1;
    this.session = { state: "waiting" };
  }

  async open() {
    byId("world").hidden = false;
    this.stage = new Stage(byId("view"));
    this.inset = new Stage(byId("first-visit").querySelector("canvas"));
    this.session = await api.getSession(this.id);
    await this.#recall();
    this.controls = new Controls(byId("stage"), this.camera, (matrix) => this.#pose(matrix));
    this.stream = new Stream(this.id, this.lastFrame, {
      frame: (header, blob) => guarded(() => this.#frame(header, blob)),
      message: (message) => this.#message(message),
      state: (connected) => this.hud.state(this.session, connected),
    });
    this.#buttons();
    this.timer = setInterval(() => guarded(() => this.#refresh()), REFRESH_MS);
    this.#redraw();
    byId("stage").focus({ preventScroll: true });
  }

  close() {
    clearInterval(this.timer);
    this.controls?.close();
    this.stream?.close();
    this.stage?.close();
    this.inset?.close();
    byId("world").hidden = true;
    byId("first-visit").hidden = true;
  }

  /** Stand where the last visit ended, and draw the way that led there. */
  async #recall() {
    const newest = this.session.num_frames - 1;
    this.lastFrame = Math.max(-1, newest - RECALLED_FRAMES);
    const frames = await api.listFrames(this.id, this.lastFrame);
    for (const frame of frames) this.visits.add(frame.frame, frame.matrix);
    this.finished = (await api.listGenerations(this.id)).findLast((one) => one.kind === "generate" && one.state === "done")?.id;
    if (!frames.length) return;
    const last = frames.at(-1);
    this.camera.set(last.matrix);
    this.lastFrame = last.frame;
    const picture = await api.file(api.frameUrl(this.id, last.frame));
    if (picture) await this.stage.show(picture);
    this.hud.frame(last, null);
  }

  #pose(matrix) {
    this.stream.send({ type: "pose", matrix, client_time_ms: performance.now() });
    this.trace.draw(this.visits.poses, this.visits.mark, this.camera);
  }

  async #frame(header, blob) {
    this.visits.add(header.frame, header.matrix);
    if (this.walk) this.camera.set(header.matrix);
    this.hud.frame(header, header.client_time_ms == null ? null : performance.now() - header.client_time_ms);
    this.#redraw();
    await this.stage.show(blob);
    if (this.walk) await this.#compare(header.matrix);
  }

  /** Show, small, what this place looked like when it was first seen (if the server still has that frame). */
  async #compare(matrix) {
    const frame = this.visits.firstFrame(matrix, this.walk.before);
    const picture = frame === null ? null : await api.file(api.frameUrl(this.id, frame));
    byId("first-visit").hidden = picture === null;
    if (picture) await this.inset.show(picture);
  }

  #message(message) {
    if (message.type === "state") this.hud.state({ ...this.session, ...message }, this.stream.connected);
    if (message.type === "error" || message.type === "closed") alertUser(message);
  }

  async #refresh() {
    if (!this.stream.connected) return; // the page says that it reconnects; no need to alert as well
    this.session = await api.getSession(this.id);
    this.hud.state(this.session, this.stream.connected);
    if (this.newestMemory !== this.stream.lastFrame) {
      this.newestMemory = this.stream.lastFrame;
      this.hud.memory(await api.getMemory(this.id));
    }
    if (this.walk) await this.#followWalk();
  }

  async #walkBack() {
    const back = this.visits.wayBack();
    if (!back.length) return;
    const { id } = await api.generate(this.id, back);
    this.walk = { generation: id, before: this.visits.poses.length };
    this.controls.enabled = false;
    this.#redraw();
  }

  async #followWalk() {
    const { generation } = this.walk;
    const progress = await api.getGeneration(this.id, generation);
    if (!FINISHED.includes(progress.state)) return;
    this.walk = null;
    this.controls.enabled = true;
    this.finished = generation;
    if (progress.error) alertUser({ title: "The walk back stopped", detail: progress.error.detail ?? progress.error });
    this.#redraw();
  }

  #buttons() {
    const actions = {
      record: () => {
        this.visits.mark = this.visits.mark < 0 ? Math.max(0, this.visits.poses.length - 1) : -1;
        this.#redraw();
      },
      "walk-back": () => this.#walkBack(),
      stop: () => api.cancelGeneration(this.id, this.walk.generation),
      video: async () => {
        const video = await api.file(api.videoUrl(this.id, this.finished));
        if (video === null) throw new api.ApiError("No video", "It could not be made: its frames are no longer kept.");
        save(video, `${this.id}.mp4`);
      },
      leave: () => this.leave(),
      delete: async () => {
        if (!confirm("Delete this world and everything it remembers?")) return;
        this.stream.close(); // it would complain that its world has gone
        await api.deleteSession(this.id);
        this.leave();
      },
    };
    for (const [id, action] of Object.entries(actions)) byId(id).onclick = () => guarded(action);
  }

  #redraw() {
    const recording = this.visits.mark >= 0;
    byId("record").textContent = recording ? "Forget recording" : "Record path";
    byId("record").classList.toggle("active", recording);
    byId("walk-back").hidden = this.walk !== null;
    byId("walk-back").disabled = this.visits.poses.length < 2;
    byId("stop").hidden = this.walk === null;
    byId("video").disabled = this.finished === undefined;
    this.trace.draw(this.visits.poses, this.visits.mark, this.camera);
  }
}
