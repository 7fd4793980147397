// A path that the camera walks by itself, as the way back: followed to its end, beside what was seen there at first.

import * as api from "./api.js";

const FINISHED = ["done", "failed", "cancelled"];

export const isOver = (progress) => FINISHED.includes(progress.state);

export class Walk {
  /** progress: of its generation; numFrames: how many there are, if it has not begun. */
  constructor(sessionId, progress, numFrames) {
    this.sessionId = sessionId;
    this.generation = progress.id;
    this.before = progress.first_frame ?? numFrames; // frames from here on are its own
  }

  cancel() {
    return api.cancelGeneration(this.sessionId, this.generation);
  }

  /** Its progress. */
  look() {
    return api.getGeneration(this.sessionId, this.generation);
  }

  /** What this place looked like when it was first seen; null if it is new, or that frame is no longer kept. */
  async firstVisit(matrix, visits) {
    const frame = visits.firstFrame(matrix, this.before);
    return frame === null ? null : api.file(api.frameUrl(this.sessionId, frame));
  }
}
