// Small helps for a reader: wide formulas say that they scroll, tables become cards on a phone, asides can be folded
// away, and a search for "(4.29)" leads to that equation. Without scripts every page still says the same.
(function () {
  "use strict";

  function markWideFormulas() {
    for (const formula of document.querySelectorAll("article mjx-container")) {
      const box = formula.closest("div.math") || formula.parentElement;
      const drawn = formula.querySelector("mjx-math");
      if (!drawn || !box.clientWidth) continue;
      const number = box.querySelector(".eqno");
      const room = box.clientWidth - (number ? number.offsetWidth : 0);
      const wide = drawn.getBoundingClientRect().width > room + 1;
      formula.classList.toggle("scrolls", wide);
      if (wide) {
        formula.tabIndex = 0;
        formula.setAttribute("role", "group");
        formula.setAttribute("aria-label", "formula, scrolls sideways");
      } else if (formula.hasAttribute("aria-label")) {
        for (const name of ["tabindex", "role", "aria-label"]) formula.removeAttribute(name);
      }
      const display = formula.closest("div.math");
      const hint = display && display.nextElementSibling;
      const hinted = hint && hint.matches("p.scroll-hint");
      if (display && wide && !hinted) {
        const text = document.createElement("p");
        text.className = "scroll-hint";
        text.textContent = "scroll →";
        text.setAttribute("aria-hidden", "true");
        display.after(text);
      } else if (hinted && !wide) {
        hint.remove();
      }
    }
  }

  function nameCells() {
    for (const table of document.querySelectorAll("article table")) {
      const heads = [...table.querySelectorAll("thead th")].map((th) => th.textContent.trim());
      if (heads.length < 3) continue;
      table.classList.add("cards");
      for (const row of table.querySelectorAll("tbody tr")) {
        [...row.children].forEach((cell, i) => {
          if (heads[i]) cell.dataset.label = heads[i];
        });
      }
    }
  }

  function offerCoreOnly() {
    const title = document.querySelector("article h1");
    if (!title || !document.querySelector("section.aside")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "core-only";
    const show = (on) => {
      document.documentElement.classList.toggle("core-only", on);
      button.setAttribute("aria-pressed", String(on));
      button.textContent = on ? "Asides are folded: show them" : "Fold the asides";
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
    show(false);
    title.after(button);
    const unfold = () => {
      const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (target && target.closest("section.aside")) show(false);
    };
    window.addEventListener("hashchange", unfold);
  }

  function findEquation() {
    const wanted = /^\s*\(?(\d+\.\d+)\)?\s*$/.exec(new URLSearchParams(location.search).get("q") || "");
    const results = document.getElementById("search-results");
    if (!wanted || !results) return;
    const root = document.documentElement.dataset.content_root || "";
    const script = document.createElement("script");
    script.src = root + "_static/equations.js";
    script.addEventListener("load", () => {
      const found = (window.EQUATIONS || {})[wanted[1]];
      const line = document.createElement("p");
      line.className = "found-equation";
      if (found) {
        const link = document.createElement("a");
        link.href = root + found[0];
        link.textContent = `Equation (${wanted[1]}): ${found[1]}`;
        line.append(link);
      } else {
        line.textContent = `No equation has the number (${wanted[1]}).`;
      }
      results.before(line);
    });
    document.head.append(script);
  }

  document.addEventListener("DOMContentLoaded", () => {
    nameCells();
    offerCoreOnly();
    findEquation();
    const ready = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
    let pending = 0;
    const later = () => {
      window.cancelAnimationFrame(pending);
      pending = window.requestAnimationFrame(markWideFormulas);
    };
    window.addEventListener("resize", later);
    for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", later);
    if (ready) ready.then(later);
    window.addEventListener("load", () => {
      const started = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
      if (started) started.then(later);
    });
  });
})();
