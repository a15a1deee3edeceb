"use strict";
// The seeds behind each row of results.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = [...document.querySelectorAll(".board tbody tr")];
  const everyDot = document.getElementById("dots");
  const plain = new Set(data.plain.map((cell) => `c${cell}`));
  // Scores are in percent, or in units of their own.
  const told = (row, value, digits = 2) =>
    value === null ? "–" : plain.has(row.id) ? String(Number(value.toPrecision(4))) : value.toFixed(digits);

  const make = (name, attributes = {}, ...children) => {
    const element = name.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  const detailOf = (row) => (row.nextElementSibling?.matches(".detail") ? row.nextElementSibling : null);
  const seedsOf = (row) => data.seeds[row.id.slice(1)] ?? [];
  const rangeOf = new Map();
  const range = (row) => {
    // As the strips have it: scores in percent and scores with units are on scales of their own.
    const units = plain.has(row.id);
    const setting = `${row.dataset.task}\n${row.dataset.backbone}\n${units}`;
    if (!rangeOf.has(setting)) {
      const scores = rows
        .filter(
          (other) =>
            other.dataset.task === row.dataset.task &&
            other.dataset.backbone === row.dataset.backbone &&
            plain.has(other.id) === units,
        )
        .flatMap((other) => seedsOf(other).map((seed) => seed[1]).filter((score) => score !== null));
      const [low, high] = scores.reduce(([a, b], s) => [Math.min(a, s), Math.max(b, s)], [Infinity, -Infinity]);
      const whole = units ? Math.max(Math.abs(low), Math.abs(high)) : 100;
      const pad = Math.max(0.08 * (high - low), 0.002 * whole) || 1;
      rangeOf.set(setting, [low - pad, high + pad]);
    }
    return rangeOf.get(setting);
  };
  // How many earlier dots each covers, so that equal seeds stand above one another.
  const covered = (places, width) =>
    places.map((x, i) => places.slice(0, i).filter((other) => Math.abs(other - x) < width).length);
  const dots = () => {
    document.querySelectorAll(".track s").forEach((dot) => dot.remove());
    if (!everyDot.checked) return;
    for (const row of rows) {
      const track = row.querySelector(".track");
      if (!track) continue;
      const [low, high] = range(row);
      const known = seedsOf(row).filter((seed) => seed[1] !== null);
      const places = known.map((seed) => (100 * (seed[1] - low)) / (high - low));
      const above = covered(places, 1);
      known.forEach(([seed, score], i) => {
        const style = `left:${places[i]}%;margin-top:${-3 * above[i]}px`;
        track.append(make("s", { style, title: `seed ${seed}: ${told(row, score)}` }));
      });
    }
  };
  everyDot.addEventListener("change", dots);

  const plot = (row, seeds) => {
    const [low, high] = range(row);
    const x = (score) => 10 + (480 * (score - low)) / (high - low);
    const known = seeds.filter((seed) => seed[1] !== null);
    const label = known.map(([seed, score]) => `seed ${seed}: ${told(row, score)}`).join(", ");
    const drawn = make("svg:svg", { class: "plot", viewBox: "0 0 500 44", role: "img", "aria-label": label });
    drawn.append(make("svg:line", { x1: 10, x2: 490, y1: 20, y2: 20, stroke: "var(--rule)" }));
    for (const [at, anchor] of [[low, "start"], [high, "end"]]) {
      drawn.append(make("svg:text", { x: x(at), y: 40, "text-anchor": anchor }, told(row, at, 1)));
    }
    const above = covered(known.map((seed) => x(seed[1])), 4);
    known.forEach(([seed, score], i) => {
      const dot = make("svg:circle", {
        cx: x(score), cy: 20 - 4 * above[i], r: 5, fill: "var(--paper)", stroke: "var(--tone)", "stroke-width": 1.5,
      });
      dot.append(make("svg:title", {}, `seed ${seed}: ${told(row, score)}`));
      drawn.append(dot);
    });
    return drawn;
  };
  const run = (experiment, id) => {
    if (!id) return "–";
    const link = data.links[experiment];
    const code = make("code", {}, id);
    return link ? make("a", { href: link + (data.moved[id] || id) }, code) : code;
  };
  const detail = (row) => {
    const seeds = seedsOf(row);
    const table = make("table", { "aria-label": "Seeds of this row" });
    const head = make("tr");
    const mark = plain.has(row.id) ? "" : ", %";
    for (const name of ["Seed", `Score${mark}`, `Validation${mark}`, "State", "MLflow run", "Trial"]) {
      head.append(make("th", { scope: "col", class: /^(Seed|Score|Validation)/.test(name) ? "n" : "" }, name));
    }
    table.append(make("thead", {}, head));
    const lines = make("tbody");
    for (const [seed, score, validation, status, runId, trial, failure, experiment] of seeds) {
      const state = failure || status.toLowerCase();
      lines.append(
        make(
          "tr", {},
          make("td", { class: "n" }, String(seed)),
          make("td", { class: "n" }, told(row, score)),
          make("td", { class: "n" }, told(row, validation)),
          make("td", { class: status === "FINISHED" ? "" : "warn" }, state),
          make("td", {}, run(experiment, runId)),
          make("td", {}, make("code", {}, trial)),
        ),
      );
    }
    table.append(lines);
    const cell = make("td", { colspan: row.cells.length });
    if (seeds.some((seed) => seed[1] !== null)) cell.append(plot(row, seeds));
    cell.append(table);
    const suite = make("pre", { class: "suite-lines" }, data.suites[row.id.slice(1)]);
    cell.append(make("details", {}, make("summary", {}, "Suite that made this row, to copy"), suite));
    const tone = [...row.classList].find((name) => /^s\d$/.test(name));
    return make("tr", { class: `detail ${tone}`, id: `${row.id}-seeds` }, cell);
  };
  const open = (row, wanted) => {
    const button = row.querySelector(".open");
    const known = detailOf(row);
    if (wanted ?? !known) {
      if (!known) row.after(detail(row));
      button.setAttribute("aria-controls", `${row.id}-seeds`);
    } else known?.remove();
    button.setAttribute("aria-expanded", String(Boolean(detailOf(row))));
  };
  for (const row of rows) {
    row.querySelector(".open").addEventListener("click", () => open(row));
    row.addEventListener("follow", () => open(row, true));
  }
})();
