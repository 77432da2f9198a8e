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
    frame.addEventListener("load", () => {
      measure();
      frame.contentDocument.addEventListener("toggle", measure, true);
    });
  }
}

function renew(old, fresh) {
  if (old && fresh && old.innerHTML !== fresh.innerHTML) old.replaceChildren(...fresh.childNodes);
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
  }
}

async function look() {
  if (document.hidden) return;
  const answer = await fetch(location.href);
  if (!answer.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  renew(document.getElementById("bar"), fresh.getElementById("bar"));
  const chatter = document.getElementById("chatter");
  if (chatter) renewChatter(chatter, fresh.getElementById("chatter"));
}

localize(document);
fit(document);
if (document.getElementById("bar")) setInterval(() => look().catch(() => {}), SECONDS * 1000);
