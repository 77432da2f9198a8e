// Without it all works: dates are in UTC then, a frame has one height, and what is new is there after a reload.
"use strict";
const SECONDS = 2; // between two looks at what is new

function localize(part) {
  for (const time of part.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
}

function fit(part) {
  for (const frame of part.querySelectorAll("iframe")) {
    const measure = () => {
      const body = frame.contentDocument && frame.contentDocument.body;
      if (body) frame.style.height = `${Math.min(body.offsetHeight + 16, 900)}px`;
    };
    // A frame in which nothing has the focus can have it all the same, to be scrolled: the browser draws no ring then.
    const ring = () => {
      frame.contentWindow.addEventListener("focus", () => {
        frame.classList.add("reached");
        frame.scrollIntoView({ block: "nearest" });
      });
      frame.contentWindow.addEventListener("blur", () => frame.classList.remove("reached"));
    };
    ring(); // one that is far below is not loaded yet
    frame.addEventListener("load", () => {
      ring();
      measure();
      frame.contentDocument.addEventListener("toggle", measure, true);
    });
  }
}

// Make a part say what a fresh one says. What is the same kind of thing stays: the focus is in it, or a person opened it.
function renew(old, fresh) {
  const known = [...old.childNodes];
  [...fresh.childNodes].forEach((node, place) => {
    const there = known[place];
    if (!there) old.append(node);
    else if (there.nodeName !== node.nodeName) there.replaceWith(node);
    else if (node.nodeType === Node.ELEMENT_NODE) renewElement(there, node);
    else if (there.data !== node.data) there.data = node.data;
  });
  known.slice(fresh.childNodes.length).forEach((node) => node.remove());
}

function renewElement(old, fresh) {
  for (const name of fresh.getAttributeNames()) old.setAttribute(name, fresh.getAttribute(name));
  for (const name of old.getAttributeNames()) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  renew(old, fresh);
}

// Put new messages in front, and what became of the others beside them; what is being read or written stays as it is.
function renewChatter(chatter, fresh) {
  for (const article of [...fresh.querySelectorAll("article")].reverse()) {
    const known = document.getElementById(article.id);
    if (known) {
      renew(known.querySelector(".state"), article.querySelector(".state"));
      continue;
    }
    localize(article);
    if (!chatter.querySelector("article")) chatter.replaceChildren();
    chatter.prepend(article);
    fit(article);
    document.getElementById("said").textContent = `New message: ${article.querySelector("h3").textContent}`;
  }
}

async function look() {
  if (document.hidden) return;
  const became = document.getElementById("became"); // of a mail that was tried: a page of its own goes on with it
  const answer = await fetch(became?.dataset.live || location.href);
  if (!answer.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const bar = fresh.getElementById("bar");
  if (bar) renew(document.getElementById("bar"), bar);
  const chatter = document.getElementById("chatter");
  if (chatter) renewChatter(chatter, fresh.getElementById("chatter"));
  if (became) renew(became, fresh.getElementById("became"));
}

// A file may be dropped anywhere on the page that asks for one.
function takeDropped(field) {
  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    field.files = event.dataTransfer.files;
  });
}

localize(document);
fit(document);
if (document.getElementById("file")) takeDropped(document.getElementById("file"));
if (document.getElementById("bar")) setInterval(() => look().catch(() => {}), SECONDS * 1000);
