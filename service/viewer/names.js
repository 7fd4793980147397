// What visitors call their worlds: the sample's title, or the picture's file name. The server keeps no names; this
// browser does.

import { counted, formatMoment } from "./dom.js";

const KEPT = "mirage-names"; // {session: name}, oldest first
const MOST = 500;

const all = () => JSON.parse(localStorage.getItem(KEPT) ?? "{}");
const store = (names) => localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(Object.entries(names).slice(-MOST))));

export const keep = (id, name) => store({ ...all(), [id]: name });
export const forget = (id) => store({ ...all(), [id]: undefined });

/** One made of another is called after that; one from elsewhere by its id's end, as ids of one day begin alike. */
export function nameOf({ id, origin }) {
  const names = all();
  const [made, source] = origin?.split(":") ?? [];
  if (names[id]) return names[id];
  return names[source] ? `${names[source]} (${made})` : `World ${id.slice(-6)}`;
}

/** When it was made, and how long it is. */
export function factsOf({ created_at, num_frames }) {
  return `${formatMoment(created_at)} · ${counted(num_frames, "frame")}`;
}
