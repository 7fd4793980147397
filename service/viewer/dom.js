// The few things the pages do with the document. Text always goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const ALERT_MS = 12_000;

/** What went wrong, and with which fields; the server's `detail` tells of the first one already. */
export function describe(problem) {
  const detail = problem.detail ?? problem.message ?? String(problem);
  const others = (problem.errors ?? []).slice(1);
  return [detail, ...others.map((e) => `${e.field}: ${e.allowed}; got ${e.seen}.`)].join(" ");
}

/** Show an error (ours, or the server's problem details) until it is clicked away or old. */
export function alertUser(error) {
  const close = element("button", { title: "dismiss", textContent: "×" });
  const alert = element("div", { className: "alert" },
    element("strong", { textContent: error.title ?? "Something went wrong" }),
    element("span", { textContent: describe(error) }), close);
  close.onclick = () => alert.remove();
  byId("alerts").replaceChildren(alert);
  setTimeout(() => alert.remove(), ALERT_MS);
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

export const counted = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  URL.revokeObjectURL(href);
}

export function formatBytes(count) {
  if (count < 1024) return `${count} B`;
  const power = Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** power).toFixed(1)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}
