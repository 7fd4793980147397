// What is done with a world as a whole: fork, rewind, share, export, delete.

import * as api from "./api.js";
import { copy, counted, formatMoment, save } from "./dom.js";
import * as key from "./key.js";
import { forget, keep, nameOf } from "./names.js";

/** A world of its own that begins after a frame, or (null) as this one stands; its id. */
export async function fork(session, frame) {
  const id = await api.fork(session.id, frame);
  keep(id, `${nameOf(session)} (fork)`);
  return id;
}

/** Back to a frame, if the visitor means it. */
export async function rewind(session, frame, newest) {
  const loss = `The ${counted(newest - frame, "frame")} after it will be gone, with any that were made together with them.`;
  if (confirm(`Rewind "${nameOf(session)}" to frame ${frame}? ${loss}`)) await api.rewind(session.id, frame);
}

/** Copy an address that shows the world to others; where no keys are needed, its own does. */
export async function share(session) {
  const address = `${location.href.split("#")[0]}#${encodeURIComponent(session.id)}`;
  if (!key.isKnown()) {
    await copy(address, "This server asks for no keys: whoever reaches it can look, walk and change the world.");
    return;
  }
  const { credential, expires_at } = await api.share(session.id);
  await copy(`${address}/${credential}`, `Whoever has it may look, but not walk, until ${formatMoment(expires_at)}.`);
}

export const exportFile = async (session) => save(await api.exportWorld(session.id), `${nameOf(session)}.mirage.tar`);

/** Whether the visitor means it, and it is gone. */
export async function remove(session, stream) {
  if (!confirm(`Delete "${nameOf(session)}" and everything it remembers?`)) return false;
  stream.close(); // it would complain that its world has gone
  await api.deleteSession(session.id);
  forget(session.id);
  return true;
}
