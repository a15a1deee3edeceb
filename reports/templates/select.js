"use strict";
// The one selector of the page. What is chosen stands in the address, so that a link shows the same.
(() => {
  const form = document.getElementById("selector");
  const dimensions = [...form.querySelectorAll("select")].map((select) => select.name);
  const marked = document.querySelectorAll([...dimensions, "method", "scope"].map((name) => `[data-${name}]`).join());
  const parts = document.querySelectorAll(".part, .setting, .heat");

  const chosen = () => dimensions.map((name) => [name, form.elements[name].value]).filter(([, value]) => value);
  const address = () => {
    const asked = new URLSearchParams(chosen());
    const method = form.elements.method.value.trim();
    if (method) asked.set("method", method);
    const query = asked.size ? `?${asked}` : "";
    try {
      history.replaceState(null, "", location.pathname + query + location.hash);
    } catch {
      // Some browsers let a page from a file have no address but its own.
    }
  };

  const fits = (element, wanted, text, one) => {
    const { scope, method } = element.dataset;
    if (scope && (scope === "one") !== one) return false;
    if (text && method !== undefined && !method.toLowerCase().includes(text)) return false;
    return wanted.every(
      ([name, value]) => !(name in element.dataset) || element.dataset[name].split("\n").includes(value),
    );
  };
  const show = () => {
    const wanted = chosen();
    const text = form.elements.method.value.trim().toLowerCase();
    const one = wanted.some(([name]) => name === "task" || name === "backbone");
    for (const element of marked) {
      element.hidden = !fits(element, wanted, text, one);
      const detail = element.nextElementSibling;
      if (detail?.matches(".detail")) detail.hidden = element.hidden;
    }
    // A table of which nothing is left says nothing: its frame goes with it. Inner frames come later.
    for (const part of [...parts].reverse()) {
      const rows = [...part.querySelectorAll("tbody tr")];
      part.classList.toggle("empty", rows.length > 0 && !rows.some((row) => !row.closest("[hidden]")));
    }
    if (wanted.length || text) for (const list of document.querySelectorAll("details.setting")) list.open = true;
    const rows = [...document.querySelectorAll(".board tbody tr[id^=c]:not(.detail)")];
    const shown = rows.filter((row) => !row.closest("[hidden]")).length;
    document.getElementById("shown").textContent =
      shown === rows.length ? `all ${shown} results` : `${shown} of ${rows.length} results`;
    dispatchEvent(new Event("shown"));
  };
  const changed = () => {
    show();
    address();
  };
  const clear = () => {
    form.reset();
    changed();
  };

  const asked = new URLSearchParams(location.search);
  for (const name of dimensions) {
    const select = form.elements[name];
    const value = asked.get(name);
    if ([...select.options].some((option) => option.value === value)) select.value = value;
  }
  form.elements.method.value = asked.get("method") ?? "";
  for (const type of ["input", "change"]) form.addEventListener(type, changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.clear.addEventListener("click", clear);
  // A link shows what it leads to, whatever is chosen.
  document.addEventListener("follow", ({ target }) => target.closest("[hidden]") && clear());
  show();
})();
