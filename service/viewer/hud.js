// The figures over the picture and beside it: frame, memory, coverage, latency, rate, state.

import { byId, element, formatBytes } from "./dom.js";

const RATE_WINDOW_MS = 3000;
const STATES = {
  waiting: "waiting for a worker",
  active: "ready",
  idle: "ready",
  failed: "failed",
  deleted: "deleted",
};

export class Hud {
  constructor() {
    this.arrivals = [];
    this.latencies = [];
    this.values = {};
  }

  /** header: a frame's; latency_ms from sending the pose to receiving its frame, or null if the pose was not ours. */
  frame(header, latency_ms) {
    const now_ms = performance.now();
    this.arrivals = [...this.arrivals, now_ms].filter((time) => now_ms - time < RATE_WINDOW_MS);
    if (latency_ms !== null) this.latencies = [...this.latencies.slice(-14), latency_ms];
    this.values = { ...this.values, ...header };
    this.draw();
  }

  memory(stats) {
    this.values = { ...this.values, ...stats };
    this.draw();
  }

  state(session, connected) {
    const box = byId("state");
    const error = session.error ? `: ${session.error.detail ?? session.error.title ?? session.error}` : "";
    box.textContent = connected ? (STATES[session.state] ?? session.state) + error : "reconnecting …";
    box.dataset.state = connected ? session.state : "waiting";
  }

  draw() {
    const { frame, coverage, num_points, num_bytes } = this.values;
    const latency = this.latencies.length ? `${Math.round(median(this.latencies))} ms` : "–";
    const rate = this.arrivals.length > 1
      ? ((this.arrivals.length - 1) * 1000) / Math.max(1, this.arrivals.at(-1) - this.arrivals[0]) : 0;
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

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}
