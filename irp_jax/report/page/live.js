"use strict";
// Loads the page again when results have changed. The scroll position is kept by the browser.
{
  const state = document.getElementById("state");
  let shown = null;
  setInterval(async () => {
    try {
      const answer = await fetch("stamp", { cache: "no-store" });
      const now = await answer.text();
      if (shown !== null && now !== shown) location.reload();
      shown = now;
      state.textContent = "This page follows its runs.";
    } catch {
      state.textContent = "The command that serves this page has ended. This is the last state.";
    }
  }, 2000);
}
