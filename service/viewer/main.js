// Two pages in one document: the gallery, and a world (#its-id, or #its-id/credential of a share link). The address bar
// says which, so a reload comes back.

import { readiness } from "./api.js";
import { byId, clearAlerts, report } from "./dom.js";
import { Gallery } from "./gallery.js";
import { onEntered, use } from "./key.js";
import { nameOf } from "./names.js";
import { World } from "./world.js";

const READINESS_MS = 4000;
const gallery = new Gallery((id) => (location.hash = id));
let world = null;

async function route() {
  world?.close();
  world = null;
  const [id, share] = decodeURIComponent(location.hash.slice(1)).split("/");
  if (share?.startsWith("ms_")) { // never a key; nor does it stay in the address
    use(share);
    history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  }
  document.title = "mirage";
  if (id) await enter(new World(id, (other) => (location.hash = other)));
  else await gallery.show();
}

async function enter(next) {
  gallery.hide();
  world = next;
  try {
    await next.open();
    clearAlerts();
    if (world === next) document.title = `${nameOf(next.session)} · mirage`;
  } catch (error) {
    if (world !== next) return; // the visitor has gone elsewhere
    report(error);
    if (error.status === 401) await leaveAjar();
    else location.hash = "";
  }
}

/** The address still names the world, for when there is a key that opens it. */
async function leaveAjar() {
  world.close();
  world = null;
  await gallery.show();
}

async function watchServer() {
  const { ready, reason } = await readiness();
  byId("server").hidden = ready;
  byId("server").textContent = reason;
}

addEventListener("hashchange", route);
onEntered(route);
setInterval(watchServer, READINESS_MS);
watchServer();
route();
