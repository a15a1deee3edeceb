"use strict";
(() => {
  const form = document.getElementById("choices");
  const blocks = [...document.querySelectorAll(".setting .budget")];
  for (const select of form.querySelectorAll("select")) {
    const values = [...new Set(blocks.map((block) => block.dataset[select.name]))];
    for (const value of values) select.append(new Option(value, value));
    if (values.length < 2) select.parentElement.hidden = true;
  }
  form.hidden = [...form.children].every((label) => label.hidden);
  const choose = () => {
    for (const block of blocks) {
      block.hidden = [...form.elements].some((select) => select.value && block.dataset[select.name] !== select.value);
    }
    for (const setting of document.querySelectorAll(".setting")) {
      setting.hidden = !setting.querySelector(".budget:not([hidden])");
    }
  };
  form.addEventListener("change", choose);
  // A browser that goes back fills in what was chosen.
  choose();
})();
