// The slider below the picture: which frame the visitor looks at, the newest one or an earlier one.

import { byId } from "./dom.js";

export class Timeline {
  /** picked: called when the visitor has chosen another frame. */
  constructor(visits, picked) {
    this.visits = visits;
    this.slider = byId("moment");
    this.earlier = null; // index of the visit that is looked at; null = the newest
    this.slider.oninput = () => {
      const index = Number(this.slider.value);
      this.earlier = index < this.newest ? index : null;
      picked();
    };
    this.draw();
  }

  get newest() {
    return this.visits.frames.length - 1;
  }

  /** Number of the earlier frame that is looked at, or null. */
  get frame() {
    return this.earlier === null ? null : this.visits.frames[this.earlier];
  }

  /** Number of the frame to rewind to: the one looked at, or the first visit to this place; null where all is new. */
  get origin() {
    return this.frame ?? this.visits.firstFrame(this.pose, this.visits.frames[this.newest]);
  }

  /** Where the frame that is looked at was seen from. */
  get pose() {
    return this.visits.poses[this.earlier ?? this.newest];
  }

  follow() {
    this.earlier = null;
  }

  draw() {
    this.slider.hidden = this.newest < 1;
    this.slider.max = this.newest;
    this.slider.value = this.earlier ?? this.newest;
    this.slider.ariaValueText = `frame ${this.visits.frames[this.earlier ?? this.newest]}`;
  }
}
