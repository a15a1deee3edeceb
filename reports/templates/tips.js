"use strict";
// Shows the texts of the marks of a figure that are nearest to the pointer. Without a script, browsers show
// them as titles.
(() => {
  const NEAR = 14;
  const MOST = 3;
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const hide = () => {
    tip.hidden = true;
  };
  const show = (marks, x, y) => {
    if (!marks.length) return hide();
    tip.textContent = marks.map((mark) => mark.ariaLabel).join("\n\n");
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${y + 14 + height > innerHeight ? Math.max(4, y - height - 10) : y + 14}px`;
  };
  const beyond = (low, value, high) => Math.max(low - value, 0, value - high);
  // The marks that are nearest, of which several may coincide.
  const nearest = (marks, x, y) => {
    const distances = marks.map((mark) => {
      const { left, right, top, bottom } = mark.getBoundingClientRect();
      return Math.hypot(beyond(left, x, right), beyond(top, y, bottom));
    });
    const least = Math.min(...distances, NEAR);
    return least < NEAR ? marks.filter((_, i) => distances[i] <= least).slice(-MOST) : [];
  };
  for (const svg of document.querySelectorAll("figure svg")) {
    const marks = [...svg.querySelectorAll("a > title")].map((title) => {
      const mark = title.parentElement;
      mark.ariaLabel = title.textContent;
      title.remove();
      return mark;
    });
    for (const type of ["pointermove", "pointerdown"]) {
      svg.addEventListener(type, ({ clientX, clientY }) => show(nearest(marks, clientX, clientY), clientX, clientY));
    }
    // A finger that is lifted leaves the figure; what it touched stays shown until it moves the page.
    svg.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && hide());
    svg.addEventListener("focusin", ({ target }) => {
      const { right, top } = target.getBoundingClientRect();
      if (target.matches("a")) show([target], right, top);
    });
    svg.addEventListener("focusout", hide);
  }
  addEventListener("touchmove", hide, { passive: true });
  addEventListener("keydown", ({ key }) => key === "Escape" && hide());
})();
