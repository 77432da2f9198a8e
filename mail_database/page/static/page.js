// Without it all works: dates are in UTC then, and a frame has one height.
"use strict";
for (const time of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(time.dateTime);
  time.title = time.textContent;
  time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
for (const frame of document.querySelectorAll("iframe")) {
  const fit = () => {
    const root = frame.contentDocument && frame.contentDocument.documentElement;
    if (root) frame.style.height = `${Math.min(root.scrollHeight + 8, 900)}px`;
  };
  frame.addEventListener("load", () => {
    fit();
    frame.contentDocument.addEventListener("toggle", fit, true);
  });
}
