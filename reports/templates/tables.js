"use strict";
// What all tables of the page share: they sort by any column, they name their fields where a phone shows them
// as cards, and what is too wide scrolls in a frame of its own.
(() => {
  document.documentElement.classList.add("scripted");

  const headsOf = (table) => [...(table.tHead?.rows[0]?.cells ?? [])];
  const number = (text) => parseFloat(text.replaceAll("−", "-").replaceAll(/[,<\s]/g, ""));
  const key = (row, column, numeric) => {
    const cell = row.cells[column];
    // A number's interval stands behind it in an element of its own, and would be digits of it.
    const value = cell?.dataset.v ?? (numeric ? cell?.firstChild : cell)?.textContent.trim() ?? "";
    return numeric ? number(value) : value.toLowerCase();
  };

  const sort = (table, head) => {
    const heads = headsOf(table);
    const column = heads.indexOf(head);
    const numeric = head.matches(".n");
    const before = head.getAttribute("aria-sort");
    // Numbers start with the largest, names with A.
    const descending = before ? before === "ascending" : numeric;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    for (const body of table.tBodies) {
      // The heading of a group stays on top.
      const rows = [...body.rows].filter((row) => row.cells.length === heads.length);
      const keyed = rows.map((row, index) => [key(row, column, numeric), index, row]);
      keyed.sort(([a, i], [b, j]) => {
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || i - j;
        const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return (descending ? -order : order) || i - j;
      });
      for (const [, , row] of keyed) body.append(row);
    }
  };

  // The heads of a table are one stop of the tab key; arrows go from head to head.
  const walk = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const buttons = [...event.currentTarget.querySelectorAll(".sorter")].filter((one) => one.getClientRects().length);
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!next) return;
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
    event.preventDefault();
  };

  for (const table of document.querySelectorAll("table")) {
    const heads = headsOf(table);
    heads.forEach((head, place) => {
      const label = head.childNodes[0]?.textContent.trim() ?? "";
      if (table.matches(".cards")) {
        for (const body of table.tBodies) {
          for (const row of body.rows) if (row.cells.length === heads.length) row.cells[place].dataset.l = label;
        }
      }
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "sorter", tabIndex: place ? -1 : 0 });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head));
    });
    table.tHead?.addEventListener("keydown", walk);
  }

  // A frame that scrolls can be reached by the keyboard; one that does not is no stop of it.
  const frames = document.querySelectorAll(".scroll");
  const measure = () => {
    for (const frame of frames) {
      frame.classList.remove("over");
      if (frame.scrollWidth <= frame.clientWidth + 1) frame.removeAttribute("tabindex");
      else {
        frame.classList.add("over");
        frame.tabIndex = 0;
      }
    }
  };
  addEventListener("resize", measure);
  addEventListener("shown", measure);
  document.addEventListener("toggle", measure, true);
  measure();

  // A link opens every list that its target lies in.
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let list = target.closest("details"); list; list = list.parentElement.closest("details")) list.open = true;
    target.scrollIntoView({ block: target.matches("td") ? "center" : "start" });
  };
  addEventListener("hashchange", follow);
  addEventListener("load", follow);
  // An address that is there already does not change.
  document.addEventListener("click", (event) => {
    if (location.hash && event.target.closest("a")?.hash === location.hash) follow();
  });

  // The reader's theme stays with the page if the browser lets it.
  const theme = document.getElementById("theme");
  const setTheme = () => {
    if (theme.value) document.documentElement.dataset.theme = theme.value;
    else delete document.documentElement.dataset.theme;
  };
  const stored = (use) => {
    try {
      return use(localStorage);
    } catch {
      return null; // A page opened from a file may have no storage.
    }
  };
  theme.value = stored((storage) => storage.getItem("tensorbench-theme")) || "";
  setTheme();
  theme.addEventListener("change", () => {
    setTheme();
    stored((storage) => storage.setItem("tensorbench-theme", theme.value));
  });
})();
