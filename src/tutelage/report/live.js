"use strict";
// The page of `tutelage watch`: asks for the report again, and puts what is new in the place of the old.
(function () {
  const EVERY = 2000;
  let known = document.getElementById("live").dataset.tag;

  function age() {
    const line = document.getElementById("live");
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - Number(line.dataset.written)));
    const minutes = Math.floor(seconds / 60);
    const ago = seconds < 120 ? `${seconds} s` : minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
    line.querySelector(".age").textContent = `; last record ${ago} ago`;
  }

  function replace(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const old = new Map(Array.from(document.querySelectorAll("main figure"), (figure) => [figure.id, figure]));
    const figures = Array.from(fresh.querySelectorAll("main figure"));
    if (figures.length !== old.size || figures.some((figure) => !old.has(figure.id))) {
      location.reload(); // It keeps the place on the page.
      return;
    }
    // Figures that are there stay, with what was zoomed and switched off.
    for (const figure of figures) {
      const kept = old.get(figure.id);
      for (const part of ["script", "figcaption"]) kept.querySelector(part).textContent = figure.querySelector(part).textContent;
      figure.replaceWith(kept);
    }
    document.title = fresh.title;
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    age();
    document.dispatchEvent(new Event("records"));
  }

  async function ask() {
    const line = document.getElementById("live");
    try {
      const answer = await fetch("/", { cache: "no-cache" });
      const tag = answer.headers.get("ETag");
      if (answer.ok && tag !== known) replace(await answer.text());
      if (answer.ok) known = tag;
      document.getElementById("live").classList.remove("ended");
    } catch {
      line.classList.add("ended");
    }
    setTimeout(ask, EVERY);
  }

  age();
  setInterval(age, 1000);
  setTimeout(ask, EVERY);
})();
