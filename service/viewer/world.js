// A visit to one world: poses go out, frames come in, and the page shows both.

import * as api from "./api.js";
import * as buttons from "./buttons.js";
import { Camera } from "./camera.js";
import { Controls } from "./controls.js";
import { alertUser, byId, guarded } from "./dom.js";
import { Hud } from "./hud.js";
import { Stage } from "./stage.js";
import { Stream } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Trace } from "./trace.js";
import { Visits } from "./visits.js";
import { isOver, Walk } from "./walk.js";

const REFRESH_MS = 1500;
const RECALLED_FRAMES = 200; // of an earlier visit; those before them when they are looked at
const FORBIDDEN = "urn:mirage:problem:forbidden";

export class World {
  /** go: opens another world, or ("") shows them all. */
  constructor(id, go) {
    this.id = id;
    this.go = go;
    this.camera = new Camera();
    this.visits = new Visits();
    this.timeline = new Timeline(this.visits, () => guarded(() => this.#lookBack()));
    this.hud = new Hud();
    this.trace = new Trace(byId("trace"));
    this.walk = null; // while the camera walks by itself
    this.mayWalk = true; // until the server says no
    this.isClosed = false;
    this.newestMemory = -1;
  }

  async open() {
    byId("world").hidden = false;
    scrollTo(0, 0);
    this.stage = new Stage(byId("view"));
    this.inset = new Stage(byId("first-visit").querySelector("canvas"));
    await this.#look();
    await this.#recall();
    if (this.isClosed) return;
    this.controls = new Controls(byId("stage"), this.camera, (matrix) => this.#pose(matrix));
    this.stream = new Stream(this.id, this.lastFrame, {
      frame: (header, blob) => guarded(() => this.#frame(header, blob)),
      rewound: (frame) => guarded(() => this.#rewound(frame)),
      message: (message) => this.#message(message),
      state: (connected) => this.hud.state({ connected }),
    });
    buttons.wire(this, {
      record: () => this.#record(),
      "walk-back": () => this.#walkBack(),
      stop: () => this.walk.cancel(),
    });
    this.timer = setInterval(() => guarded(() => this.#refresh()), REFRESH_MS);
    this.#redraw();
    byId("stage").focus({ preventScroll: true });
  }

  close() {
    this.isClosed = true;
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
    const paths = (await api.listGenerations(this.id)).filter((one) => one.kind === "generate");
    this.finished = paths.findLast((one) => one.state === "done")?.id;
    const underWay = paths.find((one) => !isOver(one));
    if (underWay) this.walk = new Walk(this.id, underWay, this.session.num_frames);
    this.hud.draw();
    if (!frames.length) return;
    const last = frames.at(-1);
    this.camera.set(last.matrix);
    this.lastFrame = last.frame;
    this.hud.show(last);
    await this.#showKept(last.frame);
  }

  /** The world now ends with an earlier frame: stand there. */
  async #rewound(frame) {
    this.visits.cut(frame);
    this.timeline.follow();
    await this.visits.ask(this.id, frame);
    this.#stand();
    this.hud.show({ frame });
    await this.#showKept(frame);
  }

  /** Stand where the frame that was picked was seen. Who walks on walks on from there. */
  async #lookBack() {
    const { frame } = this.timeline;
    if (frame !== null) await this.visits.ask(this.id, frame);
    this.#stand();
    await this.#showKept(this.timeline.frame ?? this.stream.lastFrame);
  }

  #stand() {
    if (this.timeline.pose) this.camera.set(this.timeline.pose);
    byId("first-visit").hidden = true;
    this.#redraw();
  }

  #showKept(frame) {
    return this.stage.show(api.file(api.frameUrl(this.id, frame)));
  }

  #pose(matrix) {
    this.stream.sendPose(matrix);
    this.trace.draw(this.visits.poses, this.visits.mark, this.camera);
  }

  async #frame(header, blob) {
    const latency_ms = this.stream.latency_ms(header);
    this.visits.add(header.frame, header.matrix);
    if (latency_ms !== null) this.timeline.follow(); // the visitor walks on
    this.hud.frame(header, latency_ms);
    const isShown = this.timeline.frame === null;
    if (isShown && latency_ms === null) this.camera.set(header.matrix); // led by a path, or by another visitor
    this.#redraw();
    if (!isShown) return;
    const first = this.walk?.firstVisit(header.matrix, this.visits) ?? null;
    const together = Promise.allSettled([first]).then(() => blob); // or the corner would show where the camera was
    await Promise.all([this.stage.show(together), this.inset.show(first)]);
    byId("first-visit").hidden = this.inset.picture === null;
  }

  #message(message) {
    if (message.type === "state") this.hud.state({ session: { ...this.session, ...message } });
    if (message.problem === FORBIDDEN) this.#stay();
    else if (message.type === "error" || message.type === "closed") alertUser(message);
    if (message.type !== "closed") return;
    this.hud.state({ ended: message.detail });
    this.#stay();
  }

  /** Nothing moves the camera but frames that others ask for. */
  #stay() {
    this.mayWalk = false;
    this.#stand();
  }

  async #look() {
    const [session, { ready }] = await Promise.all([api.getSession(this.id), api.readiness()]);
    this.session = session;
    this.hud.state({ session, isReady: ready });
  }

  async #refresh() {
    this.hud.draw();
    if (!this.stream.connected) return; // the page says that it reconnects; no need to alert as well
    await this.#look();
    if (this.newestMemory !== this.stream.lastFrame) {
      this.newestMemory = this.stream.lastFrame;
      this.hud.show(await api.getMemory(this.id));
    }
    if (this.walk) await this.#followWalk();
  }

  async #walkBack() {
    const back = this.visits.wayBack();
    if (!back.length) return;
    this.walk = new Walk(this.id, await api.generate(this.id, back), this.stream.lastFrame + 1);
    this.timeline.follow();
    this.#redraw();
  }

  async #followWalk() {
    const progress = await this.walk.look();
    if (!isOver(progress)) return;
    this.walk = null;
    this.finished = progress.id;
    if (progress.error) alertUser({ title: "The walk back stopped", detail: progress.error.detail ?? progress.error });
    this.#redraw();
  }

  #record() {
    this.visits.mark = this.visits.mark < 0 ? Math.max(0, this.visits.poses.length - 1) : -1;
    this.#redraw();
  }

  #redraw() {
    this.controls.enabled = this.mayWalk && this.walk === null;
    this.hud.state({ isWalking: this.walk !== null, mayWalk: this.mayWalk, earlier: this.timeline.frame });
    this.timeline.draw();
    buttons.draw(this);
    this.trace.draw(this.visits.poses, this.visits.mark, this.camera);
  }
}
