// The first page: sample worlds, an upload, and the worlds that already exist.

import { createSession, file, frameUrl, importWorld, listSamples, listSessions } from "./api.js";
import { alertUser, byId, clearAlerts, element, guarded } from "./dom.js";
import { factsOf, keep, nameOf } from "./names.js";

const MAX_UPLOAD_BYTES = 20 * 1024 * 1024;
const NONE_YET = "None yet. They outlive restarts of the server.";
const UNLISTED = {
  401: "They are listed once a key is entered above.",
  403: "A share link opens one world: that of the address it came with.",
};

export class Gallery {
  constructor(openWorld) {
    this.openWorld = openWorld;
    this.file = null;
    this.busy = false;
    byId("file").onchange = (event) => this.#choose(event.target.files[0]);
    byId("preview").onerror = () => this.#refuse();
    byId("upload").onsubmit = (event) => {
      event.preventDefault();
      this.#create({ file: this.file }, this.file.name.replace(/\.\w+$/, ""));
    };
    byId("import").onclick = () => byId("import-file").click();
    byId("import-file").onchange = (event) => this.#import(event.target);
    const drop = byId("drop");
    for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
      drop.addEventListener(type, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", type === "dragenter" || type === "dragover");
        if (type === "drop") this.#choose(event.dataTransfer.files[0]);
      });
    }
  }

  async show() {
    byId("gallery").hidden = false;
    await Promise.all([guarded(() => this.#showSamples()), guarded(() => this.#showWorlds())]);
  }

  hide() {
    byId("gallery").hidden = true;
  }

  async #showSamples() {
    const samples = await listSamples();
    fill(byId("samples"), samples.map((sample) => this.#sampleCard(sample)), "No sample worlds are installed.");
  }

  /** The newest ones; "More" brings the next page. */
  async #showWorlds() {
    try {
      const { sessions, next_cursor } = await listSessions();
      fill(byId("worlds"), sessions.map((session) => this.#worldRow(session)), NONE_YET);
      this.#offerMore(next_cursor);
    } catch (error) {
      fill(byId("worlds"), [], UNLISTED[error.status] ?? "They can't be listed now.");
      this.#offerMore(null);
      if (error.status !== 403) throw error;
    }
  }

  #offerMore(cursor) {
    const more = byId("more");
    more.hidden = cursor === null;
    more.disabled = false;
    more.onclick = () => guarded(async () => {
      more.disabled = true;
      const { sessions, next_cursor } = await listSessions(cursor).finally(() => (more.disabled = false));
      byId("worlds").append(...sessions.map((session) => this.#worldRow(session)));
      this.#offerMore(next_cursor);
    });
  }

  #choose(file) {
    if (!file) return;
    clearAlerts(); // about the picture before
    if (file.size > MAX_UPLOAD_BYTES) {
      alertUser({ title: "Too large", detail: `${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB; at most 20 MB are accepted.` });
      return;
    }
    this.file = file;
    const preview = byId("preview");
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    byId("drop-text").textContent = file.name;
    byId("create").disabled = false;
  }

  /** What the browser can't open, the server can't either. */
  #refuse() {
    byId("preview").hidden = true;
    byId("create").disabled = true;
    alertUser({ title: "No picture", detail: `${this.file.name} can't be opened: choose a PNG, JPEG or WebP.` });
  }

  /** source: {file} or {sample}; the options beside the upload apply to both. name: what the world is called here. */
  async #create(source, name) {
    const options = { memory: document.querySelector("input[name=memory]:checked").value, seed: byId("seed").value };
    if (source.file) options.fov_deg = byId("fov").value;
    await this.#open(() => createSession({ ...source, ...options }), name);
  }

  async #import(input) {
    const [chosen] = input.files;
    input.value = ""; // so that the same file can be chosen again
    if (chosen) await this.#open(() => importWorld(chosen), chosen.name.replace(/(\.mirage)?\.tar$/, ""));
  }

  /** make: has the server make a world. */
  async #open(make, name) {
    if (this.busy) return;
    this.busy = true;
    const session = await guarded(make);
    this.busy = false;
    if (!session) return;
    keep(session.id, name);
    this.openWorld(session.id);
  }

  #sampleCard(sample) {
    const picture = element("img", { alt: "" });
    showFile(picture, sample.image);
    const card = element("button", { className: "card", title: sample.description ?? "" },
      picture,
      element("strong", { textContent: sample.title }),
      element("span", { textContent: sample.description ?? "" }));
    card.onclick = () => this.#create({ sample: sample.name }, sample.title);
    return card;
  }

  #worldRow(session) {
    const thumbnail = element("img", { alt: "", loading: "lazy" });
    if (session.num_frames) showFile(thumbnail, frameUrl(session.id, session.num_frames - 1));
    else thumbnail.classList.add("missing");
    const row = element("button", { className: "row", title: session.id }, thumbnail,
      element("span", {}, element("strong", { textContent: nameOf(session) }),
        element("small", { textContent: factsOf(session) }),
        element("small", { textContent: `${session.memory === "null" ? "no" : session.memory} memory · ${session.state}` })));
    row.onclick = () => this.openWorld(session.id);
    return row;
  }
}

/** Pictures are fetched, as an address in `src` could carry no key. */
async function showFile(image, path) {
  const blob = await file(path).catch(() => null);
  if (blob === null) {
    image.classList.add("missing"); // none yet, or none any more
    return;
  }
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
}

function fill(box, items, whenEmpty) {
  box.replaceChildren(...(items.length ? items : [element("p", { className: "empty", textContent: whenEmpty })]));
}
