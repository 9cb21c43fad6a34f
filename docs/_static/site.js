// What scrolls sideways can be reached by Tab, and then scrolled by the arrow keys.
const reach = () => {
  for (const each of document.querySelectorAll("pre, .table-wrapper, .sig")) {
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
    else each.removeAttribute("tabindex");
  }
};
addEventListener("load", reach);
addEventListener("resize", reach);
