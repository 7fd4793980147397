// The slider below the picture: which frame the visitor looks at, the newest one or any earlier one.

import { byId } from "./dom.js";

export class Timeline {
  /** picked: called when the visitor has chosen another frame. */
  constructor(visits, picked) {
    this.visits = visits;
    this.slider = byId("moment");
    this.frame = null; // number of the earlier frame that is looked at; null = the newest
    this.slider.oninput = () => {
      const frame = Number(this.slider.value);
      this.frame = frame < this.newest ? frame : null;
      picked();
    };
    this.draw();
  }

  get newest() {
    return this.visits.frames.at(-1) ?? -1;
  }

  /** Number of the frame to rewind to: the one looked at, or the first visit to this place; null where all is new. */
  get origin() {
    return this.frame ?? this.visits.firstFrame(this.pose, this.newest);
  }

  /** Where the frame that is looked at was seen from. */
  get pose() {
    return this.visits.poseOf(this.frame ?? this.newest);
  }

  follow() {
    this.frame = null;
  }

  draw() {
    this.slider.hidden = this.newest < 1;
    this.slider.max = this.newest;
    this.slider.value = this.frame ?? this.newest;
    this.slider.ariaValueText = `frame ${this.slider.value}`;
  }
}
