// The REST calls the viewer makes. Every failure becomes an ApiError with the server's own title and detail.

import { describe } from "./dom.js";
import * as key from "./key.js";

const BRANCH_WAIT_S = 20; // the most that the server waits

export class ApiError extends Error {
  constructor(title, detail, status = 0) {
    super(detail);
    this.title = title;
    this.detail = detail;
    this.status = status; // HTTP's, if there was an answer
    this.isAsked = status === 401 && !key.isKnown(); // the field for the key says it; nothing went wrong
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...key.headers() } });
  } catch (error) {
    throw new ApiError("The server does not answer", `${error.message}. Is it still running?`);
  }
  if (response.ok) return response;
  if (response.status === 401) key.ask();
  const problem = await response.json().catch(() => ({}));
  const detail = describe({ detail: response.statusText, ...problem });
  throw new ApiError(problem.title ?? `HTTP ${response.status}`, detail, response.status);
}

const json = async (path, options) => (await request(path, options)).json();

const post = (path, body) => json(path, {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

const next = (cursor) => (cursor ? `?cursor=${encodeURIComponent(cursor)}` : "");

export const sessionUrl = (id) => `v1/sessions/${encodeURIComponent(id)}`;
export const frameUrl = (id, frame) => `${sessionUrl(id)}/frames/${frame}`;

export const listSamples = async () => (await json("v1/samples")).samples;
/** A page, newest first: {sessions, next_cursor}. */
export const listSessions = (cursor) => json(`v1/sessions${next(cursor)}`);
export const getSession = (id) => json(sessionUrl(id));
export const deleteSession = (id) => request(sessionUrl(id), { method: "DELETE" });
export const getMemory = (id) => json(`${sessionUrl(id)}/memory`);
export const getGeneration = (id, generation) => json(`${sessionUrl(id)}/generations/${generation}`);
export const cancelGeneration = (id, generation) => post(`${sessionUrl(id)}/generations/${generation}:cancel`, {});
export const generate = (id, matrices) =>
  post(`${sessionUrl(id)}/generations`, { poses: matrices.map((matrix) => ({ matrix })) });

/** Those that the server still knows, oldest first. */
export async function listGenerations(id) {
  const generations = [];
  let cursor = null;
  do {
    const page = await json(`${sessionUrl(id)}/generations${next(cursor)}`);
    generations.push(...page.generations);
    cursor = page.next_cursor;
  } while (cursor);
  return generations;
}

/** The frames after one number, in order, page by page; pictures are not fetched. */
export async function listFrames(id, after) {
  const frames = [];
  for (;;) {
    const page = await json(`${sessionUrl(id)}/frames?after=${after}`);
    if (!page.frames.length) return frames;
    frames.push(...page.frames);
    after = page.next_after;
  }
}

/** What is said of one frame. */
export async function getFrame(id, frame) {
  const [found] = (await json(`${sessionUrl(id)}/frames?after=${frame - 1}&limit=1`)).frames;
  if (found?.frame !== frame) throw new ApiError("Not there", `Frame ${frame} is no longer kept.`);
  return found;
}

/** options: {file | sample, fov_deg, seed, memory}; what is empty is left to the server. */
export function createSession(options) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ image: options.file, ...options, file: undefined })) {
    if (value !== undefined && value !== null && value !== "") form.append(name, value);
  }
  return json("v1/sessions", { method: "POST", body: form });
}

/** What is done after all that was asked of a world before: its result. */
async function branch(id, verb, place) {
  const { state, result } = await post(`${sessionUrl(id)}:${verb}?wait_s=${BRANCH_WAIT_S}`, place);
  if (state !== "done") throw new ApiError("Not yet", "It is done once a worker has done what was asked of this world before.");
  return result;
}

/** The id of a new world that begins after a frame, or (null) as this one stands. */
export const fork = async (id, frame) => (await branch(id, "fork", { frame })).session;
export const rewind = (id, frame) => branch(id, "rewind", { frame });
/** {credential, expires_at} with which others may look. */
export const share = (id) => post(`${sessionUrl(id)}/shares`, { may: "look" });
export const exportWorld = async (id) => (await request(`${sessionUrl(id)}/export`)).blob();
export const importWorld = (blob) =>
  json("v1/sessions:import", { method: "POST", headers: { "content-type": "application/x-tar" }, body: blob });

/** A picture, or what else is a file; null if it is not there (any more). */
export async function file(path) {
  const response = await fetch(path, { headers: key.headers() });
  return response.ok ? response.blob() : null;
}

/** What a generation made, as an MP4. */
export async function getVideo(id, generation) {
  const video = await file(`${sessionUrl(id)}/generations/${generation}/video.mp4`);
  if (video === null) throw new ApiError("No video", "It could not be made: its frames are no longer kept.");
  return video;
}

/** What a WebSocket's address needs where keys are required: browsers send no header with it. */
export async function ticketQuery(id) {
  if (!key.isKnown()) return "";
  const { ticket } = await post(`${sessionUrl(id)}/tickets`, {});
  return `&ticket=${encodeURIComponent(ticket)}`;
}

/** {ready, reason}: whether work can be done now, and if not, why. */
export async function readiness() {
  const response = await fetch("readyz").catch(() => null);
  if (response === null) return { ready: false, reason: "server unreachable" };
  const body = await response.json().catch(() => ({}));
  return { ready: response.ok, reason: body.detail ?? body.reason ?? "not ready" };
}
