// What was seen from where: the latest frames' numbers and poses, in order, and those of older ones that were looked at.
// Answers two questions: which way back, and which frame first showed this place.

import { getFrame } from "./api.js";

const MAX_BACK = 240; // poses of one walk back
const SAME_PLACE_M = 0.02;
const SAME_VIEW = 0.9995; // cosine between two forward directions, 1.8 degrees

export class Visits {
  constructor() {
    this.frames = [];
    this.poses = [];
    this.older = new Map(); // frame -> pose
    this.mark = -1; // where the recording began; -1 = not recording
  }

  add(frame, matrix) {
    this.frames.push(frame);
    this.poses.push(matrix);
  }

  /** Where a frame was seen from; undefined where that is not known. */
  poseOf(frame) {
    return this.poses[this.frames.indexOf(frame)] ?? this.older.get(frame);
  }

  /** Ask where an older frame was seen from, unless that is known. */
  async ask(sessionId, frame) {
    if (this.poseOf(frame)) return;
    const { matrix } = await getFrame(sessionId, frame);
    if (this.frames.length) this.older.set(frame, matrix);
    else this.add(frame, matrix); // all that was known came after it
  }

  /** Forget what came after a frame: the world was rewound to it. */
  cut(frame) {
    const count = this.frames.filter((one) => one <= frame).length;
    this.frames.length = count;
    this.poses.length = count;
    this.older.clear();
    this.mark = Math.min(this.mark, Math.max(0, count - 1));
  }

  /** The poses from here back to where the recording (or the visit) began, newest first, each place once. */
  wayBack() {
    const walked = this.poses.slice(Math.max(0, this.mark));
    const back = [];
    for (const matrix of walked.reverse()) {
      if (!back.length || !samePlace(back.at(-1), matrix)) back.push(matrix);
    }
    return back.slice(1, MAX_BACK + 1);
  }

  /** Number of the first frame that was seen from this pose, among those before one; null if there is none. */
  firstFrame(matrix, before) {
    const index = this.poses.findIndex((pose, index) => this.frames[index] < before && samePlace(pose, matrix));
    return index < 0 ? null : this.frames[index];
  }
}

function samePlace(a, b) {
  const distance_m = Math.hypot(a[3] - b[3], a[7] - b[7], a[11] - b[11]);
  return distance_m < SAME_PLACE_M && a[2] * b[2] + a[6] * b[6] + a[10] * b[10] > SAME_VIEW;
}
