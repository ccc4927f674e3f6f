// What the theme leaves out, for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  const set = (selector, name, value) => document.querySelectorAll(selector).forEach((part) => part.setAttribute(name, value));
  set("p.caption[role=heading]", "aria-level", "2");
  set("aside.sidebar-drawer", "aria-label", "All pages");
  set("aside.toc-drawer", "aria-label", "On this page");
  set("dt.sig > dl", "role", "none"); // arguments of a function, which are no definitions
  for (const wide of document.querySelectorAll("pre, table, .table-wrapper")) if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
});
