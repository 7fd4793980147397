// Two pages in one document: the gallery, and a world (#its-id). The address bar says which, so a reload comes back.

import { readiness } from "./api.js";
import { byId, clearAlerts, guarded } from "./dom.js";
import { Gallery } from "./gallery.js";
import { onEntered } from "./key.js";
import { World } from "./world.js";

const READINESS_MS = 4000;
const gallery = new Gallery((id) => (location.hash = id));
let world = null;

async function route() {
  world?.close();
  world = null;
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id) {
    await gallery.show();
    return;
  }
  gallery.hide();
  world = new World(id, () => (location.hash = ""));
  const opened = await guarded(async () => {
    await world.open();
    return true;
  });
  if (opened) clearAlerts();
  else location.hash = "";
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
