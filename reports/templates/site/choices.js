"use strict";
// Chooses among the rows of the table of methods × tasks.
(() => {
  const form = document.getElementById("choices");
  const rows = [...document.querySelectorAll(".standing tbody tr")];
  const selects = [...form.querySelectorAll("select")];
  const columns = ["method", "suite", "budget"];
  const of = (row, name) => row.cells[columns.indexOf(name)].textContent;
  for (const select of selects) {
    const values = [...new Set(rows.map((row) => of(row, select.name)))];
    for (const value of values) select.append(new Option(value, value));
    if (values.length < 2) select.parentElement.hidden = true;
  }
  const choose = () => {
    const text = form.elements.method.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden =
        !of(row, "method").toLowerCase().includes(text) ||
        selects.some(({ name, value }) => value && of(row, name) !== value);
    }
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    dispatchEvent(new Event("shown"));
  };
  for (const type of ["input", "change"]) form.addEventListener(type, choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  // A browser that goes back fills in what was chosen.
  choose();
})();
