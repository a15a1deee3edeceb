"use strict";
// A dot leads to the row of its trial, which may be in a closed list.
(() => {
  const show = () => {
    const row = document.getElementById(location.hash.slice(1));
    const list = row?.closest("details");
    if (!list) return;
    list.open = true;
    row.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", show);
  show();
})();
