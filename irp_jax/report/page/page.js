"use strict";
// Without scripts, the page shows everything. Controls that need it stay hidden.
const $ = (selector, within = document) => [...within.querySelectorAll(selector)];
$(".js:not(#compare)").forEach((part) => (part.hidden = false));

// ---- sorting ----
const key = (cell) => {
  const text = cell.dataset.key ?? cell.textContent.replace(/,/g, "");
  return text.trim() === "" ? null : isNaN(text) ? text : Number(text);
};
function sort(table, column, up) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  // Empty cells come last in both directions.
  rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : up * order(a, b)));
  body.append(...rows.map(([, row]) => row));
}
for (const table of $("table.sortable"))
  $("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      $("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
      sort(table, column, up);
    });
  });

// ---- filtering ----
const form = document.getElementById("filters"), rows = $("#table tbody tr");
const points = new Map(rows.map((row) => [`#${row.dataset.run}`, []]));
for (const point of $("#points .chart a")) points.get(point.getAttribute("xlink:href")).push(point);
function filter() {
  const words = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = $("select", form).filter((select) => select.value);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const shown =
      words.every((word) => text.includes(word)) &&
      chosen.every((select) => row.cells[select.dataset.column].textContent === select.value);
    row.hidden = !shown;
    document.getElementById(row.dataset.run).hidden = !shown;
    // The point of a hidden run is hidden.
    for (const point of points.get(`#${row.dataset.run}`)) point.style.display = shown ? "" : "none";
  }
  const count = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${count} of ${rows.length} runs`;
}
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
filter();

// ---- parameters or MACs ----
const kind = document.getElementById("kind");
const show = () => $("[data-kind]").forEach((part) => (part.hidden = part.dataset.kind !== kind.value));
kind.addEventListener("input", show);
show();

// ---- details ----
for (const [link, mine] of points) {
  const text = document.querySelector(`${link} > summary`).textContent;
  for (const point of mine) {
    point.setAttribute("tabindex", "-1"); // the table has the same links
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = text;
    point.prepend(title);
  }
}
function open() {
  const run = /^#run-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
  if (run) { run.open = true; run.scrollIntoView(); run.querySelector("summary").focus(); }
}
addEventListener("hashchange", open);
open();

// ---- comparison of runs ----
const titles = $("#table thead th").map((head) => head.textContent);
const element = (name, text = "", parent = null) => {
  const made = document.createElement(name);
  made.textContent = text;
  parent?.append(made);
  return made;
};
const settings = (run) =>
  Object.fromEntries($(".facts dt", run).map((dt) => [dt.textContent, dt.nextElementSibling.textContent]));
function compare() {
  const chosen = rows.filter((row) => row.querySelector("input").checked);
  const place = document.getElementById("compared");
  document.getElementById("compare").hidden = chosen.length < 2;
  place.replaceChildren();
  if (chosen.length < 2) return;
  const runs = chosen.map((row) => document.getElementById(row.dataset.run));
  const lines = titles.slice(1).map((title, at) => [title, chosen.map((row) => row.cells[at + 1].textContent)]);
  const facts = runs.map(settings), names = [...new Set(facts.flatMap(Object.keys))];
  for (const name of names) if (!titles.includes(name)) lines.push([name, facts.map((one) => one[name] ?? "")]);
  const differs = ([, cells]) => new Set(cells).size > 1;
  const draw = (shown, parent, name) => {
    const box = element("div", "", parent), table = element("table", "", box);
    box.className = "scroll";
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", name);
    const head = element("tr", "", table.createTHead()), body = table.createTBody();
    element("td", "", head);
    for (const row of chosen) element("th", row.cells[0].textContent, head).scope = "col";
    for (const [title, cells] of shown) {
      const row = element("tr", "", body);
      element("th", title, row).scope = "row";
      for (const text of cells) element("td", text, row);
    }
  };
  draw(lines.filter(differs), place, "rows that differ");
  const charts = runs.map((run) => $(":scope > .charts > figure", run));
  for (let at = 0; at < Math.max(...charts.map((one) => one.length)); at++) {
    const beside = element("div", "", place);
    beside.className = "charts";
    charts.forEach((one, number) => {
      if (!one[at]) return;
      const copy = one[at].cloneNode(true);
      // Ids must be unique on the page.
      copy.innerHTML = copy.innerHTML.replaceAll(`${runs[number].id}-`, `copy-${runs[number].id}-`);
      copy.querySelector("figcaption").prepend(`${chosen[number].cells[0].textContent}: `);
      beside.append(copy);
    });
  }
  const rest = element("details", "", place), equal = lines.filter((line) => !differs(line));
  element("summary", `${equal.length} rows that are equal in all runs`, rest);
  draw(equal, rest, "rows that are equal");
}
$("#table input").forEach((box) => box.addEventListener("change", compare));
document.getElementById("clear").addEventListener("click", () => {
  $("#table input").forEach((box) => (box.checked = false));
  compare();
  document.getElementById("runs").scrollIntoView();
});
