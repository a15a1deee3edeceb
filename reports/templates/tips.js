"use strict";
// Shows the text of the mark of a figure that is nearest to the pointer. Without a script, browsers show it as
// the mark's title.
(() => {
  const NEAR = 14;
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const hide = () => {
    tip.hidden = true;
  };
  const show = (mark, x, y) => {
    if (!mark) return hide();
    tip.textContent = mark.ariaLabel;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${y + 14 + height > innerHeight ? Math.max(4, y - height - 10) : y + 14}px`;
  };
  const beyond = (low, value, high) => Math.max(low - value, 0, value - high);
  const nearest = (marks, x, y) => {
    let mark = null;
    let least = NEAR;
    for (const candidate of marks) {
      const { left, right, top, bottom } = candidate.getBoundingClientRect();
      const distance = Math.hypot(beyond(left, x, right), beyond(top, y, bottom));
      if (distance < least) [mark, least] = [candidate, distance];
    }
    return mark;
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
      if (target.matches("a")) show(target, right, top);
    });
    svg.addEventListener("focusout", hide);
  }
  addEventListener("touchmove", hide, { passive: true });
  addEventListener("keydown", ({ key }) => key === "Escape" && hide());
})();
