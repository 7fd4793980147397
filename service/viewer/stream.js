// One session's WebSocket: poses out, frames in. Reconnects by itself and asks for what it has not seen yet.
// A frame is two messages: a JSON header, then the encoded picture.

import { sessionUrl, ticketQuery } from "./api.js";

const RETRY_MS = [250, 500, 1000, 2000, 5000];
const REFUSED = 4000; // close codes from here on are the server's decision: 4000 + what HTTP has

export class Stream {
  /** on: {frame(header, blob), rewound(frame), message(object), state(connected)} */
  constructor(sessionId, lastFrame, on) {
    this.sessionId = sessionId;
    this.lastFrame = lastFrame;
    this.branch = null; // of that frame
    this.on = on;
    this.sent_ms = []; // when poses were sent whose frames may still come
    this.attempts = 0;
    this.closed = false;
    this.#connect();
  }

  get connected() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (this.connected) this.socket.send(JSON.stringify(message));
    return this.connected;
  }

  sendPose(matrix) {
    const client_time_ms = performance.now();
    if (this.send({ type: "pose", matrix, client_time_ms })) this.sent_ms.push(client_time_ms);
  }

  /** From sending the pose of a frame until now; null if another visitor sent it, or a path did. */
  latency_ms({ client_time_ms }) {
    if (!this.sent_ms.includes(client_time_ms)) return null;
    this.sent_ms = this.sent_ms.filter((one) => one >= client_time_ms);
    return performance.now() - client_time_ms;
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  async #connect() {
    let ticket;
    try {
      ticket = await ticketQuery(this.sessionId);
    } catch (error) {
      this.#retry({ code: error.status < 500 ? REFUSED + error.status : 0, reason: error.detail });
      return;
    }
    if (this.closed) return;
    const branch = this.branch === null ? "" : `&branch=${this.branch}`;
    const place = `${sessionUrl(this.sessionId)}/stream?after=${this.lastFrame}${branch}${ticket}`;
    const url = new URL(place, location.href.split("#")[0]);
    url.protocol = url.protocol.replace("http", "ws");
    this.socket = new WebSocket(url);
    this.socket.binaryType = "blob";
    this.header = null;
    this.socket.onopen = () => {
      this.attempts = 0;
      this.on.state(true);
    };
    this.socket.onmessage = (event) => this.#receive(event.data);
    this.socket.onclose = (event) => this.#retry(event);
  }

  #receive(data) {
    if (typeof data !== "string") {
      const header = this.header;
      this.header = null;
      if (header === null || header.frame <= this.lastFrame) return;
      this.lastFrame = header.frame;
      this.branch = header.branch;
      this.on.frame(header, data);
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "frame") {
      this.header = message;
      return;
    }
    const end = { rewound: message.frame, hello: message.after }[message.type];
    if (end < this.lastFrame) { // rewound, now or while we were away
      this.lastFrame = end;
      this.branch = message.branch;
      this.on.rewound(end);
    }
    this.on.message(message);
  }

  #retry(event) {
    if (this.closed) return;
    if (event.code >= REFUSED) {
      this.on.message({ type: "closed", title: "The server ended the stream", detail: event.reason || `code ${event.code}` });
      return;
    }
    this.on.state(false);
    const wait_ms = RETRY_MS[Math.min(this.attempts++, RETRY_MS.length - 1)];
    this.timer = setTimeout(() => this.#connect(), wait_ms);
  }
}
