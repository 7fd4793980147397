// What is said over the picture and beside it: which world; frame, memory, coverage, latency, rate, state.

import { byId, element, formatBytes } from "./dom.js";
import { factsOf, nameOf } from "./names.js";

const RECENT_MS = 3000; // what rate and latency are about

export class Hud {
  constructor() {
    this.arrivals = []; // of recent frames: {time_ms, latency_ms}
    this.values = {};
    this.situation = {};
  }

  /** header: a frame's; latency_ms from sending the pose to receiving its frame, or null if the pose was not ours. */
  frame(header, latency_ms) {
    this.arrivals.push({ time_ms: performance.now(), latency_ms });
    this.show(header);
  }

  /** Figures of a frame or of the memory; those that are not named stay. */
  show(values) {
    this.values = { ...this.values, ...values };
    this.draw();
  }

  /** Any of {session, connected, isReady, isWalking, mayWalk, earlier (a frame), ended}; what is not named stays as it was. */
  state(news) {
    this.situation = { ...this.situation, ...news };
    byId("name").textContent = nameOf(this.situation.session);
    const box = byId("state");
    [box.dataset.state, box.textContent] = told(this.situation);
  }

  draw() {
    const { frame, coverage, num_points, num_bytes } = this.values;
    const { session } = this.situation;
    const num_frames = frame === undefined ? session.num_frames : frame + 1;
    byId("facts").textContent = `${factsOf({ ...session, num_frames })}\n${session.id}`;
    const now_ms = performance.now();
    this.arrivals = this.arrivals.filter((one) => now_ms - one.time_ms < RECENT_MS);
    const latencies = this.arrivals.map((one) => one.latency_ms).filter((one) => one !== null);
    const latency = latencies.length ? `${Math.round(median(latencies))} ms` : "–";
    const rate = this.arrivals.length
      ? (1000 * this.arrivals.length) / Math.max(1000, now_ms - this.arrivals[0].time_ms) : 0;
    byId("hud").textContent = `frame ${frame ?? "–"}   ${rate.toFixed(1)} frames/s   ${latency}`;
    const rows = {
      "memory points": num_points?.toLocaleString("en") ?? "–",
      "memory size": num_bytes === undefined ? "–" : formatBytes(num_bytes),
      "covered by memory": coverage === undefined || coverage === null ? "–" : `${Math.round(coverage * 100)} %`,
      "pose to frame": latency,
    };
    byId("stats").replaceChildren(...Object.entries(rows).map(([name, value]) =>
      element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
  }
}

/** [colour, words] for how things stand. */
function told({ session, connected, isReady, isWalking, mayWalk, earlier, ended }) {
  if (ended) return ["failed", `ended: ${ended}`];
  if (!connected) return ["waiting", "connecting …"];
  if (session.state === "failed") return ["failed", `failed: ${session.error?.detail ?? "no reason is known"}`];
  if (session.state === "waiting" || !isReady) return ["waiting", "waiting for a worker"];
  if (earlier != null) return ["ready", `looking back: frame ${earlier}`];
  if (isWalking) return ["ready", "walking"];
  return ["ready", mayWalk ? "ready" : "you may look, but not walk"];
}

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}
