"use strict";
// Fetches the page again and exchanges the parts that have changed; what a reader has selected or unfolded stays.
const ACTIVE_SECONDS = 2, QUIET_SECONDS = 10;
const live = document.getElementById("live");
const shown = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part.id, part.outerHTML]));

function exchange(page) {
  const selection = getSelection();
  for (const fresh of page.querySelectorAll("[data-part]")) {
    const part = document.getElementById(fresh.id), text = fresh.outerHTML;
    const selected = !selection.isCollapsed && selection.containsNode(part, true);
    if (selected || shown.get(fresh.id) === text) continue;
    const focus = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
    part.replaceWith(document.adoptNode(fresh));
    shown.set(fresh.id, text);
    if (focus) fresh.querySelector(`[href="${CSS.escape(focus)}"]`)?.focus();
  }
}

async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href, { cache: "no-store", headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.status);
      exchange(new DOMParser().parseFromString(await answer.text(), "text/html"));
      tell();
    } catch {
      tell("no answer");
    }
  }
  setTimeout(refresh, seconds() * 1000);
}

function seconds() {
  return document.querySelector('[data-active="yes"]') ? ACTIVE_SECONDS : QUIET_SECONDS;
}

function tell(problem) {
  const text = problem ? `${problem}: what you see is old` : `live, every ${seconds()} s`;
  if (live.textContent !== text) live.textContent = text;
  live.classList.toggle("lost", Boolean(problem));
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1200);
});

document.documentElement.classList.add("script");
tell();
setTimeout(refresh, seconds() * 1000);
