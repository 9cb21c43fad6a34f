"use strict";
(function () {
  const plots = Array.from(document.querySelectorAll(".plot"));
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    // Newer plotly.js offers to send the chart to its maker's server; records stay where they are.
    showSendToCloud: false,
    plotlyServerURL: "",
  };
  for (const plot of plots) {
    const spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
    const toImageButtonOptions = { format: "svg", filename: plot.dataset.spec.replace("spec-", "") };
    Plotly.newPlot(plot, spec.data, spec.layout, { ...config, toImageButtonOptions });
  }
  // Paper is narrower than the window, and drawings do not flow: they are drawn again at the paper's width.
  window.addEventListener("beforeprint", () => {
    for (const plot of plots) Plotly.relayout(plot, { width: 660, height: 300 });
  });
  window.addEventListener("afterprint", () => {
    for (const plot of plots) Plotly.relayout(plot, { width: null, height: 360, autosize: true });
  });
})();
