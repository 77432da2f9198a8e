// Without it all works: dates are in UTC then, and a frame has one height.
"use strict";
for (const time of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(time.dateTime);
  time.title = time.textContent;
  time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
for (const frame of document.querySelectorAll("iframe")) {
  const fit = () => {
    const body = frame.contentDocument && frame.contentDocument.body;
    if (body) frame.style.height = `${Math.min(body.offsetHeight + 16, 900)}px`;
  };
  frame.addEventListener("load", () => {
    fit();
    frame.contentDocument.addEventListener("toggle", fit, true);
  });
}
