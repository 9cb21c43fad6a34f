"use strict";
(function () {
  const config = { responsive: true, displayModeBar: false, showSendToCloud: false, plotlyServerURL: "" };
  // The colours of the library's figures, and the site's in their place.
  const ofTheme = {
    white: "--color-background-primary", "#1d1d1f": "--color-foreground-primary", "#777777": "--color-foreground-muted",
    "#e8e8e8": "--color-background-border", "#0072B2": "--picture-blue",
  };

  function start(picture) {
    const { figures, positions } = JSON.parse(picture.querySelector("script").textContent);
    const slider = picture.querySelector("input");
    const plots = Array.from(picture.querySelectorAll(".plot"));
    let waiting;

    function coloured(figure) {
      const style = getComputedStyle(picture);
      const shade = (colour) => (ofTheme[colour] ? style.getPropertyValue(ofTheme[colour]).trim() : colour);
      return JSON.parse(JSON.stringify(figure), (key, value) => (/color$/.test(key) ? shade(value) : value));
    }

    function figure(at, onPaper) {
      const { data, layout } = onPaper ? JSON.parse(JSON.stringify(figures[at])) : coloured(figures[at]);
      const { moved } = positions[slider.value];
      data.forEach((trace, index) => Object.assign(trace, moved[at][index]));
      for (const axis of [layout.xaxis, layout.yaxis]) axis.fixedrange = true; // a finger that passes scrolls the page
      return { data, layout };
    }

    async function draw() {
      const { value, reading } = positions[slider.value];
      slider.setAttribute("aria-valuetext", value);
      picture.querySelector("output").textContent = value;
      picture.querySelector(".reading span").textContent = reading;
      for (const [at, plot] of plots.entries()) {
        const { data, layout } = figure(at);
        await Plotly.react(plot, data, layout, config);
      }
      clearTimeout(waiting);
      waiting = setTimeout(drawOnPaper, 400);
    }

    // Paper is white, and a drawing does not flow: a picture of where the slider stands is printed in its place.
    async function drawOnPaper() {
      for (const [at, plot] of plots.entries()) {
        const image = plot.parentNode.querySelector(".paper") || document.createElement("img");
        image.className = "paper";
        image.alt = plot.getAttribute("aria-label");
        image.src = await Plotly.toImage(figure(at, true), { format: "svg", width: 440, height: 330 });
        plot.after(image);
      }
    }

    for (const plot of plots) {
      plot.hidden = false;
      plot.parentNode.querySelector(".still").hidden = true;
    }
    picture.querySelector(".control").hidden = false;
    slider.addEventListener("input", draw);
    new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }

  document.querySelectorAll(".picture").forEach(start);
})();
