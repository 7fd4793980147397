// A path that the camera walks by itself, as the way back: followed to its end, beside what was seen there at first.

import * as api from "./api.js";
import { byId } from "./dom.js";

const FINISHED = ["done", "failed", "cancelled"];

export const isOver = (progress) => FINISHED.includes(progress.state);

export class Walk {
  /** progress: of its generation; numFrames: how many there are, if it has not begun. */
  constructor(sessionId, progress, numFrames) {
    this.sessionId = sessionId;
    this.generation = progress.id;
    this.before = progress.first_frame ?? numFrames; // frames from here on are its own
    this.asked = 0; // pictures of first visits
    this.shown = 0; // which of them was the last to be shown
  }

  cancel() {
    return api.cancelGeneration(this.sessionId, this.generation);
  }

  /** Its progress. */
  look() {
    return api.getGeneration(this.sessionId, this.generation);
  }

  /** Show, small, what this place looked like when it was first seen (if the server still has that frame). */
  async compare(matrix, visits, inset) {
    const turn = ++this.asked;
    const frame = visits.firstFrame(matrix, this.before);
    const picture = frame === null ? null : await api.file(api.frameUrl(this.sessionId, frame));
    if (turn < this.shown) return; // one asked for later has come sooner
    this.shown = turn;
    byId("first-visit").hidden = picture === null;
    if (picture) await inset.show(picture);
  }
}
