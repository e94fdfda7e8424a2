"use strict";
// Draws the charts and lets them follow the explorer.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const charts = read("charts");
  const points = read("points");
  const slider = document.getElementById("at");
  const following = [];

  function move(place) {
    slider.value = place;
    const shown = points.names[place];
    document.getElementById("name").textContent = shown;
    slider.setAttribute("aria-valuetext", shown);
    const lines = document.querySelectorAll("#explorer tbody tr");
    points.rows.forEach((cells, row) => {
      lines[row].querySelectorAll("td").forEach((cell, k) => { cell.textContent = cells[place][k]; });
    });
    for (const view of following) view.signal("at", Number(place)).runAsync();
  }

  const drawn = Object.entries(charts).map(async ([id, chart]) => {
    const { view } = await vegaEmbed(`#${id}`, chart, { renderer: "svg", actions: false });
    if (!(chart.params || []).some((one) => one.name === "at")) return;
    following.push(view);
    // A click on a point of a chart moves there, too.
    view.addEventListener("click", (_, item) => {
      if (item && item.datum && Number.isInteger(item.datum.i)) move(item.datum.i);
    });
  });
  Promise.all(drawn).then(() => {
    if (slider) {
      slider.addEventListener("input", () => move(Number(slider.value)));
      move(Number(slider.value)); // a browser may remember another place
    }
    document.documentElement.dataset.ready = "yes";
  });
})();
