// The few things the pages do with the document. Text always goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const NOTICE_MS = 12_000;

/** What went wrong, and with which fields; the server's `detail` tells of the first one already. */
export function describe(problem) {
  const detail = problem.detail ?? problem.message ?? String(problem);
  const others = (problem.errors ?? []).slice(1);
  return [detail, ...others.map((e) => `${e.field}: ${e.allowed}; got ${e.seen}.`)].join(" ");
}

/** Show what happened until it is clicked away or old. */
function notify(className, title, detail) {
  const close = element("button", { title: "dismiss", textContent: "×" });
  const notice = element("div", { className },
    element("strong", { textContent: title }), element("span", { textContent: detail }), close);
  close.onclick = () => notice.remove();
  byId("alerts").replaceChildren(notice);
  setTimeout(() => notice.remove(), NOTICE_MS);
}

/** Show an error: ours, or the server's problem details. */
export const alertUser = (error) => notify("alert", error.title ?? "Something went wrong", describe(error));

/** Put a link on the clipboard; where the page may not (plain HTTP), the visitor does. */
export async function copy(link, detail) {
  try {
    await navigator.clipboard.writeText(link);
    notify("alert news", "Link copied", detail);
  } catch {
    prompt(`${detail} The link to copy:`, link);
  }
}

/** What was said last is settled. */
export const clearAlerts = () => byId("alerts").replaceChildren();

export function report(error) {
  if (error.isAsked) return;
  console.error(error);
  alertUser(error);
}

/** Run an action of the visitor; what goes wrong is shown instead of lost. */
export async function guarded(action) {
  try {
    return await action();
  } catch (error) {
    report(error);
    return undefined;
  }
}

/** Do it on each click, but not again while it is under way. */
export function onClick(button, action) {
  button.onclick = async () => {
    if (button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    await guarded(action);
    button.ariaBusy = "false";
  };
}

export const counted = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  URL.revokeObjectURL(href);
}

export const formatMoment = (moment) => new Date(moment).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export function formatBytes(count) {
  if (count < 1024) return `${count} B`;
  const power = Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** power).toFixed(1)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}
