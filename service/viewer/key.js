// The visitor's API key, where the server requires one: asked for on the first 401, kept for this tab alone.

import { byId } from "./dom.js";

const NAME = "mirage-key";

export const isKnown = () => sessionStorage.getItem(NAME) !== null;

/** Whether it is a share link's: good for looking at one world, or walking there. */
export const isShare = () => isKnown() && sessionStorage.getItem(NAME).startsWith("ms_");

export const use = (text) => sessionStorage.setItem(NAME, text);

export const headers = () => (isKnown() ? { authorization: `Bearer ${sessionStorage.getItem(NAME)}` } : {});

/** Show the place to enter one; what was entered before was refused. */
export function ask() {
  byId("key").hidden = false;
  byId("key-text").focus();
}

/** `changed` is called once there is another key, or none. */
export function onEntered(changed) {
  byId("key").hidden = !isKnown();
  byId("key").onsubmit = (event) => {
    event.preventDefault();
    const text = byId("key-text").value.trim();
    if (text) use(text);
    else sessionStorage.removeItem(NAME);
    byId("key-text").value = "";
    byId("key-text").placeholder = text ? "another key" : "mk_...";
    byId("alerts").replaceChildren(); // about the key that was there before
    changed();
  };
}
