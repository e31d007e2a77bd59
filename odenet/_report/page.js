"use strict";
const cells = document.getElementById("cells");
const body = cells.tBodies[0];
const heads = [...cells.tHead.rows[0].cells];
const key = (row, column) => {
  const text = row.cells[column].dataset.v;
  const number = Number(text.replace("inf", "Infinity"));
  return text === "" ? null : Number.isNaN(number) ? text : number;
};
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  heads.forEach((each) => each.setAttribute("aria-sort", each === head ? (up ? "ascending" : "descending") : "none"));
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null); // what was not measured comes last, both ways
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return up ? order : -order;
  };
  [...body.rows].map((row) => [key(row, column), row]).sort((a, b) => compare(a[0], b[0])).forEach(([, row]) => body.append(row));
}));
const filter = document.getElementById("filter");
const words = (row) => [...row.cells].map((cell) => cell.dataset.t || cell.dataset.v);
filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const have = words(row).map((word) => word.toLowerCase());
    row.hidden = !wanted.every((want) => have.some((word) => (want.startsWith("n=") ? word === want : word.includes(want))));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = wanted.length ? `${shown} of ${body.rows.length}` : "";
});
