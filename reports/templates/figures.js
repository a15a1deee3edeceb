"use strict";
// Draws figures by plotly when they come into view; until then, and in print, the static ones stand.
(() => {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const rendered = (variable) => {
    probe.style.color = variable;
    return getComputedStyle(probe).color;
  };
  // Variables of the style sheet mean nothing to plotly. Only what is a colour is read: names may look like one.
  const themed = (value, key = "") => {
    if (Array.isArray(value)) return value.map((item) => themed(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, themed(item, name)]));
    }
    const colour = /colou?r$/i.test(key) && typeof value === "string" && value.startsWith("var(--");
    return colour ? rendered(value) : value;
  };
  const options = {
    responsive: true,
    displayModeBar: false,
  };
  const draw = (figure) => {
    const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
    const live = figure.querySelector(".live");
    for (const trace of data) {
      trace.hovertext = trace.hovertext?.map((text) => text.replace(/^.*/, "<b>$&</b>").replaceAll("\n", "<br>"));
    }
    // A finger scrolls the page.
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
    figure.classList.add("drawn");
    // On a phone names of lines stand one below the other.
    const named = data.filter((trace) => trace.showlegend !== false);
    if (live.clientWidth < 600 && named.length > 6) layout.height += 20 * named.length;
    Plotly.react(live, themed(data), themed(layout), options).then(() => {
      for (const svg of live.querySelectorAll("svg")) svg.setAttribute("aria-label", live.ariaLabel);
    });
  };
  const drawn = () => document.querySelectorAll("figure.drawn");
  const redraw = () => drawn().forEach(draw);
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "400px" },
  );
  for (const live of document.querySelectorAll("figure > .live")) near.observe(live.parentElement);
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // What was hidden when the page was resized or filtered has the size of then.
  addEventListener("shown", () => {
    for (const figure of drawn()) if (figure.offsetParent) Plotly.Plots.resize(figure.querySelector(".live"));
  });
})();
