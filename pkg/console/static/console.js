// Keeps a page up to date: its own address gives its content again, as server-sent events. Everything works without this.

const content = document.getElementById("content");
const live = document.getElementById("live");

// same tells whether two nodes speak of the same thing.
function same(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName &&
    (a.nodeType !== Node.ELEMENT_NODE || (a.id === b.id && a.dataset?.key === b.dataset?.key));
}

// become makes a node equal to another one, and keeps what is equal already: focus, selection and scrolling stay.
function become(node, next) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.nodeValue !== next.nodeValue) node.nodeValue = next.nodeValue;
    return;
  }
  const kept = node.localName === "details" ? "open" : "";
  for (const { name } of [...node.attributes]) if (!next.hasAttribute(name) && name !== kept) node.removeAttribute(name);
  for (const { name, value } of next.attributes) if (node.getAttribute(name) !== value && name !== kept) node.setAttribute(name, value);
  if (node.localName !== "input") children(node, next);
}

function children(node, next) {
  const keyed = new Map();
  for (const child of node.children) {
    const key = child.dataset.key ?? child.id;
    if (key) keyed.set(key, child);
  }
  let at = node.firstChild;
  for (const want of [...next.childNodes]) {
    const key = want.dataset?.key ?? want.id;
    const found = key ? keyed.get(key) : undefined;
    if (found && found !== at && same(found, want)) node.insertBefore(found, at);
    const here = found && same(found, want) ? found : at;
    if (here && same(here, want)) {
      become(here, want);
      at = here.nextSibling;
    } else {
      node.insertBefore(document.importNode(want, true), at);
    }
  }
  while (at) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}

// follow is done while the page is seen: browsers have few connections for all tabs of one site.
function follow() {
  if (document.hidden) {
    document.addEventListener("visibilitychange", follow, { once: true });
    return;
  }
  const source = new EventSource(location.pathname + location.search);
  source.addEventListener("content", (e) => {
    const next = new DOMParser().parseFromString(e.data, "text/html").body;
    // Space around what the server sends is no difference.
    const box = document.createElement("main");
    box.append(...[...next.childNodes].filter((n) => n.nodeType !== Node.TEXT_NODE || n.nodeValue.trim()));
    for (const n of [...content.childNodes]) if (n.nodeType === Node.TEXT_NODE && !n.nodeValue.trim()) n.remove();
    children(content, box);
    const state = document.querySelector("#daemon .state");
    const now = document.getElementById("head")?.dataset.daemon;
    if (state && now) {
      state.textContent = now;
      state.className = now === "ready" ? "state good" : "state warn";
    }
    live.textContent = "live";
    live.className = "live on";
  });
  const hide = () => {
    if (!document.hidden) return;
    document.removeEventListener("visibilitychange", hide);
    source.close();
    follow();
  };
  document.addEventListener("visibilitychange", hide);
  source.addEventListener("gone", () => {
    document.removeEventListener("visibilitychange", hide);
    source.close();
    live.textContent = "ended";
    live.className = "live";
  });
  source.onerror = () => {
    live.textContent = source.readyState === EventSource.CLOSED ? "not live" : "reconnecting";
    live.className = "live";
  };
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });
}

function switchTheme() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const name = () => { button.textContent = now() === "dark" ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = now() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("edged-theme", next); } catch { /* for this page only */ }
    name();
  });
  dark.addEventListener("change", name);
  name();
}

switchTheme();
if (content.dataset.still === undefined) follow();
