"use strict";
(async function () {
  const plots = Array.from(document.querySelectorAll(".plot"));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    // Newer plotly.js offers to send the chart to its maker's server; records stay where they are.
    showSendToCloud: false,
    plotlyServerURL: "",
  };
  // The figures' colours on a dark page; those of curves are readable on both.
  const onDark = {
    white: "#15171a", "#1d1d1f": "#ececee", "#e8e8e8": "#30343a", "#777777": "#9a9fa8", "#999999": "#7d828b",
    "#000000": "#ffffff", "#0072B2": "#1b87cf", "rgba(0,0,0,0.08)": "rgba(255,255,255,0.1)",
    "rgba(0,0,0,0.16)": "rgba(255,255,255,0.18)",
  };

  function spec(plot, paper) {
    const text = document.getElementById(plot.dataset.spec).textContent;
    if (!dark.matches || paper) return JSON.parse(text);
    const shade = (colour) => onDark[colour] || colour;
    // By key, as a class may be called "white".
    return JSON.parse(text, (key, value) => !/color$/.test(key) ? value : Array.isArray(value) ? value.map(shade) : shade(value));
  }

  function figure(plot, paper) {
    const { data, layout } = spec(plot, paper);
    // What was switched off stays off, and what was zoomed stays so; a report that grows may have other lines than before.
    const same = (trace) => (other) => other.name === trace.name && other.legendgroup === trace.legendgroup;
    if (plot.data) data.forEach((trace) => { trace.visible = plot.data.find(same(trace))?.visible ?? trace.visible; });
    for (const axis of [layout.xaxis, layout.yaxis]) axis.uirevision = "kept";
    return { data, layout };
  }

  function draw(plot) {
    const { data, layout } = figure(plot);
    const toImageButtonOptions = { format: "svg", filename: plot.dataset.spec.replace("spec-", "") };
    // Its buttons would cover the title of a narrow figure.
    const displayModeBar = plot.clientWidth < 470 ? false : "hover";
    return Plotly.react(plot, data, layout, { ...config, displayModeBar, toImageButtonOptions });
  }

  // Paper is white and narrower than the window, drawings do not flow, and nothing waits for one when the page is printed:
  // each has a picture for paper.
  async function drawOnPaper(plot) {
    const picture = plot.parentNode.querySelector(".paper") || document.createElement("img");
    picture.className = "paper";
    picture.alt = plot.getAttribute("aria-label");
    const { data, layout } = figure(plot, true);
    // A legend below the axis is so by a share of the height.
    if (layout.legend.y < 0) layout.legend.y *= 1.5;
    picture.src = await Plotly.toImage({ data, layout }, { format: "svg", width: 660, height: 255 });
    plot.after(picture);
  }

  // plotly.js listens to the mouse alone: its legend as buttons for the keyboard.
  function legendByKeyboard(plot) {
    const listed = plot._fullData.filter((trace) => trace.showlegend);
    plot.querySelectorAll(".legendtoggle").forEach((item, at) => {
      const trace = listed[at];
      if (!trace) return;
      item.setAttribute("tabindex", "0");
      item.setAttribute("role", "button");
      item.setAttribute("aria-label", trace.name);
      item.setAttribute("aria-pressed", String(trace.visible === true));
      item.onkeydown = async (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        const group = plot._fullData.filter((other) => other === trace || (trace.legendgroup && other.legendgroup === trace.legendgroup));
        await Plotly.restyle(plot, { visible: trace.visible === true ? "legendonly" : true }, group.map((other) => other.index));
        plot.querySelectorAll(".legendtoggle")[at]?.focus();
      };
    });
  }

  // Nothing is in a drawing alone: its numbers as a table, made when it is opened.
  function asTable(plot) {
    const { data, layout } = spec(plot, true);
    const named = data.filter((trace) => trace.hoverinfo !== "skip" || trace.showlegend !== false);
    const label = (trace, at) => (trace.text ? trace.text[at] : trace.x[at]);
    const rows = new Map();
    named.forEach((trace, column) => trace.x.forEach((_, at) => {
      const key = label(trace, at);
      if (!rows.has(key)) rows.set(key, []);
      rows.get(key)[column] = trace.y[at];
    }));
    const decode = (text) => new DOMParser().parseFromString(String(text), "text/html").documentElement.textContent;
    const table = document.createElement("table");
    table.className = "numbers";
    const head = table.createTHead().insertRow();
    for (const name of [layout.xaxis.title.text, ...named.map((trace) => trace.name || layout.yaxis.title.text)]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = decode(name);
      head.append(cell);
    }
    const body = table.createTBody();
    for (const [key, values] of rows) {
      const row = body.insertRow();
      const first = document.createElement("th");
      first.scope = "row";
      first.textContent = typeof key === "number" ? Number(key.toPrecision(6)) : decode(key);
      row.append(first);
      named.forEach((_, at) => {
        const value = values[at];
        row.insertCell().textContent = typeof value === "number" ? Number(value.toPrecision(6)) : "–";
      });
    }
    return table;
  }

  for (const plot of plots) {
    const details = document.createElement("details");
    const region = document.createElement("div");
    Object.assign(region, { className: "wide", tabIndex: 0, role: "region", ariaLabel: "Numbers of this figure" });
    details.append(Object.assign(document.createElement("summary"), { textContent: "The numbers as a table" }), region);
    details.addEventListener("toggle", () => { if (!region.firstChild) region.append(asTable(plot)); });
    plot.closest("figure").append(details);
  }

  if (typeof DecompressionStream === "undefined") {
    document.getElementById("no-figures").hidden = false;
    for (const plot of plots) plot.hidden = true;
    return;
  }
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  for (const plot of plots) {
    await draw(plot);
    plot.on("plotly_afterplot", () => legendByKeyboard(plot));
    legendByKeyboard(plot);
    plot.on("plotly_restyle", () => drawOnPaper(plot));
  }
  dark.addEventListener("change", () => plots.forEach(draw));
  document.addEventListener("records", async () => { // of `tutelage watch`: the figures have other numbers
    for (const plot of plots) {
      await draw(plot);
      const region = plot.closest("figure").querySelector("details .wide");
      if (region.firstChild) region.replaceChildren(asTable(plot));
    }
    for (const plot of plots) await drawOnPaper(plot);
  });
  for (const plot of plots) await drawOnPaper(plot);
})();
